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
    differential_fairness,
)
from fairbench.metrics.fairness import table_interval
from fairbench.scores.parts.crossings import GIVEN_BATCHES, WORTH_BATCHES, Reading
from fairbench.scores.parts.evidence import Evidence

__all__ = [
    "RANKED",
    "RAW",
    "SMOOTHING",
    "Shares",
    "effective_size",
    "entropies",
    "information",
    "informations",
    "or_none",
    "rows_of",
]

RAW = "fairness_discrepancy"
SMOOTHING = 0.5


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

        As `fairbench.metrics.group_design_effects` finds it: below 1 where batches are steered to
        the target, and stretched for the few batches that it rests on.
        """
        if not reading.coupled:
            return 1.0
        size, labels = len(reading.groups(chosen)), reading.index(chosen)[reading.valid]
        found = reading.effects(labels, size)
        if found is None:
            return None
        self.details.setdefault("design_effect", {})["/".join(chosen)] = found.seen
        return found.overall

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
        measure: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        better: Better,
        source: str,
        effect: float | None,
        unit: str = "",
        *,
        target: NDArray[np.float64] | None = None,
        value: float | None = None,
    ) -> Score:
        """A number that the shares of a table decide, with a calibrated interval.

        Args:
            name: Of the score.
            counts: Of each cell, one axis an attribute.
            measure: Shares of many tables, (R, …cells), to the number of each, (R,).
            better: Which direction is.
            source: Where it comes from.
            effect: Coupled images that are worth an independent one; None if it can't be seen.
            unit: Of the number.
            target: Wanted shares of the cells; even if None.
            value: The number, where it isn't `measure` of the counted shares.
        """

        def flat(samples: NDArray[np.float64]) -> NDArray[np.float64]:
            return measure(samples.reshape(-1, *counts.shape))[:, None]

        low, high = table_interval(counts / (effect or 1.0), flat, target=target, seed=self.seed)
        if value is None:
            value = float(measure((counts / counts.sum())[None])[0])
        return Score(
            name=name,
            value=value,
            low=low,
            high=high,
            n=self.first.n,
            better=better,
            interval=f"calibrated at plausible shares{self.given_batches(effect)}",
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
    degrees = (int(counts.any(axis=1).sum()) - 1) * (int(counts.any(axis=0).sum()) - 1)
    plug_in = float(informations((counts / counts.sum())[None])[0])
    return plug_in - degrees / (2 * float(counts.sum()))


def informations(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mutual information of rows and columns of many tables, (R, rows, columns) -> (R,), nats."""
    joint = entropies(shares.reshape(len(shares), -1))
    return np.maximum(entropies(shares.sum(axis=1)) + entropies(shares.sum(axis=2)) - joint, 0)


def entropies(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of many rows of shares, (R, K) -> (R,), nats."""
    return -np.asarray((shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=-1))


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
