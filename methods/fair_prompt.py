"""An ethical phrase appended to the prompt: the control that asks a model for fairness in words.

Source: Bansal, Yin, Monajatipoor, Chang: How well can text-to-image generative models understand
ethical natural language interventions?, arXiv 2210.15230.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

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
class FairPrompt(MethodBase):
    """Ask for all groups in the same words, whatever the target is.

    Attributes:
        phrase: Appended to each prompt.
    """

    phrase: str = field(
        default="of any gender and race", metadata={"help": "appended to each prompt"}
    )

    card: ClassVar[MethodCard] = MethodCard(
        name="fair_prompt",
        title="an ethical phrase appended to the prompt",
        arxiv="2210.15230",
        family="prompting",
        needs=frozenset(),
        prompts="needed",
        supervision=frozenset({"prompts"}),
        role="control",
        ranked=False,
        uses_target=False,
        deviations=(
            "Our own words, short enough for a text encoder of 16 tokens; the paper's are of the "
            "kind of: if all individuals can be one, irrespective of their gender. Another by "
            "--param phrase=…",
            "cartoonfaces-sd's tokenizer has each word of the default phrase as one token, but of "
            "these its training captions had only the word of: the others' embeddings were never "
            "trained. A row on it says what unread words do, not what ethical ones do.",
        ),
    )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Nothing to learn; the backbone must understand prompts."""
        from fairbench.diffusion.sampling import DDIMSampler

        if not backbone.conditional:
            raise InputError(
                f"fair_prompt needs a text-to-image backbone; {backbone.name} takes no prompt"
            )
        phrase = self.phrase

        class PhraseSampler(DDIMSampler):
            def text(self, request: Request, group: int | None) -> str:
                return appended(request.prompt.text, phrase)

        sampler = PhraseSampler(backbone, preparation.sampling)
        sampler.facts = _reading(backbone, [prompt.text for prompt in task.prompts], phrase)
        return sampler


def appended(prompt: str, phrase: str) -> str:
    """The prompt and the phrase as one sentence."""
    return f"{prompt}{'' if phrase[0] in ',.;:' else ' '}{phrase}"


def _reading(backbone: Backbone, prompts: list[str], phrase: str) -> dict[str, Any]:
    """How much of the phrase the text encoder reads; empty if it doesn't read tokens.

    ``words_known`` are one token each; others are spelled. ``tokens_cut_off`` is the most that a
    prompt's length leaves no room for.
    """
    lengths = [len(backbone.tokens(appended(prompt, phrase)) or ()) for prompt in prompts]
    if not any(lengths):
        return {}
    words = phrase.split()
    known = [word for word in words if len(backbone.tokens(word) or ()) == 1]
    cut_off = max(0, max(lengths) - backbone.token_limit)
    return {"words": len(words), "words_known": len(known), "tokens_cut_off": cut_off}


METHOD = FairPrompt
