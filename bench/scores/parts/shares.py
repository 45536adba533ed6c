"""What scores of shares have in common: counts, what batches do to them, intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import RANKED, Better, Score
from fairbench.metrics import (
    DiscrepancyInterval,
    cluster_counts,
    design_effect,
    differential_fairness,
    resampled_interval,
)
from fairbench.metrics.jackknife import student
from fairbench.scores.parts.crossings import GIVEN_BATCHES, WORTH_BATCHES, Reading
from fairbench.scores.parts.evidence import Evidence

__all__ = [
    "RANKED",
    "RAW",
    "SMOOTHING",
    "Shares",
    "effective_size",
    "information",
    "or_none",
    "rows_of",
]

RAW = "fairness_discrepancy"
SMOOTHING = 0.5
NORMAL = 1.959964  # two-sided quantile at 95 %


class Shares:
    """Scores of shares of one run, with what they leave beside them.

    Args:
        evidence: Of the run.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.readings, self.first = evidence.readings, evidence.first
        self.sensitive, self.confusions = evidence.sensitive, evidence.confusions
        self.audited = evidence.audited
        self.task, self.seed = evidence.task, evidence.seed
        self.ranked = tuple(self.task.attributes)
        # What floors over several seeds are computed from.
        self.floors: dict[str, dict[str, Any]] = {}
        self.details: dict[str, Any] = {}
        self.not_measured: dict[str, str] = {}

    def effect(self, reading: Reading, chosen: Sequence[str]) -> float | None:
        """Variance of the shares over that of independent images; None if it can't be seen.

        At least 1, and stretched for what a few batches leave unsure: batches that happen to
        balance each other are no proof that they always do.
        """
        if not reading.coupled:
            return 1.0
        size, labels = len(reading.groups(chosen)), reading.index(chosen)[reading.valid]
        effects, degrees = [], 0
        # Within prompts: what differs between them isn't a batch's doing.
        for prompt in np.unique(reading.prompts):
            mine = reading.prompts == prompt
            table = cluster_counts(labels[mine], reading.batches[mine], size)
            if len(table) > 1:
                effects.append(design_effect(table))
                degrees += len(table) - 1
        if not degrees:
            return None
        seen = float(np.mean(effects))
        self.details.setdefault("design_effect", {})["/".join(chosen)] = seen
        return max(1.0, seen) * (student(0.95, degrees) / NORMAL) ** 2

    def discrepancy(
        self,
        name: str,
        found: DiscrepancyInterval,
        floor: float | None,
        source: str,
        given: str | None = None,
    ) -> Score:
        """A distance of the primary judge's shares from the target, as a score."""
        return Score(
            name=name,
            value=found.value,
            low=found.low,
            high=found.high,
            n=self.first.n,
            better="lower",
            interval=f"{found.method}{self.given_batches() if given is None else given}",
            floor=floor,
            source=f"judge {self.first.judge}{source}",
        )

    def of_counts(
        self,
        name: str,
        counts: NDArray[np.int64],
        statistic: Callable[[NDArray[np.int64]], float],
        better: Better,
        source: str,
        effect: float | None,
        unit: str = "",
    ) -> Score:
        """A number that counts decide, with the interval of resampled ones."""
        low, high = resampled_interval(
            counts, statistic, design_effect=effect or 1.0, seed=self.seed
        )
        return Score(
            name=name,
            value=statistic(counts),
            low=low,
            high=high,
            n=self.first.n,
            better=better,
            interval=f"bootstrap, bias corrected{self.given_batches(effect)}",
            unit=unit,
            source=source,
        )

    def epsilon(
        self, counts: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str]
    ) -> dict[str, Any]:
        """Differential fairness of columns given rows, with the pairs that are furthest apart."""
        found = differential_fairness(counts, alpha=SMOOTHING, seed=self.seed)
        return {
            "epsilon": or_none(found.epsilon),
            "low": or_none(found.low),
            "high": or_none(found.high),
            "ratio": found.ratio,
            "alpha": found.alpha,
            "reason": found.reason,
            "top": [
                {
                    "more": rows[pair.first],
                    "less": rows[pair.second],
                    "outcome": None if pair.outcome is None else columns[pair.outcome],
                    "log_ratio": or_none(pair.log_ratio),
                }
                for pair in found.top
            ],
        }

    def given_batches(self, effect: float | None = None) -> str:
        """What an interval says of batches; without their effect, that it leaves them out."""
        if not self.first.coupled:
            return ""
        return f", {GIVEN_BATCHES if effect is None else WORTH_BATCHES}"


def information(counts: NDArray[np.int64]) -> float:
    """Mutual information of rows and columns less its bias at independence, nats."""
    shares = counts / counts.sum()
    rows, columns = shares.sum(axis=1, keepdims=True), shares.sum(axis=0, keepdims=True)
    held = shares > 0
    plug_in = (shares[held] * np.log((shares / (rows * columns + (~held)))[held])).sum()
    degrees = (int((rows > 0).sum()) - 1) * (int((columns > 0).sum()) - 1)
    return float(plug_in - degrees / (2 * counts.sum()))


def rows_of(reading: Reading, chosen: Sequence[str], by_prompt: bool) -> NDArray[np.int64]:
    """(P, K) counts of a crossing by prompt, or (1, K) of all prompts together."""
    counts = reading.counts_by_prompt(chosen)
    return counts if by_prompt else counts.sum(axis=0, keepdims=True)


def effective_size(n: int, effect: float) -> int:
    """Independent images that say as much as n of batches do."""
    return max(1, round(n / effect))


def or_none(value: float) -> float | None:
    """The number if a record can hold it, else None."""
    return value if math.isfinite(value) else None
