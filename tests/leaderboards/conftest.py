from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fairbench.core.record import PerImage
from fairbench.core.score import Score

SURE = [[100_000, 0], [0, 100_000]]


@pytest.fixture
def make_counted(make_record):
    """A record that holds its counts, with the scores that admission looks at."""

    def make(method, counts, seed=0, *, judges=None, validity=0.97, kernel=0.06, **changes):
        told = judges or {"primary": (counts, SURE)}
        found = {}
        for judge, (one, confusion) in told.items():
            found[judge] = {
                "gender": {
                    "counts": [list(one)],
                    "target": [0.5, 0.5],
                    "confusion": confusion,
                    "effect": 1.0,
                }
            }
        n = int(sum(counts))
        share = counts[0] / n
        value = abs(share - 0.5) * np.sqrt(2)
        half = 1.96 * np.sqrt(2 * share * (1 - share) / n)
        scores = [
            Score(name, value, max(0, value - half), value + half, n, "lower", "wilson", 0.031)
            for name in ("fairness_discrepancy_corrected", "fairness_discrepancy")
        ]
        if validity is not None:
            scores.append(
                Score(
                    "validity",
                    validity,
                    validity - 0.01,
                    validity + 0.01,
                    n,
                    "higher",
                    "wilson",
                    unit="share",
                )
            )
        if kernel is not None:
            name = "kernel_cartoonfaces_reweighted"
            low, high = 0.9 * kernel, 1.1 * kernel
            scores.append(Score(name, kernel, low, high, n, "lower", "jackknife, 20 blocks"))
        facts = {
            "estimate": {
                "per_prompt": False,
                "ranked": "gender",
                "images": [n],
                "judges": found,
                "real_distance": None,
            },
            "copies": {"images": n, "distinct": n, "evaluation": 0},
        }
        groups = {
            "gender": [
                {"group": name, "count": count, "n": n, "target": 0.5}
                for name, count in zip(("female", "male"), counts, strict=True)
            ]
        }
        facts |= changes.pop("facts", {})
        card = {"role": "control"} if method == "vanilla" else {}
        return make_record(
            method,
            seed,
            **{
                "scores": tuple(scores),
                "facts": facts,
                "groups": groups,
                "card": card,
                **changes,
            },
        )

    return make


@pytest.fixture
def per_image():
    """What is known of each image, from the group of each."""

    def make(labels, judge="primary"):
        n = len(labels)
        return PerImage(
            tuple(f"{i:064x}" for i in range(n)),
            np.zeros(n, dtype=np.int64),
            np.arange(n),
            None,
            np.arange(n),
            np.asarray(labels) >= 0,
            {judge: {"gender": np.maximum(labels, 0).astype(np.int64)}},
        )

    return make


@pytest.fixture
def edited():
    """A record with another value of one score; its interval moves along."""

    def change(record, name, value):
        scores = [
            score
            if score.name != name
            else replace(score, value=value, low=0.9 * value, high=1.1 * value)
            for score in record.scores
        ]
        return replace(record, scores=tuple(scores))

    return change
