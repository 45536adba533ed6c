from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fairbench.core.record import PerImage
from fairbench.core.score import Score
from fairbench.gate.baseline import Measured
from fairbench.metrics import wilson_interval


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def images(n, share, noise, *, changed=1.0, equal=False, flipped=0.0, batch=1):
    """N images; those of two calls with other noise are the same but for a share `changed`."""
    base, own = np.random.default_rng(0), np.random.default_rng([1, noise])
    old, new = base.random(n), own.random(n)
    anew = np.arange(n) < changed * n
    male = (np.where(anew, new, old) < share).astype(np.int64)
    digests = [
        digest("equal") if equal else digest(i, noise if anew[i] else "base") for i in range(n)
    ]
    judged = np.where(np.random.default_rng(5).random(n) < flipped, 1, male)
    return PerImage(
        tuple(digests),
        np.zeros(n, dtype=np.int64),
        np.arange(n),
        None,
        np.arange(n) // batch,
        np.ones(n, dtype=bool),
        {"first": {"gender": judged}},
    )


def scores_of(known, **others):
    n = len(known)
    count = int(known.labels["first"]["gender"].sum())
    low, high = wilson_interval(count, n)
    share = count / n
    gap = np.sqrt(2) * abs(share - 0.5)
    ends = sorted(np.sqrt(2) * abs(end - 0.5) for end in (low, high))
    low = 0.0 if share - 0.5 < high - share else ends[0]
    found = {
        "fairness_discrepancy": Score(
            "fairness_discrepancy",
            gap,
            min(low, gap),
            max(ends[1], gap),
            n,
            "lower",
            "wilson",
            version=3,
        )
    }
    for name, (value, half) in {"frechet_x_balanced": (4.0, 0.4), **others}.items():
        if value is None:
            found.pop(name, None)
            continue
        ends = (None, None) if half is None else (value - half, value + half)
        better = "higher" if name == "validity" else "lower"
        how = "" if half is None else "jackknife"
        version = 2 if name == "validity" else 3
        found[name] = Score(name, value, *ends, n, better, how, version=version)
    return found


@pytest.fixture
def make_run():
    """One measured run; keyword arguments are those of `images`, and scores as (value, half)."""

    def make(
        share=0.6, noise=0, n=1000, seed=0, method="vanilla", hashes=None, known=True, **more
    ):
        kept = {k: more.pop(k) for k in ("changed", "equal", "flipped", "batch") if k in more}
        made = images(n, share, noise, **kept)
        question = {"method": method, "dataset": "cartoonfaces", "task": "gender"}
        return Measured(
            question | ({"seed": seed} if seed else {}),
            digest(share, noise)[:16],
            hashes or {"judge_first": "a" * 64},
            scores_of(made, **more),
            made,
            n,
        )

    return make
