"""What the joint cells of the sensitive attributes say that no single attribute does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import (
    mutual_information,
    representation_epsilon,
    representation_ratios,
    subgroup_coverage,
    subgroup_lattice,
    worst_distance,
)
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import share_score
from fairbench.scores.parts.shares import (
    SMOOTHING,
    Shares,
    entropies,
    information,
    informations,
    or_none,
)

__all__ = ["FAMILY", "effective_groups", "joint_excess"]

COVERED = (1, 10)

SEVERAL = "two or more sensitive attributes"
SPECS = (
    ScoreSpec(
        "joint_excess",
        "normalised discrepancy of the joint cells less that of the worst single attribute: above "
        "0, crossings are less fair than attributes show.",
        "neither",
        of_labels=True,
        summary=True,
        needs=SEVERAL,
        version=3,
    ),
    ScoreSpec(
        "effective_groups",
        "exp of the entropy of the joint shares. Higher is better.",
        "higher",
        margin=0.25,
        of_labels=True,
        needs=SEVERAL,
        version=3,
    ),
    ScoreSpec(
        "coverage_at_*",
        "share of joint cells with m or more images. Higher is better.",
        "higher",
        margin=0.1,
        of_labels=True,
        unit="share",
        needs=SEVERAL,
        display="coverage_at_<m>",
    ),
    ScoreSpec(
        "representation_worst",
        "smallest share over target of a joint cell. Higher is better.",
        "higher",
        margin=0.1,
        of_labels=True,
        summary=True,
        needs=f"{SEVERAL}, no target of 0",
        version=3,
    ),
    ScoreSpec(
        "representation_min_over_max",
        "smallest share over target of a joint cell over the largest. Higher is better.",
        "higher",
        margin=0.1,
        of_labels=True,
        needs=f"{SEVERAL}, no target of 0",
        version=3,
    ),
    ScoreSpec(
        "differential_fairness",
        "largest log ratio of share over target between two joint cells, smoothed. "
        "Lower is better.",
        "lower",
        margin=0.25,
        of_labels=True,
        needs=f"{SEVERAL}, no target of 0",
        version=3,
    ),
    ScoreSpec(
        "mutual_information",
        "of two sensitive attributes, nats; 0 also at a collapse.",
        "neither",
        of_labels=True,
        unit="nats",
        needs="two sensitive attributes",
        version=3,
    ),
)


class Intersections(Shares):
    """What is said about joint cells, in one run."""

    def scores(self) -> list[Score]:
        """What the joint cells of the sensitive attributes say that no single one does."""
        reading, chosen = self.first, tuple(self.sensitive)
        levels = {name: reading.levels[name] for name in chosen}
        table = np.stack([reading.labels[name][reading.valid] for name in chosen], axis=1)
        target = reading.target(chosen)
        counts = reading.counts(chosen)
        square = counts.reshape([len(values) for values in levels.values()])
        groups = reading.groups(chosen)
        lattice = subgroup_lattice(table, levels, target)
        coverage = subgroup_coverage(counts, at=COVERED)
        effect = self.effect(reading, chosen)
        source = f"judge {reading.judge}, {' × '.join(chosen)}, valid images"
        self.details["lattice"] = {
            "/".join(one.attributes): {
                "discrepancy": one.discrepancy,
                "normalised": one.normalised,
                "floor": one.floor,
            }
            for one in lattice.marginals
        }
        self.details["coverage"] = {
            **{f"at_{m}": value for m, value in coverage.coverage.items()},
            "normalised_entropy": coverage.normalised_entropy,
            "empty": [groups[k] for k in coverage.empty],
            "empty_upper_bound": coverage.empty_upper_bound,
        }
        scores = [
            self.of_counts(
                "joint_excess",
                square,
                partial(_excesses, target=target.reshape(square.shape)),
                "neither",
                source,
                effect,
                target=target,
            ),
            self.of_counts("effective_groups", square, _effective, "higher", source, effect),
            *(
                share_score(
                    f"coverage_at_{m}",
                    int((counts >= m).sum()),
                    len(counts),
                    "higher",
                    f"{source}: share of cells with {m} or more images",
                    n=reading.n,
                    interval=False,
                )
                for m in COVERED
            ),
            *self._representation(counts, target, groups, source, effect),
        ]
        if len(chosen) == 2:
            first, second = chosen
            self.details["conditional"] = {
                f"{second}|{first}": self.epsilon(square, levels[first], levels[second]),
                f"{first}|{second}": self.epsilon(square.T, levels[second], levels[first]),
            }
            found = mutual_information(square, seed=self.seed)
            self.details["mutual_information"] = {
                "p_value": found.p_value,
                "method": found.method,
                "cramers_v": or_none(found.cramers_v),
            }
            scores.append(
                self.of_counts(
                    "mutual_information",
                    square,
                    informations,
                    "neither",
                    f"{source}, bias corrected",
                    effect,
                    unit="nats",
                    value=information(square),
                )
            )
        return scores

    def _representation(
        self,
        counts: NDArray[np.int64],
        target: NDArray[np.float64],
        groups: Sequence[str],
        source: str,
        effect: float | None,
    ) -> list[Score]:
        if target.min() <= 0:
            self.not_measured["representation_worst"] = "a group with target 0 has no ratio"
            return []
        found = representation_ratios(counts, target, alpha=SMOOTHING, seed=self.seed)
        epsilon = representation_epsilon(
            counts, target, alpha=SMOOTHING, design_effect=effect or 1.0, seed=self.seed
        )
        worst = int(found.worst_group)
        self.details["representation"] = {
            "worst_group": groups[worst],
            "expected_worst_if_fair": found.expected_smallest,
            "expected_min_over_max_if_fair": found.expected_min_over_max,
            "p_value": found.p_value,
            "below_four_fifths": found.below_four_fifths,
            "smoothed_min_over_max": found.smoothed_min_over_max,
        }
        self.details["differential_fairness"] = {
            "alpha": epsilon.alpha,
            "ratio": epsilon.ratio,
            "top": [
                {
                    "more": groups[pair.first],
                    "less": groups[pair.second],
                    "log_ratio": or_none(pair.log_ratio),
                }
                for pair in epsilon.top
            ],
        }
        worst_score = self.of_counts(
            "representation_worst",
            counts,
            partial(_smallest, target=target),
            "higher",
            f"{source}: share over target of {groups[worst]}; {found.expected_smallest:.3f} "
            "expected of a fair generator",
            effect,
            target=target,
        )
        quotient = self.of_counts(
            "representation_min_over_max",
            counts,
            partial(_quotients, target=target),
            "higher",
            f"{source}: smallest over largest share / target; "
            f"{found.expected_min_over_max:.3f} expected of a fair generator",
            effect,
            target=target,
        )
        interval = Score(
            name="differential_fairness",
            value=epsilon.epsilon,
            low=epsilon.low,
            high=epsilon.high,
            n=self.first.n,
            better="lower",
            interval=f"bootstrap of the pairs that may differ most{self.given_batches(effect)}",
            source=f"{source}, {SMOOTHING:g} images added to each cell",
        )
        return [worst_score, quotient, interval]


def effective_groups(counts: NDArray[np.int64]) -> float:
    """Exp of the entropy of the shares of cells, between 1 and their number."""
    return float(_effective((counts / counts.sum())[None])[0])


def joint_excess(counts: NDArray[np.int64], target: NDArray[np.float64]) -> float:
    """Normalised joint discrepancy less the largest normalised one of a single attribute."""
    shares = (counts / counts.sum())[None]
    return float(_excesses(shares, target.reshape(counts.shape))[0])


def _effective(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(entropies(shares.reshape(len(shares), -1))))


def _excesses(shares: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """`joint_excess` of many tables of shares, (R, …cells) -> (R,)."""

    def normalised(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
        gaps = (found - wanted).reshape(len(found), -1)
        return np.asarray(np.linalg.norm(gaps, axis=1) / worst_distance(wanted.ravel()))

    alone = []
    for axis in range(target.ndim):
        rest = tuple(other for other in range(target.ndim) if other != axis)
        summed = shares.sum(axis=tuple(other + 1 for other in rest))
        alone.append(normalised(summed, target.sum(axis=rest)))
    return np.asarray(normalised(shares, target) - np.max(alone, axis=0))


def _smallest(shares: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((shares / target).min(axis=1))


def _quotients(shares: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    ratios = shares / target
    return np.asarray(ratios.min(axis=1) / ratios.max(axis=1))


def compute(evidence: Evidence) -> Found:
    """Scores of the joint cells; nothing where a single attribute is sensitive."""
    if len(evidence.sensitive) < 2:
        return Found()
    made = Intersections(evidence)
    scores = tuple(made.scores())
    return Found(scores, {}, {"fairness": made.details}, made.not_measured)


FAMILY = ScoreFamily("intersections", 20, SPECS, compute)
