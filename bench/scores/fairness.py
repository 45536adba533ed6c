"""Shares to scores: discrepancies raw and corrected, by prompt, and of crossings of attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Score
from fairbench.metrics import (
    CorrectedDiscrepancy,
    DiscrepancyInterval,
    cluster_counts,
    clustered_share_intervals,
    corrected_discrepancy,
    design_effect,
    detect_quota,
    differential_fairness,
    entropy,
    family_intervals,
    family_noise_floors,
    goodness_of_fit,
    mean_discrepancy_interval,
    mean_noise_floor,
    mutual_information,
    penalised_discrepancy,
    prompt_discrepancies,
    representation_epsilon,
    representation_ratios,
    resampled_interval,
    shares,
    soft_design_effect,
    soft_discrepancy_interval,
    subgroup_coverage,
    subgroup_lattice,
    wilson_interval,
    worse_of_judges,
    worst_case_bounds,
    worst_distance,
)
from fairbench.metrics.jackknife import student
from fairbench.scores.crossings import GIVEN_BATCHES, WORTH_BATCHES, Reading, crossings
from fairbench.scores.plain import Better, share_score

__all__ = ["FairnessScores"]

Confusions = Mapping[str, Mapping[str, NDArray[np.int64]]]

RANKED = "fairness_discrepancy_corrected"
RAW = "fairness_discrepancy"
SMOOTHING = 0.5
NORMAL = 1.959964  # two-sided quantile at 95 %
COVERED = (1, 10)
ONE_BATCH = "each prompt's images are a single batch, so what batches do can't be seen"


class FairnessScores:
    """Everything that is said about shares of groups, in one run.

    Args:
        readings: The sample as each judge reads it, the primary judge's first.
        sensitive: Attributes whose shares are asked to be fair.
        confusions: Judge -> attribute, or attributes joined by ``"/"`` -> (K, K) counts of
            labelled images, rows are the truth.
        seed: Of every resample.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        sensitive: Sequence[str],
        confusions: Confusions,
        seed: int = 0,
    ) -> None:
        self.readings, self.first = readings, readings[0]
        self.sensitive, self.confusions = sensitive, confusions
        self.task, self.seed = self.first.task, seed
        self.ranked = tuple(self.task.attributes)
        # What floors over several seeds are computed from.
        self.floors: dict[str, dict[str, Any]] = {}
        self.details: dict[str, Any] = {}
        self.not_measured: dict[str, str] = {}
        self.empty_prompts = [
            prompt.text
            for p, prompt in enumerate(self.task.prompts)
            if not (self.first.prompts == p).any()
        ]

    def scores(self) -> list[Score]:
        """All of them; what can't be measured is left out and named in `not_measured`."""
        scores: list[Score] = []
        if self.task.per_prompt and self.empty_prompts:
            reason = f"no valid image for {', '.join(map(repr, self.empty_prompts))}"
            self.not_measured |= {RANKED: reason, RAW: reason, f"{RAW}_*": reason}
            scores += self.penalised()
        else:
            scores += self._ranked_question()
        for chosen in crossings(self.sensitive):
            scores += self._crossing(chosen)
        if len(self.sensitive) > 1:
            scores += self._intersectional()
        return scores

    def _ranked_question(self) -> list[Score]:
        """What rows are ranked by, and the same question asked in every other way."""
        by_prompt = self.task.per_prompt
        counts = _rows(self.first, self.ranked, by_prompt)
        target = self.first.target(self.ranked)
        scores = [
            *self._corrected(RANKED, self.ranked, by_prompt=by_prompt),
            self._raw(RAW, self.ranked, by_prompt=by_prompt),
            *self._family(counts, target),
            self._soft(by_prompt),
            *self.penalised(),
        ]
        if by_prompt:
            scores += self._over_prompts(counts, target)
        quota = detect_quota(counts, target, seed=self.seed)
        tests = [goodness_of_fit(row, target, seed=self.seed).p_value for row in counts]
        self.details["quota"] = {**asdict(quota), "statistic": _or_none(quota.statistic)}
        self.details["fit_p_values"] = tests
        invalid = int((~self.first.valid).sum())
        if not by_prompt:
            self.details["worst_case"] = asdict(worst_case_bounds(counts[0], invalid, target))
        return scores

    def _corrected(self, name: str, chosen: Sequence[str], *, by_prompt: bool) -> list[Score]:
        """Corrected for classifier error, of the judge that finds the generator less fair."""
        found: dict[str, CorrectedDiscrepancy] = {}
        effects: dict[str, float] = {}
        for reading in self.readings:
            table = self.confusions[reading.judge].get("/".join(chosen))
            if table is None:
                self.not_measured[name] = f"no confusion of {'/'.join(chosen)} was measured"
                return []
            effect = self._effect(reading, chosen)
            effects[reading.judge] = 1.0 if effect is None else effect
            found[reading.judge] = corrected_discrepancy(
                _rows(reading, chosen, by_prompt),
                table,
                reading.target(chosen),
                design_effect=effects[reading.judge],
                seed=self.seed,
            )
        self.details.setdefault("corrected", {})[name] = {
            judge: {
                "value": one.value,
                "low": one.low,
                "high": one.high,
                "floor": one.floor,
                "condition": one.condition,
            }
            if one.reason is None
            else {"reason": one.reason, "condition": one.condition}
            for judge, one in found.items()
        }
        one = worse_of_judges(list(found.values()))
        worse = next(judge for judge, score in found.items() if score is one)
        if one.reason is not None:
            self.not_measured[name] = f"judge {worse}: {one.reason}"
            return []
        # A fair generator's worse judge shows at least as much as each judge alone.
        floor: float | None = max(score.floor for score in found.values())
        given = " and of coupled batches" if self.first.coupled else ""
        if effect is None:
            floor, given = None, self._given_batches()
        else:
            sizes = _rows(self.first, chosen, by_prompt).sum(axis=1)
            self.floors[name] = {
                "n": [_effective(int(n), effects[worse]) for n in sizes],
                "target": self.first.target(chosen).tolist(),
                "confusion": self.confusions[worse]["/".join(chosen)].tolist(),
            }
        over = f", mean over {len(self.task.prompts)} prompts" if by_prompt else ""
        return [
            Score(
                name=name,
                value=one.value,
                low=one.low,
                high=one.high,
                n=self.first.n,
                better="lower",
                interval=f"{one.method}, with the error of the confusion{given}",
                floor=floor,
                source=f"{self._judged_by(worse)}, classifier error corrected, valid images{over}",
            )
        ]

    def _judged_by(self, worse: str) -> str:
        """Which judge a number comes from, of how many."""
        count = len(self.readings)
        if count == 1:
            return f"judge {worse}"
        return f"the worse of {'two' if count == 2 else count} judges ({worse})"

    def _effect(self, reading: Reading, chosen: Sequence[str]) -> float | None:
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

    def _raw(self, name: str, chosen: Sequence[str], *, by_prompt: bool) -> Score:
        """Of hard labels of the primary judge, as papers report it."""
        reading, target = self.first, self.first.target(chosen)
        counts = _rows(reading, chosen, by_prompt)
        effect, floor = self._effect(reading, chosen), None
        if effect is None:
            found, given = mean_discrepancy_interval(counts, target, seed=self.seed), None
        else:
            sizes = [_effective(int(n), effect) for n in counts.sum(axis=1)]
            found = _at_size(counts, target, sizes, self.seed)
            floor = mean_noise_floor(sizes, target)
            self.floors[name] = {"n": sizes, "target": target.tolist()}
            given = self._given_batches(effect)
        over = f", mean over {len(counts)} prompts" if by_prompt else ""
        source = f", hard labels, valid images{over}"
        return self._discrepancy(name, found, floor, source, given)

    def _discrepancy(
        self,
        name: str,
        found: DiscrepancyInterval,
        floor: float | None,
        source: str,
        given: str | None = None,
    ) -> Score:
        return Score(
            name=name,
            value=found.value,
            low=found.low,
            high=found.high,
            n=self.first.n,
            better="lower",
            interval=f"{found.method}{self._given_batches() if given is None else given}",
            floor=floor,
            source=f"judge {self.first.judge}{source}",
        )

    def _family(self, counts: NDArray[np.int64], target: NDArray[np.float64]) -> list[Score]:
        """The other norms, each prompt's averaged; ends of the mean are the mean of the ends."""
        effect = self._effect(self.first, self.ranked)
        each = [
            family_intervals(row, target, design_effect=effect or 1.0, seed=self.seed)
            for row in counts
        ]
        floors: dict[str, float] = {}
        if effect is None:
            self.details["no_floor"] = ONE_BATCH
        elif len(counts) == 1:
            floors = family_noise_floors(target, _effective(self.first.n, effect))
        over = f", mean over {len(counts)} prompts" if len(counts) > 1 else ""
        scores = []
        for name in each[0]:
            values = [one[name] for one in each]
            if name == RAW:
                continue
            mean = _mean_of(values)
            if not math.isfinite(mean.high):
                self.not_measured[name] = "infinite: a group that isn't wanted has images"
                continue
            source = f", hard labels, valid images{over}"
            given = self._given_batches(effect)
            scores.append(self._discrepancy(name, mean, floors.get(name), source, given))
        return scores

    def _soft(self, by_prompt: bool) -> Score:
        """Of mean probabilities, which are right only if the judge is calibrated."""
        table, target = self.first.soft(self.ranked), self.first.target(self.ranked)
        effect: float | None = 1.0
        if self.first.coupled:
            effect = soft_design_effect(table, self.first.batches, self.first.prompts)
        found = []
        for mine in self._places(self.first.prompts):
            rows = table[mine]
            # A single image shows no spread; doubled it has the same mean and no interval.
            rows = rows if len(rows) > 1 else rows.repeat(2, axis=0)
            found.append(
                soft_discrepancy_interval(
                    rows, target, design_effect=effect or 1.0, seed=self.seed
                )
            )
        floor = found[0][1] if len(found) == 1 and effect is not None else None
        over = f", mean over {len(found)} prompts" if by_prompt else ""
        mean = _mean_of([one for one, _ in found])
        return self._discrepancy(
            f"{RAW}_soft",
            mean,
            floor,
            f", mean probabilities, valid images{over}",
            self._given_batches(effect),
        )

    def _places(self, prompts: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        """Which images each ranked number rests on: those of one prompt, or all."""
        if not self.task.per_prompt:
            return [np.ones(len(prompts), dtype=bool)]
        return [prompts == p for p in range(len(self.task.prompts))]

    def penalised(self) -> list[Score]:
        """With images that are no proper ones as one more group, which is unwanted."""
        if not self.first.sample.measured.validity_checked:
            self.not_measured[f"{RAW}_penalised"] = "this data set has no validity check"
            return []
        by_prompt = self.task.per_prompt
        target = self.first.target(self.ranked)
        prompts = self.first.sample.prompt_index
        index, size = self.first.index(self.ranked), len(target)
        labels = np.where(self.first.valid, index, size)
        effect: float | None = 1.0
        if self.first.coupled:
            effects = self.first.effects(labels, size + 1, every=True)
            effect = None if effects is None else effects.overall
        found = []
        for mine in self._places(prompts):
            counts = np.bincount(index[mine & self.first.valid], minlength=size)
            invalid = int((mine & ~self.first.valid).sum())
            found.append(
                penalised_discrepancy(
                    counts, invalid, target, design_effect=effect or 1.0, seed=self.seed
                )
            )
        mean = _mean_of(found)
        over = f", mean over {len(found)} prompts" if by_prompt else ""
        score = self._discrepancy(
            f"{RAW}_penalised",
            mean,
            None,
            f", hard labels, all images{over}",
            self._given_batches(effect),
        )
        return [replace(score, n=len(prompts))]

    def _over_prompts(self, counts: NDArray[np.int64], target: NDArray[np.float64]) -> list[Score]:
        if counts.sum(axis=1).min() < 2:
            self.not_measured["prompt_dependence"] = "a prompt has a single valid image"
            return []
        effect = self._effect(self.first, self.ranked)
        given = self._given_batches(effect)
        found = prompt_discrepancies(counts, target, design_effect=effect or 1.0, seed=self.seed)
        self.details["by_prompt"] = {
            prompt.subject: {"value": value, "p_value": p_value}
            for prompt, value, p_value in zip(
                self.task.prompts, found.per_prompt, found.p_values, strict=True
            )
        }
        self.details["unbiased_mean"] = found.unbiased_mean
        subjects = [prompt.subject for prompt in self.task.prompts]
        groups = self.first.groups(self.ranked)
        self.details["by_prompt_epsilon"] = self._epsilon(counts, subjects, groups)
        worst = self.task.prompts[found.worst_prompt].subject
        dependence = found.prompt_dependence
        self.details["prompt_dependence"] = {
            "p_value": dependence.p_value,
            "cramers_v": _or_none(dependence.cramers_v),
        }
        return [
            self._discrepancy(
                f"{RAW}_worst_prompt",
                found.per_prompt_worst,
                None,
                f", hard labels, valid images, {worst}",
                given,
            ),
            self._discrepancy(
                f"{RAW}_pooled",
                found.pooled,
                found.pooled_floor,
                ", hard labels, valid images, all prompts together",
                given,
            ),
            self._of_counts(
                "prompt_dependence",
                counts,
                _information,
                "neither",
                f"judge {self.first.judge}: mutual information of prompt and group, bias "
                "corrected",
                effect,
                unit="nats",
            ),
        ]

    def _crossing(self, chosen: tuple[str, ...]) -> list[Score]:
        """The discrepancies of any sensitive attribute or crossing, all images together."""
        suffix = "_".join(chosen)
        return [
            *self._corrected(f"{RANKED}_{suffix}", chosen, by_prompt=False),
            self._raw(f"{RAW}_{suffix}", chosen, by_prompt=False),
        ]

    def _intersectional(self) -> list[Score]:
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
        effect = self._effect(reading, chosen)
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
            self._of_counts(
                "joint_excess",
                square,
                partial(_joint_excess, target=target),
                "neither",
                source,
                effect,
            ),
            self._of_counts(
                "effective_groups", square, _effective_groups, "higher", source, effect
            ),
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
                f"{second}|{first}": self._epsilon(square, levels[first], levels[second]),
                f"{first}|{second}": self._epsilon(square.T, levels[second], levels[first]),
            }
            found = mutual_information(square, seed=self.seed)
            self.details["mutual_information"] = {
                "p_value": found.p_value,
                "method": found.method,
                "cramers_v": _or_none(found.cramers_v),
            }
            scores.append(
                self._of_counts(
                    "mutual_information",
                    square,
                    _information,
                    "neither",
                    f"{source}, bias corrected",
                    effect,
                    unit="nats",
                )
            )
        return scores

    def _epsilon(
        self, counts: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str]
    ) -> dict[str, Any]:
        """Differential fairness of columns given rows, with the pairs that are furthest apart."""
        found = differential_fairness(counts, alpha=SMOOTHING, seed=self.seed)
        return {
            "epsilon": _or_none(found.epsilon),
            "low": _or_none(found.low),
            "high": _or_none(found.high),
            "ratio": found.ratio,
            "alpha": found.alpha,
            "reason": found.reason,
            "top": [
                {
                    "more": rows[pair.first],
                    "less": rows[pair.second],
                    "outcome": None if pair.outcome is None else columns[pair.outcome],
                    "log_ratio": _or_none(pair.log_ratio),
                }
                for pair in found.top
            ],
        }

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
        epsilon = representation_epsilon(counts, target, alpha=SMOOTHING, seed=self.seed)
        worst = int(found.worst_group)
        low, high = wilson_interval(int(counts[worst]), int(counts.sum()))
        effects = self.first.effects(
            self.first.index(self.sensitive)[self.first.valid], len(counts)
        )
        if effects is not None:
            low, high = (float(ends[worst]) for ends in clustered_share_intervals(counts, effects))
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
                    "log_ratio": _or_none(pair.log_ratio),
                }
                for pair in epsilon.top
            ],
        }
        scores = [
            Score(
                name="representation_worst",
                value=found.smallest,
                low=low / float(target[worst]),
                high=high / float(target[worst]),
                n=self.first.n,
                better="higher",
                interval="wilson, of the group that came out worst"
                + ("" if effects is None else f", {WORTH_BATCHES}"),
                source=f"{source}: share over target of {groups[worst]}",
            ),
            self._of_counts(
                "representation_min_over_max",
                counts,
                partial(_min_over_max, target=target),
                "higher",
                f"{source}: smallest over largest share / target",
                effect,
            ),
        ]
        interval = Score(
            name="differential_fairness",
            value=epsilon.epsilon,
            low=epsilon.low,
            high=epsilon.high,
            n=self.first.n,
            better="lower",
            interval=f"bootstrap{self._given_batches()}",
            source=f"{source}, {SMOOTHING:g} images added to each cell",
        )
        return [*scores, interval]

    def _of_counts(
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
            interval=f"bootstrap, bias corrected{self._given_batches(effect)}",
            unit=unit,
            source=source,
        )

    def _given_batches(self, effect: float | None = None) -> str:
        """What an interval says of batches; without their effect, that it leaves them out."""
        if not self.first.coupled:
            return ""
        return f", {GIVEN_BATCHES if effect is None else WORTH_BATCHES}"


