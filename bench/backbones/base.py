"""Families of pretrained generators: what a folder holds is asked of its ``model_index.json``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fairbench.core.errors import AssetError
from fairbench.core.method import SamplingConfig
from fairbench.core.registry import Registry

if TYPE_CHECKING:
    import torch

    from fairbench.diffusion.backbone import Backbone

__all__ = ["FAMILIES", "Family", "Loader", "find_family", "load_backbone", "weights_sha256"]


class Loader(Protocol):
    """Loads a backbone of one family."""

    def __call__(
        self,
        name: str,
        folder: Path,
        *,
        sha256: str,
        device: torch.device,
        dtype: torch.dtype,
        network_batch: int,
    ) -> Backbone:
        """Load what is in the folder; nothing is downloaded.

        Raises:
            AssetError: If it is damaged.
        """
        ...


@dataclass(frozen=True)
class Family:
    """Backbones that are loaded and driven the same way.

    Attributes:
        name: Its own.
        title: One line.
        pipelines: Classes of diffusers whose folders it loads.
        conditional: Whether its backbones take prompts.
        sampling: How they are sampled unless the user, or a data set, says otherwise.
        network_batch: Fixed number of rows of every network call without gradients.
        load: Loads one.
    """

    name: str
    title: str
    pipelines: tuple[str, ...]
    conditional: bool
    sampling: SamplingConfig
    network_batch: int
    load: Loader


FAMILIES: Registry[Family] = Registry("backbone family", "fairbench.backbones", "FAMILY")


def find_family(folder: Path) -> Family:
    """The family that a pipeline folder belongs to.

    Raises:
        AssetError: If it is no pipeline folder, or its class is of no family.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise AssetError(
            f"expected a diffusers pipeline folder with model_index.json at {folder}, found none; "
            "give --backbone a folder made by save_pretrained"
        )
    try:
        seen = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise AssetError(
            f"{index} names no pipeline class; give --backbone a folder made by save_pretrained"
        ) from None
    families, broken = FAMILIES.entries()
    for family in families.values():
        if seen in family.pipelines:
            return family
    known = sorted(one for family in families.values() for one in family.pipelines)
    raise AssetError(
        f"{folder} is a {seen}; the pipelines that work are {', '.join(known)}"
        + "".join(f"; {reason}" for reason in broken.values())
    )


def weights_sha256(folder: Path) -> str:
    """Hash of a pipeline folder: names and contents of its weight and configuration files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".txt") and path.parent != folder:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def load_backbone(
    name: str,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    network_batch: int | None = None,
) -> Backbone:
    """Load a pipeline saved in diffusers' folder format; nothing is downloaded.

    Args:
        name: What to call it.
        folder: Holds ``model_index.json`` and safetensors.
        device: Where its networks are to run.
        dtype: Format of its weights.
        network_batch: Fixed number of rows of every network call; None: the family's.
    Raises:
        AssetError: If the folder is missing or isn't a pipeline of a known family.
    """
    try:
        family = find_family(folder)
    except AssetError as error:
        raise AssetError(f"backbone {name!r}: {error}") from None
    return family.load(
        name,
        folder,
        sha256=weights_sha256(folder),
        device=device,
        dtype=dtype,
        network_batch=network_batch or family.network_batch,
    )
