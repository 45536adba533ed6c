"""How long ten thousand records take to become a board, and how much memory.

Run by hand, from anywhere, with nothing else on the machine:

    python tests/performance/board.py        # some minutes, mostly to write them
    python tests/performance/board.py --records 500 --schemas 2

The records are the committed ones over and over, each time under other names, so that every row
is worked out anew: ``--vary backbone`` makes new tables of the usual size, ``parameter`` makes a
few tables of thousands of rows, ``seed`` makes rows of hundreds of seeds. Counts are jittered, so
that no two rows have the same. 100 images of each record are kept: schema 1 has them in its
manifest, schema 2 in a sidecar with labels, and two judges' counts of every crossing. Each board
is made twice, in processes of their own: without an index, and with the one that the first left.
Printed: seconds; processor seconds of the process and its helpers, which a busy machine changes
less; the largest memory of the process and its helpers together, what they share counted once
(looked at twice a second; where only Linux would tell it, that of the process and of one helper,
what they share counted twice), and the largest resident memory of the process.
Exit status 1 if a board is above a bar.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fairbench.core.record import PerImage, Record
from fairbench.leaderboards.counts import Column, Counts, confusions_in
from fairbench.storage.records import _READERS, _packed

SECONDS, MEBIBYTES = 20.0, 500.0
COMMITTED = Path(__file__).resolve().parent.parent.parent / "results"
ROWS = 100
BETWEEN_LOOKS = 0.5

MAKE = """
import resource, sys, time
from pathlib import Path
start = time.perf_counter()
from fairbench.leaderboards import leaderboard
from fairbench.leaderboards.formats.csv import to_csv
text = to_csv(leaderboard(sys.argv[1]))
took = time.perf_counter() - start
own, helper = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
busy = sum(one.ru_utime + one.ru_stime for one in (own, helper))
sizes = [one.ru_maxrss / 1024 for one in (own, helper)]
print(took, busy, *sizes, text.count(chr(10)) - 1)
"""


def varied(data: dict[str, Any], how: str, number: int, draw: random.Random) -> dict[str, Any]:
    """A record under another name, with other counts."""
    config = dict(data["config"])
    if how == "backbone":
        config["backbone"] = f"{config['backbone']}-{number}"
    elif how == "parameter":
        config["parameters"] = {**config["parameters"], "number": number}
    else:
        config["seed"] = int(config["seed"]) + 1000 * number
    key = hashlib.sha256(f"{data['key']} {number}".encode()).hexdigest()[:16]
    generation = hashlib.sha256(f"{data['generation_key']} {number}".encode()).hexdigest()[:16]
    groups = {}
    for name, rows in data["groups"].items():
        counts = jittered([int(row["count"]) for row in rows], draw)
        groups[name] = [{**row, "count": count} for row, count in zip(rows, counts, strict=True)]
    facts = data["facts"]
    if estimate := facts.get("estimate"):
        judges = {
            judge: {
                crossing: {**one, "counts": [jittered(row, draw) for row in one["counts"]]}
                for crossing, one in tables.items()
            }
            for judge, tables in estimate["judges"].items()
        }
        facts = {**facts, "estimate": {**estimate, "judges": judges}}
    told = {"config": config, "key": key, "generation_key": generation}
    return {**data, **told, "groups": groups, "facts": facts}


def jittered(counts: list[int], draw: random.Random) -> list[int]:
    """As many images, a few of them in another group."""
    moved = draw.randint(0, min(3, counts[0]))
    return [counts[0] - moved, *counts[1:-1], counts[-1] + moved] if len(counts) > 1 else counts


def with_estimate(data: dict[str, Any], counts: Counts) -> dict[str, Any]:
    """A record of schema 1 with what newer ones hold of their counts, two judges' of it."""
    record = _read(data)
    by_prompt = "by_prompt" in data["facts"].get("fairness", {})
    tables = {}
    for name in data["groups"]:
        if "|" in name:
            continue
        for one in counts.of(record, Column(name, by_prompt, corrected=True)).values():
            confusion = None if one.confusion is None else one.confusion.tolist()
            told = {"counts": one.counts.tolist(), "target": one.target.tolist()}
            tables[name] = {**told, "confusion": confusion, "effect": one.effect}
    wanted = sorted(data["config"]["target"])
    ranked = next(
        (name for name in tables if sorted(r["group"] for r in data["groups"][name]) == wanted), ""
    )
    if not ranked:
        return data
    prompts = len(tables[ranked]["counts"])
    estimate = {
        "ranked": ranked,
        "per_prompt": by_prompt,
        "images": [data["config"]["num_images"] // prompts] * prompts,
        "judges": {"primary": tables, "second": tables},
    }
    return {**data, "facts": {**data["facts"], "estimate": estimate}}


def sidecar(
    data: dict[str, Any], manifest: Sequence[tuple[int, int, str]], draw: random.Random
) -> bytes:
    """What is known of each image, as of a run that draws groups at random."""
    n = len(manifest)
    generator = np.random.default_rng(draw.getrandbits(32))
    names = [name for name in data["groups"] if "|" not in name and "/" not in name]
    labels = {name: generator.integers(0, len(data["groups"][name]), n) for name in names}
    return _packed(
        PerImage(
            tuple(digest for _, _, digest in manifest),
            np.array([prompt for prompt, _, _ in manifest]),
            np.array([image for _, image, _ in manifest]),
            None,
            np.arange(n),
            np.ones(n, dtype=bool),
            {"primary": labels, "second": labels},
        )
    )


def _read(data: dict[str, Any]) -> Record:
    return _READERS[data["schema"]](data)


def fill(folder: Path, records: int, schema: int, how: str) -> None:
    """Write so many records."""
    originals = [json.loads(path.read_bytes()) for path in sorted(COMMITTED.glob("*/*/*.json"))]
    if schema == 2:
        counts = Counts(one for data in originals for one in confusions_in(_read(data)))
        originals = [
            data if "estimate" in data["facts"] else with_estimate(data, counts)
            for data in originals
        ]
    draw = random.Random(0)
    for index in range(records):
        number, place = divmod(index, len(originals))
        data = varied(originals[place], how, number, draw)
        manifest = [
            (0, i, hashlib.sha256(f"{data['key']} {i}".encode()).hexdigest()) for i in range(ROWS)
        ]
        path = folder / data["dataset"] / data["method"] / f"{data['key']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if schema == 2:
            packed = sidecar(data, manifest, draw)
            path.with_suffix(".images.npz").write_bytes(packed)
            data["facts"] = {
                **data["facts"],
                "copies": {"images": ROWS, "distinct": ROWS, "evaluation": 0},
            }
            data |= {"schema": 2, "sidecar": hashlib.sha256(packed).hexdigest()}
            data.pop("manifest", None)
        else:
            data |= {"schema": 1, "manifest": manifest}
            data.pop("sidecar", None)
        path.write_text(json.dumps(data, indent=2))


def held(process: int) -> float | None:
    """MiB of a process and its helpers, what they share counted once; None if it isn't told."""
    try:
        listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return None
    kibibytes = 0
    for one in [str(process), *listed.split()]:
        # A helper may be gone meanwhile.
        with suppress(OSError, ValueError, IndexError):
            told = Path(f"/proc/{one}/smaps_rollup").read_text()
            kibibytes += int(told.partition("\nPss:")[2].split()[0])
    return kibibytes / 1024 if kibibytes else None


def made(folder: Path, environment: dict[str, str]) -> tuple[list[float], float | None]:
    """Make a board in a process of its own: what it prints, and the most memory that was seen."""
    seen = []
    with subprocess.Popen(
        [sys.executable, "-c", MAKE, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        while running.poll() is None:
            seen.append(held(running.pid))
            time.sleep(BETWEEN_LOOKS)
        assert running.stdout is not None
        told = running.stdout.read()
    if running.returncode:
        raise SystemExit(f"a board ended with {running.returncode}")
    return [float(one) for one in told.split()], max(filter(None, seen), default=None)


def main() -> int:
    """Fill folders, time both boards of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--schemas", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--vary", nargs="+", default=["backbone", "parameter", "seed"])
    asked = parser.parse_args()
    worst = 0
    for how in asked.vary:
        for schema in asked.schemas:
            with tempfile.TemporaryDirectory() as folder:
                results = Path(folder) / "results"
                fill(results, asked.records, schema, how)
                environment = {**os.environ, "FAIRBENCH_CACHE": str(Path(folder) / "cache")}
                for what in ("without an index", "with one"):
                    (took, busy, own, helper, rows), seen = made(results, environment)
                    most = own + helper if seen is None else seen
                    about = " at most" if seen is None else ""
                    print(
                        f"schema {schema}, {asked.records:,} records by {how}, {what}: "
                        f"{took:.1f} s ({busy:.1f} s of processors), {most:.0f} MiB with helpers"
                        f"{about} ({own:.0f} MiB of the process), {rows:.0f} rows",
                        flush=True,
                    )
                    if took > SECONDS or max(own, most) > MEBIBYTES:
                        worst = 1
    return worst


if __name__ == "__main__":
    sys.exit(main())
