"""Repositories of the Hugging Face hub as folders in its cache."""

from __future__ import annotations

from pathlib import Path

__all__ = ["hub_folder", "hub_place", "is_repository", "missing"]

INDEX = "model_index.json"


def is_repository(name: str) -> bool:
    """Whether a name has the form of a repository: an owner, a slash, a name."""
    owner, slash, rest = name.partition("/")
    return bool(slash and owner and rest) and "/" not in rest and not name.startswith((".", "~"))


def hub_place(repository: str) -> Path:
    """Where the hub's own cache keeps a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def hub_folder(repository: str) -> Path | None:
    """The folder of a pipeline in the hub's cache, whole or not; None if it isn't there."""
    place = hub_place(repository)
    snapshots = place / "snapshots"
    try:
        chosen = (place / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        chosen = ""
    found = [snapshots / chosen] if chosen else []
    found += sorted(snapshots.glob("*")) if snapshots.is_dir() else []
    for folder in found:
        if (folder / INDEX).is_file():
            return folder
    return None


def missing(repository: str) -> str:
    """What is said where a repository isn't in the cache."""
    return (
        f"backbone {repository} not found: looked in {hub_place(repository)}; run "
        f"'hf download {repository}', add --allow-download, or give --backbone a folder made by "
        "save_pretrained"
    )