def _information(counts: NDArray[np.int64]) -> float:
    """Mutual information of rows and columns less its bias at independence, nats."""
    shares = counts / counts.sum()
    rows, columns = shares.sum(axis=1, keepdims=True), shares.sum(axis=0, keepdims=True)
    held = shares > 0
    plug_in = (shares[held] * np.log((shares / (rows * columns + (~held)))[held])).sum()
    degrees = (int((rows > 0).sum()) - 1) * (int((columns > 0).sum()) - 1)
    return float(plug_in - degrees / (2 * counts.sum()))


def _effective_groups(counts: NDArray[np.int64]) -> float:
    return float(np.exp(entropy(shares(counts.ravel()))))


def _joint_excess(counts: NDArray[np.int64], target: NDArray[np.float64]) -> float:
    """Normalised joint discrepancy less the largest normalised one of a single attribute."""
    found, wanted = counts / counts.sum(), target.reshape(counts.shape)

    def normalised(p: NDArray[np.float64], t: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(p.ravel() - t.ravel())) / worst_distance(t.ravel())

    alone = [
        normalised(found.sum(axis=rest), wanted.sum(axis=rest))
        for axis in range(counts.ndim)
        for rest in [tuple(other for other in range(counts.ndim) if other != axis)]
    ]
    return normalised(found, wanted) - max(alone)


