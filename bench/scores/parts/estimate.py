"""What a record keeps so that several seeds can become one estimate: counts and errors by judge."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairbench.scores.parts.crossings import crossings
from fairbench.scores.parts.shares import Shares, rows_of

__all__ = ["estimate_facts"]


def estimate_facts(shares: Shares) -> dict[str, Any]:
    """Plain values for ``facts["estimate"]``.

    Returns:
        ``per_prompt``: whether the ranked number is a mean over prompts; ``ranked``: its crossing,
        such as ``"gender/race"``; ``images``: images of each prompt, valid or not; ``judges``:
        judge, the first the one that scores come from -> crossing -> ``counts`` (P, K) of valid
        images, ``target`` (K,), ``confusion`` (K, K) or None, and ``effect``, the variance of the
        shares over that of independent images, None where it can't be seen.
    """
    prompts = len(shares.task.prompts)
    chosen = list(dict.fromkeys([shares.ranked, *crossings(shares.sensitive)]))
    seen = dict(shares.details.get("design_effect", {}))
    judges = {
        reading.judge: {
            "/".join(one): {
                "counts": rows_of(reading, one, True).tolist(),
                "target": reading.target(one).tolist(),
                "confusion": None
                if (table := shares.confusions[reading.judge].get("/".join(one))) is None
                else np.asarray(table).tolist(),
                "effect": shares.effect(reading, one),
            }
            for one in chosen
        }
        for reading in shares.readings
    }
    if seen:  # asking for effects notes them, of whichever judge was asked last
        shares.details["design_effect"] = seen
    return {
        "per_prompt": shares.task.per_prompt,
        "ranked": "/".join(shares.ranked),
        "images": np.bincount(shares.first.sample.prompt_index, minlength=prompts).tolist(),
        "judges": judges,
    }
