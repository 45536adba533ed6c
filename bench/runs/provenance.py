"""Where a record comes from: code, packages, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["DISTRIBUTION", "code_version", "environment", "package_versions"]

DISTRIBUTION = "fairbench-diffusion"
PACKAGES = (
    "accelerate",
    "diffusers",
    "numpy",
    "pillow",
    "safetensors",
    "scipy",
    "torch",
    "transformers",
)


def code_version() -> dict[str, Any] | str:
    """Commit and whether the working tree was clean; ``"wheel"`` for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        return "wheel"

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        # Results are written beside the code that makes them and don't change it.
        changed = git("status", "--porcelain", "--", ".", ":!results")
        return {"commit": git("rev-parse", "HEAD"), "clean": not changed}
    except (OSError, subprocess.CalledProcessError):
        return "source without git"


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed version of each package; ``"missing"`` for one that isn't there."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def environment(device: torch.device) -> dict[str, Any]:
    """What a record says about where it was made."""
    import torch

    # Timings and rounding depend on the card, which "cuda" doesn't tell.
    card = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "fairbench": metadata.version(DISTRIBUTION),
        "code": code_version(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        **card,
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "packages": package_versions(),
    }
