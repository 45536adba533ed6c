"""Draw CartoonFaces and pack it into the package: ``python -m fairbench.build.render OUT``.

Needs node and, once, ``npm ci`` in the ``cartoonfaces`` folder beside this file. The images are
rendered by the npm packages facesjs (faces) and resvg (pixels), both pinned there; the labels are
the parameters that facesjs was called with.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import subprocess
from pathlib import Path

import numpy as np

from fairbench.datasets.cartoonfaces import ATTRIBUTES, DEFAULT_BIAS, pack_split

SEED = 20261122
BALANCED = {"method_reference": 800, "judge": 6000, "evaluation": 6000}
POOL_PER_CELL, POOL_BIASED = 200, 8000
CELL_ATTRIBUTES = ("role", "gender", "race")


def plan() -> dict[str, list[dict[str, str | int]]]:
    """Which faces to draw: split -> one entry a face, with its own seed."""
    cells = list(itertools.product(*(ATTRIBUTES[name] for name in CELL_ATTRIBUTES)))
    counts = {"pool": np.full(len(cells), POOL_PER_CELL) + DEFAULT_BIAS.counts(POOL_BIASED)}
    for split, size in BALANCED.items():
        counts[split] = np.full(len(cells), size // len(cells))
    seeds = iter(np.random.SeedSequence(SEED).generate_state(200_000).tolist())
    faces: dict[str, list[dict[str, str | int]]] = {}
    for split, per_cell in counts.items():
        drawn = [
            dict(zip(CELL_ATTRIBUTES, cell, strict=True), seed=next(seeds))
            for cell, count in zip(cells, per_cell.tolist(), strict=True)
            for _ in range(count)
        ]
        order = np.random.default_rng([SEED, len(faces)]).permutation(len(drawn))
        faces[split] = [drawn[i] for i in order]
    return faces


def draw(
    faces: list[dict[str, str | int]],
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, str]]:
    """Images (N, S, S, 3) uint8, labels name -> (N,) uint8, and the renderer's versions."""
    here = Path(__file__).parent / "cartoonfaces"
    ran = subprocess.run(
        ["node", "render.mjs"],
        cwd=here,
        input="\n".join(json.dumps(face) for face in faces).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    head, _, rest = ran.stdout.partition(b"\n")
    meta = json.loads(head)
    size = meta["size"] ** 2 * 3
    images = np.empty((len(faces), meta["size"], meta["size"], 3), np.uint8)
    labels = {name: np.empty(len(faces), np.uint8) for name in ATTRIBUTES}
    at = 0
    for i, face in enumerate(faces):
        end = rest.index(b"\n", at)
        extra = json.loads(rest[at:end])
        images[i] = np.frombuffer(rest, np.uint8, size, end + 1).reshape(images.shape[1:])
        at = end + 1 + size
        for name in CELL_ATTRIBUTES:
            labels[name][i] = ATTRIBUTES[name].index(face[name])
        for name, value in extra.items():
            labels[name][i] = ATTRIBUTES[name].index("yes" if value else "no")
    return images, labels, meta["npm"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write the packed splits to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    files = {}
    npm: dict[str, str] = {}
    for split, faces in plan().items():
        images, labels, npm = draw(faces)
        digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
        twice = sum(digest in seen for digest in digests)
        if twice:
            raise SystemExit(f"{split}: {twice} images are also in another split; change SEED")
        seen.update(digests)
        packed = pack_split(images, labels)
        name = f"{split}.npz.xz"
        (out / name).write_bytes(packed)
        files[split] = {
            "file": name,
            "images": len(images),
            "distinct_images": len(set(digests)),
            "bytes": len(packed),
            "sha256": hashlib.sha256(packed).hexdigest(),
            "pixels_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
        }
        print(split, files[split])
    manifest = {"name": "cartoonfaces", "seed": SEED, "npm": npm, "splits": files}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
