"""The backbone trained on balanced data: what a method that fixes the data could reach at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from fairbench.core.method import MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.task import Task
from fairbench.methods.parts.training_parameters import FineTuned

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class BalancedData(FineTuned):
    """Train on as many images as the backbone saw, balanced over all groups by their labels."""

    card: ClassVar[MethodCard] = MethodCard(
        name="balanced_data",
        title="the backbone trained on balanced data, the attainable floor",
        arxiv="",
        family="training",
        needs=frozenset({"predictions", "training"}),
        supervision=frozenset({"labels"}),
        role="oracle",
        ranked=False,
        uses_target=False,
        trains=True,
        training_set="balanced",
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"steps": 2, "batch": 4, "learning_rate": 0.05}
    )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the network on the balanced images by its own denoising loss."""
        from fairbench.methods.parts import denoising as _denoising

        return _denoising.prepare(self, backbone, [data.training], data, preparation)


METHOD = BalancedData
