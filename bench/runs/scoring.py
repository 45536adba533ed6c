"""Images of a run to scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fairbench.core.progress import Reporter
from fairbench.instruments.measuring import Instruments
from fairbench.runs.evaluation import Evaluation, Known, evaluate_images
from fairbench.runs.generation import Generated
from fairbench.runs.plan import Plan
from fairbench.runs.supply import reference_source

__all__ = ["score_generated"]


def score_generated(
    plan: Plan,
    generated: Generated,
    instruments: Instruments,
    cache: Path,
    report: Reporter,
) -> Evaluation:
    """Measure and score the images of a run.

    Args:
        plan: The run.
        generated: Its images.
        instruments: What measures them.
        cache: Folder of cached arrays.
        report: Told about progress and about what isn't measured.
    """
    requests = plan.requests
    card = plan.method.configured_card()
    learned_from = None
    if "reference-set" in card.supervision:
        learned_from = reference_source(plan.dataset, card)
    texts = [request.prompt.text for request in requests]
    known = Known(
        prompt_index=np.array([request.prompt_index for request in requests]),
        batch_id=generated.batch_id,
        requested=generated.requested,
        texts=texts if plan.backbone.conditional else None,
        reference=learned_from,
    )
    return evaluate_images(generated.images, plan.question, instruments, known, cache, report)
