"""The category written into the prompt: the control that every prompt-level method must beat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from fairbench.core.errors import InputError
from fairbench.core.method import (
    MethodBase,
    MethodCard,
    Preparation,
    Request,
    Sampler,
    TrainingData,
)
from fairbench.core.task import Task

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class PromptAppend(MethodBase):
    """Draw a group for each image and write its words into the prompt.

    Attributes:
        indicator: How groups are drawn.
    """

    indicator: Literal["iid", "stratified", "per_prompt"] = field(
        default="iid",
        metadata={"help": "groups drawn an image (iid), by shuffled quotas, or once a prompt"},
    )

    card: ClassVar[MethodCard] = MethodCard(
        name="prompt_append",
        title="the drawn category written into the prompt",
        arxiv="",
        family="prompting",
        needs=frozenset(),
        prompts="needed",
        supervision=frozenset({"prompts"}),
        role="control",
        ranked=False,
    )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Nothing to learn; the backbone must understand prompts."""
        from fairbench.methods.parts.indicator import IndicatedSampler, Indicator

        if not backbone.conditional:
            raise InputError(
                f"prompt_append needs a text-to-image backbone; {backbone.name} takes no prompt"
            )
        indicator = Indicator.of(self.indicator, task.target, preparation)

        class PromptSampler(IndicatedSampler):
            def text(self, request: Request, group: int | None) -> str:
                return request.prompt.naming(() if group is None else task.group_phrases(group))

        return PromptSampler(backbone, preparation.sampling, indicator)


METHOD = PromptAppend
