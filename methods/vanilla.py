"""The backbone as it is: what every other row is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fairbench.types import MethodCard, Preparation, Sampler, Task, TrainingData

if TYPE_CHECKING:
    from fairbench.backbones import Backbone


@dataclass(frozen=True)
class Vanilla:
    """No debiasing."""

    card: ClassVar[MethodCard] = MethodCard(
        name="vanilla",
        title="the backbone as it is, no debiasing",
        arxiv="",
        family="none",
        role="control",
        ranked=False,
        uses_target=False,
    )
    version: ClassVar[int] = 1
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Nothing to learn."""
        from fairbench.sampling import DDIMSampler

        return DDIMSampler(backbone, preparation.sampling)


METHOD = Vanilla
