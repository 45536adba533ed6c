"""The backbone trained on all images, biased and reference: what showing them alone achieves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fairbench.core.method import MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.task import Task
from fairbench.methods.parts.training_parameters import FINE_TUNED, FROM_SCRATCH, ReferenceTrained

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class AllObserved(ReferenceTrained):
    """Ordinary denoising on the union: DSM(obs) of arXiv 2403.01189.

    Attributes:
        mixture: Reference images as often as there are some, or in half of every batch.
    """

    mixture: Literal["natural", "half"] = field(
        default="natural",
        metadata={"help": "share of reference images in a batch: that of the set's size, or half"},
    )

    card: ClassVar[MethodCard] = MethodCard(
        name="dsm_observed",
        title="ordinary training on biased and reference images together",
        arxiv="2403.01189",
        family="training",
        needs=frozenset({"predictions", "training"}),
        supervision=frozenset({"reference-set"}),
        reference_images=800,
        role="control",
        ranked=False,
        uses_target=False,
        trains=True,
        training_set="biased",
        deviations=(FINE_TUNED,),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"steps": 2, "batch": 4, "learning_rate": 0.05}
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "natural": MappingProxyType({"mixture": "natural"}),
            "half": MappingProxyType({"mixture": "half"}),
            "from_scratch": FROM_SCRATCH,
        }
    )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the network on both sets by its own denoising loss."""
        from fairbench.methods.parts import denoising as _denoising

        sets = [data.training, data.reference]
        shares = (0.5, 0.5) if self.mixture == "half" else None
        return _denoising.prepare(self, backbone, sets, data, preparation, shares)


METHOD = AllObserved
