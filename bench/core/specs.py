"""Plain descriptions that several rooms name: of data sets, their tasks and their backbones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fairbench.core.documents import content, from_json
from fairbench.core.method import SamplingConfig
from fairbench.core.prompts import Phrase
from fairbench.core.task import Prompt

__all__ = ["BackboneSpec", "DatasetCard", "InstrumentNames", "InstrumentSpec", "TaskSpec"]


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a data set before any file of it is opened.

    Attributes:
        name: Its name on the command line.
        title: One line.
        licence: Terms of its images, such as ``"Apache-2.0"``.
        may_publish_images: Whether its images may be shown in pictures, boards and records.
        attributes: Attribute -> levels in declared order; what its judges read.
        sensitive: The attributes whose shares a fair generator is asked for.
        said: Attribute -> level -> how a prompt says it, where that isn't the level's own name.
        citation: Where it is described; empty without one.
        default: Whether it is the one that is meant where no data set is named.
        on_disk: Whether its images lie in a folder of the user's, which ``--data-root`` names.
        home: Web page where its images come from; empty if they come with fairbench.
    """

    name: str
    title: str
    licence: str
    may_publish_images: bool
    attributes: Mapping[str, tuple[str, ...]]
    sensitive: tuple[str, ...]
    said: Mapping[str, Mapping[str, Phrase]] = field(default_factory=dict)
    citation: str = ""
    default: bool = False
    on_disk: bool = False
    home: str = ""


@dataclass(frozen=True)
class TaskSpec:
    """One question that a data set can be asked.

    Attributes:
        name: Its name on the command line.
        attributes: Attributes whose crossing makes the groups.
        prompts: What a text-to-image backbone is asked for.
        per_prompt: Whether rows are ranked by the mean over the prompts; such a task needs a
            backbone that takes prompts.
        crossed: Attributes whose shares are measured and whose cells its references balance,
            those of the task among them; empty: the data set's `sensitive` ones.
    """

    name: str
    attributes: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    per_prompt: bool = False
    crossed: tuple[str, ...] = ()


@dataclass(frozen=True)
class BackboneSpec:
    """A pretrained generator, before it is loaded.

    Attributes:
        name: Its name on the command line.
        folder: diffusers pipeline folder.
        conditional: Whether it takes prompts.
        sampling: How it is sampled unless the user says otherwise.
        title: One line.
        hub: Repository of the Hugging Face hub that holds it; its folder is then found in the
            hub's cache when it is asked for. Empty for a folder on the disk.
        notes: Lines that the user must read before a run with it.
        facts: What a record says of its folder, as plain values.
        settings: What its images depend on beside weights and sampling, such as the release that
            a pipeline is called with; part of the key where there is any.
    """

    name: str
    folder: Path
    conditional: bool
    sampling: SamplingConfig
    title: str
    hub: str = ""
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def expected_sha256(self) -> str | None:
        """Hash that its weights had when they were trained; None for a folder of the user's."""
        try:
            told = from_json(content(self.folder / "training.json"))
        except (OSError, ValueError):
            return None
        recorded: str | None = told.get("weights_sha256") if isinstance(told, dict) else None
        return recorded


@dataclass(frozen=True)
class InstrumentSpec:
    """A network that measures images, as it is found by name.

    Attributes:
        name: What is asked for, such as ``"clip-vit-b-32"`` or ``"cartoonfaces/primary"``.
        kind: ``"judge"`` for attributes, ``"encoder"`` for features, ``"validity"`` for whether
            an image is a proper one, ``"faces"`` for where faces are and whose.
        title: One line.
        load: ``load(device=..., batch_size=..., allow_download=...)`` gives the
            `fairbench.instruments.base.Instrument`; all three are given by name, a batch size of
            None stands for its own.
        weights: Name of its weight file, as ``fairbench doctor`` lists it; empty if its weights
            come with it.
        per_dataset: Whether what it is depends on the data set, as with a judge that is told the
            levels; ``load`` is then given ``dataset=`` too.
    """

    name: str
    kind: Literal["judge", "encoder", "validity", "faces"]
    title: str
    load: Callable[..., Any]
    weights: str = ""
    per_dataset: bool = False


@dataclass(frozen=True)
class InstrumentNames:
    """Which instruments measure a data set's images, by the names of their specs.

    Attributes:
        judges: The first is the one that scores come from; there may be none where `trained`
            says that the user trains one.
        trained: Whether judges that ``fairbench train-judge`` left for this data set take the
            place of `judges` as soon as there is one; else they are used only where a run names
            them.
        encoders: The data set's own first; there may be none.
        validity: Tells proper images from others; None if nothing does.
        detector: Finds faces in every run's images; None: only where a run asks for it.
        identity: Tells faces apart; used together with a detector only.
    """

    judges: tuple[str, ...]
    encoders: tuple[str, ...] = ()
    validity: str | None = None
    detector: str | None = None
    identity: str | None = None
    trained: bool = False
