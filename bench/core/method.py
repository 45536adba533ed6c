"""The nouns that the rest of fairbench is written in; no logic but what keeps them consistent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from fairbench.core.errors import InputError
from fairbench.core.parameters import check_parameters
from fairbench.core.progress import Progress
from fairbench.core.task import Prompt, Task

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Check",
    "Deposit",
    "ImageSet",
    "Method",
    "MethodBase",
    "MethodCard",
    "Need",
    "Preparation",
    "Request",
    "Sampler",
    "Samples",
    "SamplingConfig",
    "Supervision",
    "TrainingData",
]

Supervision = Literal["prompts", "reference-set", "labels", "classifier"]

Need = Literal["predictions", "training", "bottleneck", "cross-attention", "ddim"]
"""What a method asks of a backbone: single predictions, a network to train or adapt, a bottleneck,
cross-attention, or that images are made by DDIM whose timesteps the method knows."""


@dataclass(frozen=True)
class SamplingConfig:
    """How a backbone is sampled.

    Attributes:
        steps: Network timesteps of the DDIM trajectory.
        guidance: Classifier-free guidance scale; 1 is none, and costs half the calls.
        eta: DDIM's noise share in [0, 1]; 0 is deterministic.
        spacing: Which timesteps are visited.
        scheduler: ``ddim``, or ``own`` for the scheduler that the backbone's folder names, with
            its own timesteps.
    """

    steps: int
    guidance: float
    eta: float = 0.0
    spacing: Literal["trailing", "linspace"] = "trailing"
    scheduler: Literal["ddim", "own"] = field(default="ddim", metadata={"omit_default": True})

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise InputError(f"--steps must lie in 1…1000; seen {self.steps}")
        if not self.guidance >= 0:
            raise InputError(f"--guidance must be 0 or more; seen {self.guidance}")
        if not 0 <= self.eta <= 1:
            raise InputError(f"--eta must lie in [0, 1]; seen {self.eta}")
        if self.scheduler not in ("ddim", "own"):
            raise InputError(f"--scheduler must be ddim or own; seen {self.scheduler!r}")

    def content(self) -> dict[str, Any]:
        """Name -> value as they enter a key.

        One that is newer than committed records is marked ``omit_default``, and left out at its
        default, so that those records are still found.
        """
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if not one.metadata.get("omit_default") or getattr(self, one.name) != one.default
        }


@dataclass(frozen=True)
class Request:
    """One image to be made. `seed` is the run's seed; with the two indices it fixes all noise."""

    prompt: Prompt
    prompt_index: int
    image_index: int
    seed: int


@dataclass(frozen=True)
class Samples:
    """What a sampler made of B requests.

    Attributes:
        images: (B, H, W, 3) uint8.
        requested: (B,) index of the group each image was asked to be in, or None if the method
            asks for none.
        network_calls: (B,) denoiser evaluations spent on each image, guidance branches counted
            apart.
        batch_id: (B,) equal for images that depend on each other.
        diagnostics: Name -> (B, ...) numbers worth a look, a row an image.
    """

    images: NDArray[np.uint8]
    requested: NDArray[np.int64] | None
    network_calls: NDArray[np.int64]
    batch_id: NDArray[np.int64]
    diagnostics: Mapping[str, Any] = field(default_factory=dict)


class Sampler(Protocol):
    """A method that is ready to make images.

    Attributes:
        facts: Plain values for the record, such as training seconds or hit rates.
        extra_parameters: Parameters added to the backbone.
    """

    facts: Mapping[str, Any]
    extra_parameters: int

    def batches(self, requests: Sequence[Request], size: int) -> list[list[Request]]:
        """Split requests into batches of at most `size`, in the order in which to make them."""
        ...

    def __call__(self, requests: Sequence[Request]) -> Samples:
        """Make one image a request; a request's image depends on nothing but itself."""
        ...

    def observed(self, diagnostics: Mapping[str, NDArray[Any]]) -> Mapping[str, Any]:
        """What the diagnostics of all images of a run say, as plain values for the record.

        Args:
            diagnostics: Name -> (n, ...), with ``batch_id`` (n,), also of images made by an
                earlier process.
        """
        ...


