"""The backbone as it is: what every other row is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fairbench.core.method import MethodBase, MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.task import Task

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class Vanilla(MethodBase):
    """No debiasing."""

    card: ClassVar[MethodCard] = MethodCard(
        name="vanilla",
        title="the backbone as it is, no debiasing",
        arxiv="",
        family="none",
        needs=frozenset(),
        role="control",
        ranked=False,
        uses_target=False,
    )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Nothing to learn."""
        from fairbench.diffusion.sampling import DDIMSampler

        return DDIMSampler(backbone, preparation.sampling)


METHOD = Vanilla
