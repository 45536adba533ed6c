"""Rejection: resample until a classifier sees the drawn group; the control that costs calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fairbench.core.method import MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.task import Task
from fairbench.methods.parts.guidance_parameters import CLASSIFIED, REFERENCE_IMAGES, Classified

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class Rejection(Classified):
    """Draw a group for each image and sample until the method's own classifier sees it.

    Attributes:
        indicator: How groups are drawn.
        max_attempts: After so many the most probable image is kept.
    """

    indicator: Literal["iid", "stratified"] = field(
        default="iid", metadata={"help": "groups drawn an image (iid) or by shuffled quotas"}
    )
    max_attempts: int = field(
        default=32, metadata={"help": "images made at most for one", "minimum": 1}
    )

    card: ClassVar[MethodCard] = MethodCard(
        name="rejection",
        title="resampled until a classifier sees the drawn group",
        arxiv="",
        family="sampling",
        needs=frozenset(),
        extra_parameters="a small classifier",
        supervision=CLASSIFIED,
        reference_images=REFERENCE_IMAGES,
        role="control",
        ranked=False,
        trains=True,
        extra_network_calls=(
            "the backbone's own for every image that was rejected; those made ahead and not "
            "needed aren't counted"
        ),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"classifier_steps": 2, "max_attempts": 1}
    )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the attribute classifier, or load the one trained before."""
        from fairbench.methods.parts import rejection as _rejection

        return _rejection.prepare(self, task, backbone, data, preparation)


METHOD = Rejection
