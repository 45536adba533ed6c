"""Sample guidance: every image is pushed to a group drawn for it; the control of the batch loss.

Source: baseline of Parihar et al. 2024, arXiv 2402.18206.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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
class SampleGuidance(BottleneckGuided):
    """One gradient step a sampling step on the bottleneck of each image, for its own group.

    Attributes:
        indicator: How groups are drawn.
        temperature: Of the heads' softmax.
        scale: Of the step, in the paper's rule.
        max_rel: Longest step beside the length of h; 0: no bound.
    """

    indicator: Literal["iid", "stratified"] = field(
        default="iid", metadata={"help": "groups drawn an image (iid) or by shuffled quotas"}
    )
    temperature: float = field(
        default=8.0, metadata={"help": "of the heads' softmax", "minimum": 1e-3}
    )
    scale: float = field(default=60.0, metadata={"help": "of the step", "minimum": 0})
    max_rel: float = field(
        default=0.9, metadata={"help": "longest step beside h; 0: no bound", "minimum": 0}
    )

    card: ClassVar[MethodCard] = MethodCard(
        name="sample_guidance",
        title="each image pushed to its drawn group through the U-Net's bottleneck",
        arxiv="2402.18206",
        family="sampling",
        needs=frozenset({"predictions", "bottleneck", "ddim"}),
        extra_parameters="a linear head a timestep",
        supervision=CLASSIFIED,
        reference_images=REFERENCE_IMAGES,
        role="control",
        ranked=False,
        trains=True,
        deviations=(
            "Heads are those of distribution_guidance, learned from trajectories of the sampler "
            "in use.",
            "Scale 60 with steps at most 0.9 times as long as h, chosen with the method's own "
            "classifier on both cartoonfaces backbones; the paper's scale is 15, without a bound.",
        ),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"classifier_steps": 2, "trajectories": 12, "skip_first": 0}
    )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the attribute classifier and the heads, or load those trained before."""
        from fairbench.methods.parts import sample_guidance as _sample_guidance

        return _sample_guidance.prepare(self, task, backbone, data, preparation)


METHOD = SampleGuidance
