"""Universal guidance: a classifier's gradient on the predicted clean image; a control.

Source: baseline of Parihar et al. 2024, arXiv 2402.18206, after Bansal et al. 2023, arXiv
2302.07121.
"""

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
class UniversalGuidance(Classified):
    """Shift the predicted noise so that the clean image looks like its drawn group.

    Attributes:
        indicator: How groups are drawn.
        temperature: Of the classifier's softmax.
        scale: Of the shift.
    """

    indicator: Literal["iid", "stratified"] = field(
        default="iid", metadata={"help": "groups drawn an image (iid) or by shuffled quotas"}
    )
    temperature: float = field(
        default=8.0, metadata={"help": "of the classifier's softmax", "minimum": 1e-3}
    )
    scale: float = field(default=2.0, metadata={"help": "of the shift", "minimum": 0})

    card: ClassVar[MethodCard] = MethodCard(
        name="universal_guidance",
        title="a classifier's gradient on the predicted clean image, for a drawn group",
        arxiv="2402.18206",
        family="sampling",
        needs=frozenset({"predictions", "ddim"}),
        extra_parameters="a small classifier",
        supervision=CLASSIFIED,
        reference_images=REFERENCE_IMAGES,
        role="control",
        ranked=False,
        trains=True,
        extra_network_calls=(
            "none of the U-Net; one pass with gradient of the decoder a step, where there is one"
        ),
        deviations=(
            "The classifier is a small network trained on the reference set, not a ResNet-50; "
            "the scale was chosen with it on cartoonfaces-sd. On cartoonfaces-ddpm a larger one "
            "hits more often by that classifier, though images already suffer.",
            "Forward guidance alone, as in that baseline: no recurrence and no backward "
            "optimisation of arXiv 2302.07121.",
        ),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"classifier_steps": 2, "scale": 1.0})

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the attribute classifier, or load the one trained before."""
        from fairbench.methods.parts import universal_guidance as _universal_guidance

        return _universal_guidance.prepare(self, task, backbone, data, preparation)


METHOD = UniversalGuidance
