"""Shares to scores: discrepancies raw and corrected, in several norms, and by prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import (
    CorrectedDiscrepancy,
    corrected_discrepancy,
    detect_quota,
    family_noise_floors,
    goodness_of_fit,
    mean_discrepancy_interval,
    mean_family_intervals,
    mean_noise_floor,
    mean_penalised_discrepancy,
    mean_soft_interval,
    prompt_discrepancies,
    soft_design_effect,
    worse_interval,
    worse_noise_floor,
    worse_of_judges,
    worst_case_bounds,
)
from fairbench.scores.parts.crossings import NO_CHECK, NO_VALID, crossings
from fairbench.scores.parts.estimate import estimate_facts
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.shares import (
    RANKED,
    RAW,
    Shares,
    effective_size,
    information,
    informations,
    or_none,
    rows_of,
)

__all__ = ["FAMILY"]

ONE_BATCH = "each prompt's images are a single batch, so what batches do can't be seen"
UNWANTED = "a group that isn't wanted may have images"
PENALISED = f"{RAW}_penalised"

SAME = "the same of the primary judge's hard labels"
PROMPTS = "a task that is a mean over prompts"
SPECS = (
    ScoreSpec(
        RANKED,
        "Euclidean distance of the shares of the task's groups from the target, classifier error "
        "corrected, by the judge that finds it larger; mean over prompts where the task says so. "
        "Lower is fairer; rows are ranked by it.",
        "lower",
        margin=0.02,
        of_labels=True,
        summary=True,
        main=0,
        needs="a judge whose errors were counted",
        version=4,
    ),
    ScoreSpec(
        RAW,
        f"{SAME} as they are. Lower is fairer.",
        "lower",
        margin=0.02,
        of_labels=True,
        summary=True,
        main=1,
        version=3,
    ),
    ScoreSpec(
        f"{RAW}_soft",
        "the same of the primary judge's mean probabilities. Lower is fairer.",
        "lower",
        margin=0.02,
        version=3,
    ),
    *(
        ScoreSpec(
            f"{RAW}_{norm}",
            f"{SAME}: {meaning}. Lower is fairer.",
            "lower",
            margin=0.02,
            of_labels=True,
            version=3,
        )
        for norm, meaning in (
            ("l1", "sum of the absolute differences"),
            ("tv", "total variation, half the sum of the absolute differences"),
            ("kl", "Kullback-Leibler divergence from the target, nats"),
            ("pairwise", "mean absolute difference between the gaps of two groups"),
            ("delta", "largest absolute difference over its largest possible value"),
            ("mad", "mean absolute difference from the target"),
            ("entropy_gap", "that divergence over its largest possible value"),
            ("squared", "squared Euclidean distance"),
            ("normalised", "Euclidean distance over the largest possible one"),
        )
    ),
    ScoreSpec(
        PENALISED,
        f"{SAME}, with images that aren't valid as an unwanted group. Lower is fairer.",
        "lower",
        margin=0.02,
        of_labels=True,
        needs="a validity check",
        version=3,
    ),
    ScoreSpec(
        f"{RAW}_worst_prompt",
        f"{SAME}, of the least fair prompt. Lower is fairer.",
        "lower",
        margin=0.02,
        of_labels=True,
        summary=True,
        needs=PROMPTS,
        version=3,
    ),
    ScoreSpec(
        f"{RAW}_pooled",
        f"{SAME}, of all prompts together. Lower is fairer.",
        "lower",
        margin=0.02,
        of_labels=True,
        needs=PROMPTS,
        version=3,
    ),
    ScoreSpec(
        "prompt_dependence",
        "mutual information of prompt and group, nats; 0 also at a collapse.",
        "neither",
        of_labels=True,
        unit="nats",
        needs=PROMPTS,
        version=3,
    ),
    ScoreSpec(
        f"{RANKED}_*",
        "the ranked discrepancy of any sensitive attribute and crossing, all prompts together. "
        "Lower is fairer.",
        "lower",
        margin=0.02,
        of_labels=True,
        summary=True,
        display=f"{RANKED}_<attributes>",
        version=4,
    ),
    ScoreSpec(
        f"{RAW}_*",
        f"{SAME}, of any sensitive attribute and crossing, all prompts together. Lower is fairer.",
        "lower",
        margin=0.02,
        of_labels=True,
        display=f"{RAW}_<attributes>",
        version=3,
    ),
)


class Discrepancies(Shares):
    """Distances of shares from the target, in one run."""

    def scores(self) -> list[Score]:
        """All of them; what can't be measured is left out and named in `not_measured`."""
        scores: list[Score] = []
        empty = [
            prompt.text
            for p, prompt in enumerate(self.task.prompts)
            if not (self.first.prompts == p).any()
        ]
        if self.task.per_prompt and empty:
            reason = f"{NO_VALID} for {', '.join(map(repr, empty))}"
            self.not_measured |= {RANKED: reason, RAW: reason, f"{RAW}_*": reason}
            scores += self.penalised()
        else:
            scores += self._ranked_question()
        for chosen in crossings(self.sensitive):
            scores += self._crossing(chosen)
        return scores

    def _ranked_question(self) -> list[Score]:
        """What rows are ranked by, and the same question asked in every other way."""
        by_prompt = self.task.per_prompt
        counts = rows_of(self.first, self.ranked, by_prompt)
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
        self.details["quota"] = {**asdict(quota), "statistic": or_none(quota.statistic)}
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
            effect = self.effect(reading, chosen)
            effects[reading.judge] = 1.0 if effect is None else effect
            found[reading.judge] = corrected_discrepancy(
                rows_of(reading, chosen, by_prompt),
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
            # None: singular, as of a judge that always says the same.
            else {"reason": one.reason, "condition": or_none(one.condition)}
            for judge, one in found.items()
        }
        one = worse_of_judges(list(found.values()))
        worse = next(judge for judge, score in found.items() if score is one)
        if one.reason is not None:
            self.not_measured[name] = f"judge {worse}: {one.reason}"
            return []
        low, high = worse_interval(list(found.values()))
        sizes = rows_of(self.first, chosen, by_prompt).sum(axis=1)
        floor: float | None = worse_noise_floor(
            sizes,
            [self.confusions[judge]["/".join(chosen)] for judge in found],
            self.first.target(chosen),
            design_effects=list(effects.values()),
        )
        given = " and of coupled batches" if self.first.coupled else ""
        if effect is None:
            floor, given = None, self.given_batches()
        else:
            self.floors[name] = {
                "n": [effective_size(int(n), effects[worse]) for n in sizes],
                "target": self.first.target(chosen).tolist(),
                "confusion": self.confusions[worse]["/".join(chosen)].tolist(),
            }
        over = f", mean over {len(self.task.prompts)} prompts" if by_prompt else ""
        judged, united = f"judge {worse}", ""
        if (low, high) != (one.low, one.high):
            united = ", united over judges that agree"
        if len(found) > 1:
            judged = f"the worse of {len(found)} judges ({worse})"
        if labelled := self.audited.get("/".join(chosen)):
            judged += f", errors counted on {labelled} labelled images of this run"
        return [
            Score(
                name=name,
                value=one.value,
                low=low,
                high=high,
                n=self.first.n,
                better="lower",
                interval=f"{one.method}, with the error of the confusion{united}{given}",
                floor=floor,
                source=f"{judged}, classifier error corrected, valid images{over}",
            )
        ]

    def _raw(self, name: str, chosen: Sequence[str], *, by_prompt: bool) -> Score:
        """Of hard labels of the primary judge, as papers report it."""
        reading, target = self.first, self.first.target(chosen)
        counts = rows_of(reading, chosen, by_prompt)
        effect, floor = self.effect(reading, chosen), None
        if effect is None:
            found, given = mean_discrepancy_interval(counts, target, seed=self.seed), None
        else:
            sizes = [effective_size(int(n), effect) for n in counts.sum(axis=1)]
            found = mean_discrepancy_interval(counts, target, design_effect=effect, seed=self.seed)
            floor = mean_noise_floor(sizes, target)
            self.floors[name] = {"n": sizes, "target": target.tolist()}
            given = self.given_batches(effect)
        over = f", mean over {len(counts)} prompts" if by_prompt else ""
        source = f", hard labels, valid images{over}"
        return self.discrepancy(name, found, floor, source, given)

    def _family(self, counts: NDArray[np.int64], target: NDArray[np.float64]) -> list[Score]:
        """The other norms, each prompt's averaged."""
        effect = self.effect(self.first, self.ranked)
        found = mean_family_intervals(counts, target, design_effect=effect or 1.0, seed=self.seed)
        floors: dict[str, float] = {}
        if effect is None:
            self.details["no_floor"] = ONE_BATCH
        elif len(counts) == 1:
            floors = family_noise_floors(target, effective_size(self.first.n, effect))
        over = f", mean over {len(counts)} prompts" if len(counts) > 1 else ""
        source, given = f", hard labels, valid images{over}", self.given_batches(effect)
        scores = []
        for name, one in found.items():
            if name == RAW:
                continue
            if not math.isfinite(one.value):
                self.not_measured[name] = "infinite: a group that isn't wanted has images"
                continue
            score = self.discrepancy(name, one, floors.get(name), source, given)
            if not math.isfinite(one.high):
                unbounded = f"{score.interval}, no finite upper end: {UNWANTED}"
                score = replace(score, high=None, interval=unbounded)
            scores.append(score)
        return scores

    def _soft(self, by_prompt: bool) -> Score:
        """Of mean probabilities, which are right only if the judge is calibrated."""
        table, target = self.first.soft(self.ranked), self.first.target(self.ranked)
        effect: float | None = 1.0
        if self.first.coupled:
            effect = soft_design_effect(table, self.first.batches, self.first.prompts)
        tables = [table[mine] for mine in self._places(self.first.prompts)]
        # A single image shows no spread; doubled it has the same mean and no interval.
        tables = [rows if len(rows) > 1 else rows.repeat(2, axis=0) for rows in tables]
        found, floor = mean_soft_interval(
            tables, target, design_effect=effect or 1.0, seed=self.seed
        )
        over = f", mean over {len(tables)} prompts" if by_prompt else ""
        return self.discrepancy(
            f"{RAW}_soft",
            found,
            None if effect is None else floor,
            f", mean probabilities, valid images{over}",
            self.given_batches(effect),
        )

    def _places(self, prompts: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        """Which images each ranked number rests on: those of one prompt, or all."""
        if not self.task.per_prompt:
            return [np.ones(len(prompts), dtype=bool)]
        return [prompts == p for p in range(len(self.task.prompts))]

    def penalised(self) -> list[Score]:
        """With invalid images as one more, unwanted group; needs no valid image."""
        if not self.first.checked:
            self.not_measured[PENALISED] = NO_CHECK
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
        places = self._places(prompts)
        counts = [np.bincount(index[mine & self.first.valid], minlength=size) for mine in places]
        invalid = [int((mine & ~self.first.valid).sum()) for mine in places]
        mean = mean_penalised_discrepancy(
            counts, invalid, target, design_effect=effect or 1.0, seed=self.seed
        )
        over = f", mean over {len(places)} prompts" if by_prompt else ""
        score = self.discrepancy(
            PENALISED,
            mean,
            None,
            f", hard labels, all images{over}",
            self.given_batches(effect),
        )
        return [replace(score, n=len(prompts))]

    def _over_prompts(self, counts: NDArray[np.int64], target: NDArray[np.float64]) -> list[Score]:
        if counts.sum(axis=1).min() < 2:
            self.not_measured["prompt_dependence"] = "a prompt has a single valid image"
            return []
        effect = self.effect(self.first, self.ranked)
        given = self.given_batches(effect)
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
        self.details["by_prompt_epsilon"] = self.epsilon(counts, subjects, groups)
        worst = self.task.prompts[found.worst_prompt].subject
        dependence = found.prompt_dependence
        self.details["prompt_dependence"] = {
            "p_value": dependence.p_value,
            "cramers_v": or_none(dependence.cramers_v),
        }
        return [
            self.discrepancy(
                f"{RAW}_worst_prompt",
                found.per_prompt_worst,
                None if effect is None else found.worst_floor,
                f", hard labels, valid images, {worst}",
                given,
            ),
            self.discrepancy(
                f"{RAW}_pooled",
                found.pooled,
                found.pooled_floor,
                ", hard labels, valid images, all prompts together",
                given,
            ),
            self.of_counts(
                "prompt_dependence",
                counts,
                informations,
                "neither",
                f"judge {self.first.judge}: mutual information of prompt and group, bias "
                "corrected",
                effect,
                unit="nats",
                value=information(counts),
            ),
        ]

    def _crossing(self, chosen: tuple[str, ...]) -> list[Score]:
        """The discrepancies of any sensitive attribute or crossing, all images together."""
        suffix = "_".join(chosen)
        return [
            *self._corrected(f"{RANKED}_{suffix}", chosen, by_prompt=False),
            self._raw(f"{RAW}_{suffix}", chosen, by_prompt=False),
        ]


def compute(evidence: Evidence) -> Found:
    """Every discrepancy; without a valid image, that which penalises those that aren't."""
    made = Discrepancies(evidence)
    if not evidence.first.n:
        reason = f"{NO_VALID} among {len(evidence.first.valid)}"
        scores = tuple(made.penalised())
        return Found(scores, not_measured={RANKED: reason, RAW: reason} | made.not_measured)
    scores = tuple(made.scores())
    facts = {"fair": made.floors, "fairness": made.details}
    facts["estimate"] = estimate_facts(made, evidence)
    return Found(scores, {}, facts, made.not_measured)


FAMILY = ScoreFamily("discrepancies", 10, SPECS, compute, needs_valid=False)
