"""What a record keeps so that several seeds can become one estimate: counts and judges' errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairbench.scores.parts.crossings import crossings
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.shares import Shares, rows_of

__all__ = ["estimate_facts"]

_REAL_ROWS = 2000
_SPLITS = 200
_FEWEST_ROWS = 100


def estimate_facts(shares: Shares, evidence: Evidence) -> dict[str, Any]:
    """Plain values for ``facts["estimate"]``.

    Args:
        shares: Has measured the run's shares.
        evidence: Of the run.

    Returns:
        ``per_prompt``: whether the ranked number is a mean over prompts; ``ranked``: its crossing,
        such as ``"gender/race"``; ``images``: images of each prompt, valid or not; ``judges``:
        judge, the first the one that scores come from -> crossing -> ``counts`` (P, K) of valid
        images, ``target`` (K,), ``confusion`` (K, K) or None, and ``effect``, the variance of the
        shares over that of independent images, None where it can't be seen; ``real_distance``:
        what two sets of real images as large as the run differ by in the first encoder's kernel
        distance, 95 % quantile, None without an encoder.
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
        "real_distance": _real_distance(evidence),
    }


def _real_distance(evidence: Evidence) -> float | None:
    """95 % quantile of the kernel distance of two disjoint real sets of the run's size.

    Of two samples of one distribution the unbiased distance scatters as 1 over their size, so
    halves of the real images tell it for any size.
    """
    encoder = next(iter(evidence.encoders), None)
    if encoder is None:
        return None
    generated, real = evidence.features(encoder)
    rng = np.random.default_rng(evidence.seed)
    half = min(len(real), _REAL_ROWS) // 2
    if 2 * half < _FEWEST_ROWS:
        return None
    rows = real[rng.permutation(len(real))[: 2 * half]].astype(np.float64)
    kernel = (rows @ rows.T / rows.shape[1] + 1) ** 3
    np.fill_diagonal(kernel, 0)
    # +1 for one half, -1 for the other: pairs within less pairs across.
    signs = np.ones((2 * half, _SPLITS))
    for column in range(_SPLITS):
        signs[rng.permutation(2 * half)[:half], column] = -1
    left, right = (signs > 0).astype(np.float64), (signs < 0).astype(np.float64)
    within = sum((side * (kernel @ side)).sum(axis=0) for side in (left, right))
    across = (left * (kernel @ right)).sum(axis=0)
    distances = within / (half * (half - 1)) - 2 * across / half**2
    return float(np.quantile(distances, 0.95)) * half / len(generated)
