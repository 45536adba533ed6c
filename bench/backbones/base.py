"""Families of pretrained generators: what a folder holds is asked of its ``model_index.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from fairbench.backbones.folders import PipelineFolder, files_sha256
from fairbench.core.documents import read_object
from fairbench.core.errors import AssetError
from fairbench.core.method import Need, SamplingConfig
from fairbench.core.registry import Registry
from fairbench.core.specs import BackboneSpec

if TYPE_CHECKING:
    import torch

    from fairbench.diffusion.backbone import Backbone

__all__ = [
    "FAMILIES",
    "Description",
    "Family",
    "Loader",
    "able_families",
    "default_network_batch",
    "describe",
    "find_family",
    "folder_spec",
    "load_backbone",
    "weights_sha256",
]


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
        network_batch: int | None,
    ) -> Backbone:
        """Load what is in the folder; nothing is downloaded.

        Raises:
            AssetError: If it is damaged.
        """
        ...


@dataclass(frozen=True)
class Description:
    """What a folder's JSON says of a backbone, before anything is loaded.

    Attributes:
        conditional: Whether it takes prompts.
        sampling: How it is sampled unless the user says otherwise.
        notes: Lines that the user must read before a run with it.
        facts: What a record says of the folder.
        settings: What its images depend on beside weights and sampling.
    """

    conditional: bool
    sampling: SamplingConfig
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Backbones that are loaded and driven the same way.

    Attributes:
        name: Its own.
        title: One line.
        pipelines: Classes of diffusers whose folders it loads.
        conditional: Whether its backbones take prompts, unless their folder says otherwise.
        sampling: How they are sampled unless the user, or a data set, says otherwise.
        load: Loads one.
        capabilities: What a method may ask of its backbones.
        parts: What is loaded of a folder; None: all but a safety checker.
        describe: Reads the folder's JSON, and refuses what can't be run, before anything is
            loaded; None: the fields above say it all.
        claims: Whether a folder is of this family though its class is another's; asked first.
        refuses: Why a class that no family lists can't be run by this one, None if it can.
        version: Raised whenever the same folder gives other images, the network batch of
            :func:`default_network_batch` among the reasons.
    """

    name: str
    title: str
    pipelines: tuple[str, ...]
    conditional: bool
    sampling: SamplingConfig
    load: Loader
    capabilities: frozenset[Need] = frozenset({"predictions", "training", "bottleneck", "ddim"})
    parts: tuple[str, ...] | None = None
    describe: Callable[[PipelineFolder], Description] | None = None
    claims: Callable[[PipelineFolder], bool] | None = None
    refuses: Callable[[str], str | None] | None = None
    version: int = 1


FAMILIES: Registry[Family] = Registry("backbone family", "fairbench.backbones", "FAMILY")


def default_network_batch(image_size: int) -> int:
    """Fixed number of rows of every network call without gradients, by the side of an image."""
    return next((rows for side, rows in ((64, 64), (256, 16), (512, 8)) if image_size <= side), 4)


def able_families() -> Mapping[str, tuple[str, ...]]:
    """What a method may need -> names of the families that have it."""
    families, _ = FAMILIES.entries()
    needs = sorted({need for family in families.values() for need in family.capabilities})
    return {
        need: tuple(f.name for f in families.values() if need in f.capabilities) for need in needs
    }


def find_family(folder: Path) -> Family:
    """The family that a pipeline folder belongs to.

    Raises:
        AssetError: If it is no pipeline folder, or its class is of no family.
    """
    return _family_of(PipelineFolder.read(folder))


def _family_of(pipeline: PipelineFolder) -> Family:
    families, broken = FAMILIES.entries()
    for family in families.values():
        if family.claims is not None and family.claims(pipeline):
            return family
    for family in families.values():
        if pipeline.kind in family.pipelines:
            return family
    reason = ""
    for family in families.values():
        if family.refuses is not None:
            said = family.refuses(pipeline.kind)
            if said is None:
                return family
            reason = f", {said}"
    known = sorted(one for family in families.values() for one in family.pipelines)
    raise AssetError(
        f"{pipeline.path} is a {pipeline.kind}{reason}; the pipelines that work are "
        f"{', '.join(known)} and, called as a whole, diffusers' other text-to-image pipelines"
        + "".join(f"; {fault}" for fault in broken.values())
    )


def describe(folder: Path) -> tuple[Family, Description]:
    """The family of a folder, and what its JSON says.

    Raises:
        AssetError: If it is no pipeline folder, or it can't be run.
    """
    pipeline = PipelineFolder.read(folder)
    family = _family_of(pipeline)
    if family.describe is None:
        said = Description(family.conditional, family.sampling)
    else:
        said = family.describe(pipeline)
    return family, said


def folder_spec(folder: Path, name: str | None = None) -> BackboneSpec:
    """A pipeline folder as a backbone, with its family's default settings.

    Args:
        folder: The folder; :func:`~fairbench.backbones.folders.resolve_folder` finds that of a
            hub id.
        name: What to call it; None: as the folder.
    Raises:
        AssetError: If no family reads such a folder.
    """
    family, said = describe(folder)
    settings = {**said.settings, **({"family": family.version} if family.version > 1 else {})}
    return BackboneSpec(
        name or folder.name,
        folder,
        said.conditional,
        said.sampling,
        f"{family.title}, at {folder}",
        notes=said.notes,
        facts={"family": family.name, **said.facts},
        settings=settings,
    )


def weights_sha256(folder: Path) -> str:
    """Hash of a pipeline folder: names and contents of ``model_index.json`` and of loaded files.

    A folder whose ``training.json`` holds an older hash that still holds, as that of the backbones
    that come with fairbench, keeps it, so that records made with it are still found.

    Raises:
        AssetError: If it is no pipeline folder, or a part is missing.
    """
    training = folder / "training.json"
    if training.is_file():
        recorded = read_object(training, "complete or remove it").get("weights_sha256")
        if recorded == _tree_sha256(folder):
            return cast("str", recorded)
    pipeline = PipelineFolder.read(folder)
    return files_sha256(folder, pipeline.files(_family_of(pipeline).parts))


def _tree_sha256(folder: Path) -> str:
    """Hash of every weight and configuration file in subfolders, loaded or not."""
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
        folder: Holds ``model_index.json`` and weights.
        device: Where its networks are to run.
        dtype: Format of its weights.
        network_batch: Fixed number of rows of every network call; None: by the size of its images.
    Raises:
        AssetError: If the folder is missing or isn't a pipeline of a known family.
    """
    try:
        family, _ = describe(folder)
        sha256 = weights_sha256(folder)
    except AssetError as error:
        raise AssetError(f"backbone {name!r}: {error}") from None
    backbone = family.load(
        name, folder, sha256=sha256, device=device, dtype=dtype, network_batch=network_batch
    )
    backbone.families = able_families()
    return backbone