def _min_over_max(counts: NDArray[np.int64], target: NDArray[np.float64]) -> float:
    ratios = counts / counts.sum() / target
    return float(ratios.min() / ratios.max())


def _rows(reading: Reading, chosen: Sequence[str], by_prompt: bool) -> NDArray[np.int64]:
    """(P, K) counts of a crossing by prompt, or (1, K) of all prompts together."""
    counts = reading.counts_by_prompt(chosen)
    return counts if by_prompt else counts.sum(axis=0, keepdims=True)


def _effective(n: int, effect: float) -> int:
    """Independent images that say as much as n of batches do."""
    return max(1, round(n / effect))


def _at_size(
    counts: NDArray[np.int64], target: NDArray[np.float64], sizes: Sequence[int], seed: int
) -> DiscrepancyInterval:
    """The mean discrepancy of prompts, as sure as so many independent images would make it."""
    plain = mean_discrepancy_interval(counts, target, seed=seed)
    if list(sizes) == counts.sum(axis=1).tolist():
        return plain
    shrunk = np.stack([_scaled(row, n) for row, n in zip(counts, sizes, strict=True)])
    found = mean_discrepancy_interval(shrunk, target, seed=seed)
    low, high = (end - found.value + plain.value for end in (found.low, found.high))
    return DiscrepancyInterval(plain.value, max(0.0, low), high, found.method)


def _scaled(counts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Whole counts of n images in the same shares, by largest remainder."""
    exact = counts * n / counts.sum()
    whole: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: n - int(whole.sum())]] += 1
    return whole


def _mean_of(found: Sequence[DiscrepancyInterval]) -> DiscrepancyInterval:
    """Mean value and mean ends: wider than need be, since errors of prompts cancel."""
    low, high = (float(np.mean([getattr(one, end) for one in found])) for end in ("low", "high"))
    value = float(np.mean([one.value for one in found]))
    methods = {one.method for one in found}
    method = found[0].method if len(methods) == 1 else "mixed"
    return DiscrepancyInterval(value, low, high, method)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
