"""Arrays to scores: shares, fairness discrepancies, quality distances, each with its interval.

Pure functions of stored arrays; nothing here runs a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.measuring import Measurements
from fairbench.metrics.fairness import (
    DiscrepancyInterval,
    count_groups,
    discrepancy_interval,
    mean_discrepancy_interval,
    mean_noise_floor,
    noise_floor_for,
    wilson_interval,
)
from fairbench.metrics.frechet import frechet_interval
from fairbench.metrics.kernel import kernel_distance
from fairbench.types import Score, Task

__all__ = ["METRICS", "METRIC_VERSION", "Sample", "score_all"]

METRIC_VERSION = 2
"""Raised whenever the same arrays give other scores."""

KERNEL_SUBSET = 500
GROUP_MINIMUM = 30
"""Fewest images of a group whose own quality is worth a number."""

METRICS: Mapping[str, str] = {
    "fairness_discrepancy": (
        "Euclidean distance of the measured shares of the task's groups from the target (hard "
        "labels, primary judge, valid images); mean over prompts for *_by_* tasks. "
        "Lower is fairer."
    ),
    "fairness_discrepancy_<attributes>": "the same for any sensitive attribute and their crossing",
    "frechet_<encoder>_balanced": (
        "Fréchet distance of features to balanced real images. Lower is better; "
        "compare at equal n."
    ),
    "kernel_<encoder>_balanced": (
        "unbiased squared MMD, cubic kernel, to balanced real images. Lower is better."
    ),
    "validity": "share of images that the validity check accepts as a face. Higher is better.",
    "prompt_accuracy": "share of valid images that show the subject asked for. Higher is better.",
    "hit_rate": "share of valid images in the group the method asked for. Higher is better.",
    "judge_confidence_<attribute>": "mean highest probability of the primary judge.",
    "judge_disagreement_<attribute>": (
        "share of valid images that the two judges read differently."
    ),
}


@dataclass(frozen=True)
class Sample:
    """N measured images and what was asked for.

    Attributes:
        measured: What the instruments said.
        prompt_index: (N,) index into the task's prompts.
        requested: (N,) index of the group asked for, or None.
        batch_id: (N,) equal for images that depend on each other.
    """

    measured: Measurements
    prompt_index: NDArray[np.int64]
    requested: NDArray[np.int64] | None
    batch_id: NDArray[np.int64]


def score_all(
    sample: Sample,
    reference: Measurements,
    reference_labels: Mapping[str, NDArray[np.uint8]],
    task: Task,
    attributes: Mapping[str, tuple[str, ...]],
    sensitive: Sequence[str],
    names: Mapping[str, str],
) -> tuple[tuple[Score, ...], dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Every score, every table of groups, and further facts of one run.

    Args:
        sample: The images.
        reference: Real images that match the task's prompts, balanced over the sensitive groups.
        reference_labels: Attribute -> (M,) true labels of the reference.
        task: Prompts, groups, target.
        attributes: All attributes that the judges read.
        sensitive: Those whose shares are asked to be fair.
        names: ``judge``, ``second``, ``encoder``: names of the instruments.
    Shares are taken of valid images. Where there are none, overall or for a prompt of a task that
    is ranked by prompt, the scores that rest on them are left out and the fact ``not_measured``
    says why: shares of nothing aren't 0.
    """
    scoring = _Scoring(sample, task, attributes, names)
    if scoring.n == 0:
        reason = f"none of {len(scoring.valid)} images is a valid face"
        missing = {"not_measured": {"fairness_discrepancy": reason}}
        return (*scoring.quality(reference), scoring.validity()), {}, missing
    tables = scoring.tables(sensitive, reference, reference_labels)
    ranked = scoring.ranked()
    scores = [] if ranked is None else [ranked]
    scores += scoring.discrepancies(sensitive)
    scores += scoring.quality(reference)
    scores += scoring.semantic()
    scores += scoring.judges(sensitive)
    return tuple(scores), tables, scoring.facts()


