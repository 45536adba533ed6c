"""Repositories of the Hugging Face hub as folders: found in its cache, got only when asked to."""

from __future__ import annotations

from pathlib import Path

from fairbench.core.errors import AssetError

__all__ = ["download", "hub_folder", "hub_place", "is_repository", "missing"]

INDEX = "model_index.json"

NEEDED = ("*.json", "*.txt", "*.safetensors")
"""Files of a pipeline that are ever read."""

UNNEEDED = ("*.fp16.*", "*non_ema*", "*flax*", "*onnx*", "v1-5-*")
"""Other formats of the same weights, and what no run loads."""


def is_repository(name: str) -> bool:
    """Whether a name has the form of a repository: an owner, a slash, a name."""
    owner, slash, rest = name.partition("/")
    return bool(slash and owner and rest) and "/" not in rest and not name.startswith((".", "~"))


def hub_place(repository: str) -> Path:
    """Where the hub's own cache keeps a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def hub_folder(repository: str) -> Path | None:
    """The folder of a pipeline in the hub's cache; None if it isn't there, or without weights."""
    place = hub_place(repository)
    snapshots = place / "snapshots"
    try:
        chosen = (place / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        chosen = ""
    found = [snapshots / chosen] if chosen else []
    found += sorted(snapshots.glob("*")) if snapshots.is_dir() else []
    for folder in found:
        if (folder / INDEX).is_file() and next(folder.rglob("*.safetensors"), None) is not None:
            return folder
    return None


def missing(repository: str) -> str:
    """What is said where a repository isn't in the cache."""
    return (
        f"backbone {repository} not found: looked in {hub_place(repository)}; run "
        f"'hf download {repository}', add --allow-download, or give --backbone a folder made by "
        "save_pretrained"
    )


def download(repository: str) -> Path:
    """Get a pipeline into the hub's cache.

    Raises:
        AssetError: If that fails.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        snapshot_download(repository, allow_patterns=[*NEEDED], ignore_patterns=[*UNNEEDED])
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise AssetError(
            f"{repository} can't be downloaded ({reason}); {missing(repository)}"
        ) from error
    found = hub_folder(repository)
    if found is None:
        raise AssetError(
            f"{repository}: expected a pipeline with {INDEX} and safetensors, seen none; choose "
            "another --backbone"
        )
    return found
