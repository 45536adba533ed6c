"""Latent editing: a fixed direction on the bottleneck of a share of the images; a control.

Source: baseline of Parihar et al. 2024, arXiv 2402.18206.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fairbench.core.errors import InputError
from fairbench.core.method import MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.task import Task
from fairbench.methods.parts.guidance_parameters import (
    CLASSIFIED,
    REFERENCE_IMAGES,
    BottleneckGuided,
)

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class LatentEditing(BottleneckGuided):
    """Add a difference of group means to the bottleneck of a drawn share of the images.

    Attributes:
        indicator: How edits are drawn.
        strength: Length of the edit beside the mean length of h.
    """

    indicator: Literal["iid", "stratified"] = field(
        default="iid", metadata={"help": "edits drawn an image (iid) or by shuffled quotas"}
    )
    strength: float = field(
        default=0.8, metadata={"help": "length of the edit beside that of h", "minimum": 0}
    )

    card: ClassVar[MethodCard] = MethodCard(
        name="latent_editing",
        title="a fixed bottleneck direction added to a share of the images",
        arxiv="2402.18206",
        family="sampling",
        needs=frozenset({"predictions", "bottleneck", "ddim"}),
        extra_parameters="a direction a timestep",
        supervision=CLASSIFIED,
        reference_images=REFERENCE_IMAGES,
        role="control",
        ranked=False,
        trains=True,
        deviations=(
            "The paper's exact form isn't public: here a unit difference of group means a "
            "timestep, scaled by the mean length of h, on the fewest images with which the "
            "expected shares are the target if every edit succeeds. The length was chosen with "
            "the method's own classifier on both cartoonfaces backbones.",
        ),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"classifier_steps": 2, "trajectories": 12, "skip_first": 0}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features == "inversion":
            raise InputError(
                "latent_editing needs the backbone's own shares, which inverted reference images "
                "don't show; use --param features=trajectory"
            )
        if self.weight_decay:
            raise InputError(
                "latent_editing takes means and fits no heads; leave --param weight_decay out "
                f"(seen {self.weight_decay:g})"
            )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the classifier and find the directions, or load those found before."""
        from fairbench.methods.parts import latent_editing as _latent_editing

        return _latent_editing.prepare(self, task, backbone, data, preparation)


METHOD = LatentEditing
