"""The backbone trained on the reference set alone: balanced, and soon memorised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from fairbench.core.method import MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.task import Task
from fairbench.methods.parts.training_parameters import FINE_TUNED, FROM_SCRATCH, ReferenceTrained

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class ReferenceOnly(ReferenceTrained):
    """Ordinary denoising on the small reference set: DSM(ref) of arXiv 2403.01189."""

    card: ClassVar[MethodCard] = MethodCard(
        name="dsm_reference",
        title="ordinary training on the reference set alone",
        arxiv="2403.01189",
        family="training",
        needs=frozenset({"predictions", "training"}),
        supervision=frozenset({"reference-set"}),
        reference_images=800,
        role="control",
        ranked=False,
        uses_target=False,
        trains=True,
        deviations=(FINE_TUNED,),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"steps": 2, "batch": 4, "learning_rate": 0.05}
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"from_scratch": FROM_SCRATCH}
    )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the network on the reference images by its own denoising loss."""
        from fairbench.methods.parts import denoising as _denoising

        return _denoising.prepare(self, backbone, [data.reference], data, preparation)


METHOD = ReferenceOnly