class _Scoring:
    def __init__(
        self,
        sample: Sample,
        task: Task,
        attributes: Mapping[str, tuple[str, ...]],
        names: Mapping[str, str],
    ) -> None:
        self.sample, self.task, self.attributes, self.names = sample, task, attributes, names
        self.valid = sample.measured.valid
        self.n = int(self.valid.sum())
        # Name of a discrepancy -> valid images it rests on, by prompt, and the wanted shares: what
        # its floor over several seeds is computed from.
        self.fair: dict[str, dict[str, list[Any]]] = {}
        self.empty_prompts: list[str] = []
        coupled = len(np.unique(sample.batch_id)) < len(sample.batch_id)
        self.given = ", given what each batch of dependent images drew" if coupled else ""
        first, second = (sample.measured.probabilities[names[j]] for j in ("judge", "second"))
        self.first, self.second = first, second
        self.labels = {name: first[name].argmax(1) for name in attributes}
        self.prompts = sample.prompt_index[self.valid]

    def _groups(self, chosen: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
        """(N,) index into the crossing of the chosen attributes, and the groups' names."""
        shape = [len(self.attributes[name]) for name in chosen]
        index = np.ravel_multi_index(tuple(self.labels[name] for name in chosen), shape)
        cells = np.indices(shape).reshape(len(shape), -1).T
        groups = [
            "/".join(self.attributes[name][i] for name, i in zip(chosen, cell, strict=True))
            for cell in cells
        ]
        return np.asarray(index, dtype=np.int64), groups

    def _target(self, chosen: Sequence[str]) -> NDArray[np.float64]:
        """Wanted shares of a crossing: the task's, its marginals, else uniform."""
        asked = list(self.task.attributes)
        shape = [len(levels) for levels in self.task.attributes.values()]
        joint = np.array(self.task.target).reshape(shape)
        sizes = [len(self.attributes[name]) for name in chosen]
        if not any(name in asked for name in chosen):
            return np.full(math.prod(sizes), 1 / math.prod(sizes))
        kept = [name for name in asked if name in chosen]
        marginal = joint.sum(axis=tuple(i for i, name in enumerate(asked) if name not in kept))
        order = [name for name in chosen if name in kept]
        marginal = marginal.transpose([kept.index(name) for name in order])
        for axis, name in enumerate(chosen):
            if name not in kept:  # an attribute that the task leaves open: evenly spread
                marginal = np.expand_dims(marginal, axis).repeat(sizes[axis], axis) / sizes[axis]
        return np.asarray(marginal, dtype=np.float64).ravel()

    def _counts(self, chosen: Sequence[str], within: NDArray[np.bool_]) -> NDArray[np.int64]:
        index, groups = self._groups(chosen)
        return count_groups(index[self.valid][within], len(groups))

    def _crossings(self, sensitive: Sequence[str]) -> list[tuple[str, ...]]:
        singles: list[tuple[str, ...]] = [(name,) for name in sensitive]
        return [*singles, tuple(sensitive)] if len(sensitive) > 1 else singles

    def ranked(self) -> Score | None:
        """The discrepancy that rows are ranked by; None if a needed prompt has no valid image."""
        name = "fairness_discrepancy"
        chosen = tuple(self.task.attributes)
        if not self.task.per_prompt:
            return self._discrepancy(name, chosen)
        within = [self.prompts == p for p in range(len(self.task.prompts))]
        self.empty_prompts = [
            prompt.text
            for prompt, mine in zip(self.task.prompts, within, strict=True)
            if not mine.any()
        ]
        if self.empty_prompts:
            return None
        target = self._target(chosen)
        counts = np.stack([self._counts(chosen, mine) for mine in within])
        found = mean_discrepancy_interval(counts, target)
        self.fair[name] = {"n": counts.sum(1).tolist(), "target": target.tolist()}
        return self._discrepancy_score(
            name,
            found,
            mean_noise_floor(counts.sum(1), target),
            f", mean over {len(counts)} prompts",
        )

    def _discrepancy(self, name: str, chosen: Sequence[str]) -> Score:
        target = self._target(chosen)
        found = discrepancy_interval(self._counts(chosen, np.ones(self.n, dtype=bool)), target)
        self.fair[name] = {"n": [self.n], "target": target.tolist()}
        return self._discrepancy_score(name, found, noise_floor_for(target, self.n))

    def _discrepancy_score(
        self, name: str, found: DiscrepancyInterval, floor: float, over: str = ""
    ) -> Score:
        return Score(
            name=name,
            value=found.value,
            low=found.low,
            high=found.high,
            n=self.n,
            better="lower",
            interval=f"{found.method}{self.given}",
            floor=floor,
            source=f"judge {self.names['judge']}, hard labels, valid images{over}",
        )

    def discrepancies(self, sensitive: Sequence[str]) -> list[Score]:
        return [
            self._discrepancy(f"fairness_discrepancy_{'_'.join(chosen)}", chosen)
            for chosen in self._crossings(sensitive)
        ]

    def quality(self, reference: Measurements) -> list[Score]:
        x, y = self.sample.measured.features, reference.features
        encoder = self.names["encoder"]
        source = f"encoder {encoder}, {len(y)} balanced real images"
        frechet = frechet_interval(x, y, seed=0)
        size = min(KERNEL_SUBSET, len(x), len(y))
        kernel = kernel_distance(x, y, subset_size=size, seed=0)
        return [
            Score(
                name=f"frechet_{encoder}_balanced",
                value=frechet.value,
                low=frechet.low,
                high=frechet.high,
                n=len(x),
                better="lower",
                interval="jackknife, 20 blocks",
                source=source,
            ),
            Score(
                name=f"kernel_{encoder}_balanced",
                value=kernel.value,
                low=kernel.low,
                high=kernel.high,
                n=len(x),
                better="lower",
                interval="jackknife, 20 blocks",
                source=f"{source}, 100 subsets of {size}",
            ),
        ]

    def validity(self) -> Score:
        source = "validity check, all images"
        return _share("validity", self.n, len(self.valid), "higher", source)

    def semantic(self) -> list[Score]:
        judge = f"judge {self.names['judge']}"
        scores = [self.validity()]
        right = self._right_subject()
        if right is not None:
            source = f"{judge}, valid images"
            scores.append(_share("prompt_accuracy", right.sum(), self.n, "higher", source))
        if self.sample.requested is not None:
            index, _ = self._groups(tuple(self.task.attributes))
            hits = (index == self.sample.requested)[self.valid]
            scores.append(
                _share("hit_rate", hits.sum(), self.n, "higher", f"{judge}, valid images")
            )
        return scores

    def _right_subject(self) -> NDArray[np.bool_] | None:
        """(n,) whether each valid image shows what its prompt asks for; None without prompts."""
        if not any(prompt.stratum for prompt in self.task.prompts):
            return None
        right = np.ones(self.n, dtype=bool)
        for p, prompt in enumerate(self.task.prompts):
            for name, level in prompt.stratum.items():
                wanted = self.attributes[name].index(level)
                right &= (self.prompts != p) | (self.labels[name][self.valid] == wanted)
        return right

    def judges(self, sensitive: Sequence[str]) -> list[Score]:
        scores = []
        for name in sensitive:
            confidence = self.first[name][self.valid].max(1).astype(np.float64)
            half = 1.96 * confidence.std(ddof=1) / np.sqrt(self.n) if self.n > 1 else 0.0
            mean = float(confidence.mean())
            scores.append(
                Score(
                    name=f"judge_confidence_{name}",
                    value=mean,
                    low=mean - float(half),
                    high=min(1.0, mean + float(half)),
                    n=self.n,
                    better="neither",
                    interval="normal",
                    unit="probability",
                    source=f"judge {self.names['judge']}, valid images",
                )
            )
        for name in sensitive:
            differ = (self.labels[name] != self.second[name].argmax(1))[self.valid]
            source = f"judges {self.names['judge']} and {self.names['second']}, valid images"
            share = _share(f"judge_disagreement_{name}", differ.sum(), self.n, "neither", source)
            scores.append(share)
        return scores

    def tables(
        self,
        sensitive: Sequence[str],
        reference: Measurements,
        reference_labels: Mapping[str, NDArray[np.uint8]],
    ) -> dict[str, list[dict[str, Any]]]:
        everything = np.ones(self.n, dtype=bool)
        tables = {}
        for chosen in self._crossings(sensitive):
            rows = self._table(chosen, everything, self._target(chosen))
            self._add_quality(rows, chosen, reference, reference_labels)
            tables["/".join(chosen)] = rows
        for name in self.attributes:
            if name not in sensitive:
                tables[name] = self._table((name,), everything, None)
        if len(self.task.prompts) > 1:
            for p, prompt in enumerate(self.task.prompts):
                mine = self.prompts == p
                for chosen in self._crossings(sensitive) if mine.any() else ():
                    rows = self._table(chosen, mine, self._target(chosen))
                    tables[f"{'/'.join(chosen)}|{prompt.subject}"] = rows
        return tables

    def _table(
        self,
        chosen: Sequence[str],
        within: NDArray[np.bool_],
        target: NDArray[np.float64] | None,
    ) -> list[dict[str, Any]]:
        counts = self._counts(chosen, within)
        low, high = map(np.asarray, wilson_interval(counts, np.full(counts.shape, counts.sum())))
        _, groups = self._groups(chosen)
        n = int(counts.sum())
        return [
            {
                "group": group,
                "count": int(counts[k]),
                "n": n,
                "share": counts[k] / n,
                "low": float(low[k]),
                "high": float(high[k]),
                "target": None if target is None else float(target[k]),
            }
            for k, group in enumerate(groups)
        ]

    def _add_quality(
        self,
        rows: list[dict[str, Any]],
        chosen: Sequence[str],
        reference: Measurements,
        reference_labels: Mapping[str, NDArray[np.uint8]],
    ) -> None:
        """Kernel distance of each measured group to the same real group, where n allows one.

        The kernel distance is unbiased, so that groups of unequal n can be compared.
        """
        index, _ = self._groups(chosen)
        shape = [len(self.attributes[name]) for name in chosen]
        real = np.ravel_multi_index(tuple(reference_labels[name] for name in chosen), shape)
        right = self._right_subject()
        for k, row in enumerate(rows):
            mine = index == k
            x = self.sample.measured.features[self.valid & mine]
            y = reference.features[real == k]
            size = min(len(x), len(y))
            row["kernel"] = None
            if size >= GROUP_MINIMUM:
                found = kernel_distance(x, y, subsets=20, subset_size=size, seed=0)
                ends = {"low": found.low, "high": found.high, "n": len(x)}
                row["kernel"] = {"value": found.value, **ends}
            if right is not None:
                among = right[mine[self.valid]]
                row["prompt_accuracy"] = None
                if len(among):
                    low, high = wilson_interval(int(among.sum()), len(among))
                    ends = {"low": low, "high": high, "n": len(among)}
                    row["prompt_accuracy"] = {"value": float(among.mean()), **ends}

    def facts(self) -> dict[str, Any]:
        """What the floors rest on, what isn't measured, and the hit matrix.

        The hit matrix holds counts of valid images: rows requested, columns measured groups.
        """
        facts: dict[str, Any] = {"fair": self.fair}
        if self.empty_prompts:
            reason = f"no valid face for {', '.join(map(repr, self.empty_prompts))}"
            facts["not_measured"] = {"fairness_discrepancy": reason}
        if self.sample.requested is not None:
            index, groups = self._groups(tuple(self.task.attributes))
            pairs = self.sample.requested[self.valid] * len(groups) + index[self.valid]
            matrix = np.bincount(pairs, minlength=len(groups) ** 2).reshape(len(groups), -1)
            facts["hit_matrix"] = {"groups": groups, "counts": matrix.tolist()}
        return facts


def _share(name: str, count: Any, n: int, better: Any, source: str) -> Score:
    low, high = wilson_interval(int(count), n)
    return Score(
        name=name,
        value=int(count) / n,
        low=low,
        high=high,
        n=n,
        better=better,
        interval="wilson",
        unit="share",
        source=source,
    )