@dataclass(frozen=True)
class MethodCard:
    """What a reader must know before two rows are compared.

    Attributes:
        name: The method's name on the command line.
        title: One line: what it does.
        arxiv: Identifier of the paper; empty for a control without one.
        family: Where the method acts.
        supervision: Everything beyond the frozen backbone that it learns from.
        reference_images: Size of the reference set it reads, 0 for none.
        role: Whether the row is a method, a control, an ablation or an oracle.
        ranked: Whether the row takes part in the fairness ranking; a card has to say so.
        ranked_preset: The preset whose row is the ranked one; empty: that of the defaults. A
            method has one ranked row a table.
        batch_coupled: Whether images of one batch depend on each other.
        uses_target: Whether the wanted shares change its images.
        trains: Whether it learns something before it samples.
        training_set: Images that it trains on beside the reference set: none, those with the bias
            that the backbone was trained on, or as many balanced ones.
        prompts: Whether the backbone must take prompts, must take none, or may do either.
        needs: What else it asks of the backbone. A method that only asks for images, such as one
            that changes prompts, needs nothing, and runs on pipelines that are called as a whole.
        extra_parameters: What is added to the backbone, in words; the record has the number.
        extra_network_calls: What an image costs beyond the backbone's own calls, in words; the
            record has the number.
        deviations: Where it differs from the paper with its default parameters, one sentence each;
            those of a preset are in what it sets.
    """

    name: str
    title: str
    arxiv: str
    family: Literal["none", "prompting", "sampling", "fine-tuning", "training"]
    supervision: frozenset[Supervision] = frozenset()
    reference_images: int = 0
    role: Literal["method", "control", "ablation", "oracle"] = "method"
    ranked: bool = False
    ranked_preset: str = ""
    batch_coupled: bool = False
    uses_target: bool = True
    trains: bool = False
    training_set: Literal["none", "biased", "balanced"] = "none"
    prompts: Literal["either", "needed", "none"] = "either"
    needs: frozenset[Need] = frozenset({"predictions"})
    extra_parameters: str = "none"
    extra_network_calls: str = "none"
    deviations: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """Images to learn from.

    Attributes:
        images: (N, H, W, 3) uint8.
        subjects: (N,) what each image shows, an index into `TrainingData.subjects`.
        labels: Attribute -> (N,) indices into its levels, or None if the method may not see them.
    """

    images: NDArray[np.uint8]
    subjects: NDArray[np.int64]
    labels: Mapping[str, NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class TrainingData:
    """What a method may learn from: exactly what its card declares, the rest is None.

    Attributes:
        neutral_prompts: The data set's subjects, without attribute words, for ``prompts``.
        subjects: What the images below show, as neutral prompts.
        training: The images of the card's `training_set`.
        reference: Balanced images, for ``reference-set``.
        attributes: Attribute -> its levels, what the labels index; empty without ``labels``.
    """

    neutral_prompts: tuple[Prompt, ...] = ()
    subjects: tuple[Prompt, ...] = ()
    training: ImageSet | None = None
    reference: ImageSet | None = None
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


Deposit = Callable[[str, "NDArray[Any]"], None]
"""``deposit(name, values)``: hand something in; nothing comes back."""


def _dropped(name: str, values: NDArray[Any]) -> None:
    """No audit is kept."""


Check = Callable[[TrainingData], Mapping[str, Any]]
"""Sets with all their labels -> plain values for the record."""


def _unchecked(name: str, check: Check) -> None:
    """Nothing is checked."""


@dataclass(frozen=True)
class Preparation:
    """The surroundings of a method's preparation.

    Attributes:
        seed: The run's seed; training varies with it.
        sampling: How images will be sampled.
        images_per_prompt: Images that will be asked for, by prompt.
        cache: Folder to keep trained parts in, under keys of their own content.
        progress: ``progress(what, done, total)``; called often, cheap.
        audit: ``audit(name, values)`` hands in one number for each image of
            `TrainingData.training`, (N,), or its weights in groups, (N, G). What hidden labels say
            of them joins the record once the method is prepared; the method itself learns nothing
            from it.
        examine: ``examine(name, check)`` hands in what is to be asked of the training and the
            reference set with all their labels. It is called once the images are made, so that
            nothing which it learns can change them, and its answer joins the record.
        dtype: Number format of the backbone, which what is trained on it depends on.
    """

    seed: int
    sampling: SamplingConfig
    images_per_prompt: tuple[int, ...]
    cache: Path
    progress: Progress
    audit: Deposit = _dropped
    examine: Callable[[str, Check], None] = _unchecked
    dtype: str = "float32"


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of parameters: cheap to make, expensive to prepare.

    Attributes:
        card: What the method is.
        version: Raised whenever the same parameters give other images.
        presets: Name -> parameters that it sets.
        training_precision: Autocast of what it trains, ``auto`` if it depends on the device.
        shares_training: Whether several processes can split the steps of what it trains; else the
            first of them trains alone whatever the user asks.
    """

    card: ClassVar[MethodCard]
    version: ClassVar[int]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    training_precision: ClassVar[str]
    shares_training: ClassVar[bool]

    def configured_card(self) -> MethodCard:
        """The card of the method with these parameters; an ablation or oracle has its own."""
        ...

    def prepare(
        self, task: Task, backbone: Any, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Do whatever must be done once before images can be made.

        Args:
            task: The question.
            backbone: A `fairbench.diffusion.backbone.Backbone`, which lies above this room.
            data: What the card declares, nothing more.
            preparation: Seed, sampling, cache, progress.
        """
        ...


class MethodBase:
    """What most methods have in common; :class:`Method` says what most attributes mean.

    Attributes:
        quick: Parameters with which the method takes a second on a tiny backbone, for the contract
            test and ``check-method``.
    """

    card: ClassVar[MethodCard]
    version: ClassVar[int] = 1
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    training_precision: ClassVar[str] = "float32"
    shares_training: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Types and limits of the parameters, however the method is made."""
        check_parameters(self)

    def configured_card(self) -> MethodCard:
        """The class's own card."""
        return self.card
