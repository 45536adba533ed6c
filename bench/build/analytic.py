"""Writes the two folders that the analytic data set's backbones are loaded from.

From the root of the source tree:

    python -m fairbench.build.analytic bench/assets/backbones
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from fairbench.backbones.base import _tree_sha256
from fairbench.datasets.analytic import BIAS, DEVIATION, SIDE, means, words


def write(folder: Path, named: dict[str, list[int]] | None) -> None:
    """One pipeline folder; with words it takes prompts."""
    inner = folder / "unet"
    inner.mkdir(parents=True, exist_ok=True)
    index = {
        "_class_name": "GaussianMixturePipeline",
        "unet": ["fairbench", "GaussianMixture"],
    }
    config = {
        "sample_size": SIDE,
        "std": DEVIATION,
        "weights": [round(float(share), 12) for share in BIAS.ravel()],
        "words": named,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
    (inner / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    path = inner / "diffusion_pytorch_model.safetensors"
    save_file({"means": torch.from_numpy(means())}, str(path))
    told = {"training_images": 0, "weights_sha256": _tree_sha256(folder)}
    (folder / "training.json").write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    """Write both."""
    root = Path(sys.argv[1])
    write(root / "analytic-text", words())
    write(root / "analytic-plain", None)


if __name__ == "__main__":
    main()
