"""How often each interval that is printed of one run holds the truth, by simulation.

    python tests/simulation/coverage.py [NAME …] [--trials N] [--seconds S] [--only TEXT]
                                        [--setting second] [--markdown]

One row a number and situation: K groups or D features; shares or distributions at, near and far
from the target; images independent, or coupled within batches. The bars: 93 % of the truths held,
and a perfectly fair generator excluded in at most 6 %.
Rows that are *wide* hold more than 99.5 % in 100 trials or more: their interval ends at a bound of
the range, or allows for whichever truth is plausible. No constant of an interval was chosen by the
rows of the second setting.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairbench import metrics
from fairbench.core.errors import ContractError
from fairbench.core.measurements import Measurements
from fairbench.core.score import Score
from fairbench.core.task import Prompt, Task
from fairbench.metrics.diversity import _copies_interval
from fairbench.metrics.fairness import table_interval
from fairbench.scores import intersections, neighbours, parity
from fairbench.scores.parts import plain
from fairbench.scores.parts.auditing import audited_confusions
from fairbench.scores.parts.crossings import Reading, Sample
from fairbench.scores.parts.diversity import diversity_score
from fairbench.scores.parts.evidence import GROUP_N
from fairbench.scores.parts.shares import informations

sys.path.insert(0, str(Path(__file__).parent))
import table

Array = NDArray[np.float64]
Ends = tuple[float, float]


@dataclass(frozen=True)
class Setting:
    """What the rows have in common.

    Attributes:
        n: Images.
        batch: Images of a batch, where there are any.
        correlation: Of two images of a batch.
        right: Share of the images that a judge reads right.
        labelled: Images of each group behind a confusion.
        shares: K -> place -> shares.
    """

    n: int
    batch: int
    correlation: float
    right: float
    labelled: int
    shares: Mapping[int, Mapping[str, tuple[float, ...]]]


FAIR_BAR, BAR = 0.06, 0.93
SETTINGS = {
    "first": Setting(
        400,
        32,
        0.1,
        0.9,
        400,
        {
            2: {"at": (0.5, 0.5), "near": (0.53, 0.47), "far": (0.75, 0.25), "edge": (0.98, 0.02)},
            4: {
                "at": (0.25,) * 4,
                "near": (0.28, 0.26, 0.24, 0.22),
                "far": (0.55, 0.25, 0.1, 0.1),
                "edge": (0.94, 0.02, 0.02, 0.02),
            },
            8: {
                "at": (0.125,) * 8,
                "near": (0.15, 0.14, 0.13, 0.125, 0.125, 0.12, 0.11, 0.1),
                "far": (0.3, *(0.1,) * 7),
                "edge": (0.93, *(0.01,) * 7),
            },
        },
    ),
    "second": Setting(
        1000,
        50,
        0.15,
        0.85,
        250,
        {
            2: {
                "at": (0.5, 0.5),
                "near": (0.56, 0.44),
                "far": (0.85, 0.15),
                "edge": (0.965, 0.035),
            },
            4: {
                "at": (0.25,) * 4,
                "near": (0.3, 0.25, 0.25, 0.2),
                "far": (0.4, 0.4, 0.1, 0.1),
                "edge": (0.97, 0.01, 0.01, 0.01),
            },
            8: {
                "at": (0.125,) * 8,
                "near": (0.16, 0.14, 0.12, 0.12, 0.12, 0.12, 0.12, 0.1),
                "far": (0.2, 0.2, 0.2, 0.2, *(0.05,) * 4),
                "edge": (0.79, *(0.03,) * 7),
            },
        },
    ),
}


@dataclass(frozen=True)
class Situation:
    """Numbers that are taken of the same samples.

    Attributes:
        where: Such as ``"K = 4 near"``.
        truths: Number -> what its interval should hold.
        trial: Generator of a trial -> number -> ends; None where it refuses the sample.
        fair: Whether a lower end above the truth calls a fair generator unfair.
    """

    where: str
    truths: Mapping[str, float]
    trial: Callable[[np.random.Generator], Mapping[str, Ends | None]]
    fair: bool = False


@dataclass(frozen=True)
class Found:
    """What became of one number in one situation.

    Attributes:
        name, where, truth, fair: As of `Situation`.
        trials: Samples that the number took.
        held: Share of them whose interval holds the truth.
        above: Share whose lower end exceeds it.
        width: Mean width; infinite where there is no upper end.
    """

    name: str
    where: str
    truth: float
    fair: bool
    trials: int
    held: float
    above: float
    width: float

    @property
    def below(self) -> bool:
        """Whether it misses its bar by more than three standard errors of the simulation."""
        slack = 3 * np.sqrt(BAR * (1 - BAR) / max(1, self.trials))
        return bool(self.held < BAR - slack or (self.fair and self.above > FAIR_BAR + slack))


Case = Callable[[Setting], Iterator[Situation]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Add what a function yields to the table, under its name."""
    CASES[function.__name__] = function
    return function


def ends(found: object) -> Ends:
    """Of anything with `low` and `high`."""
    high = getattr(found, "high")  # noqa: B009
    return float(getattr(found, "low")), np.inf if high is None else float(high)  # noqa: B009


def draw(
    rng: np.random.Generator, shares: Array, how: str, setting: Setting, n: int | None = None
) -> tuple[Array, Array]:
    """Group and batch of each image.

    ``corr``: images of a batch agree, with the setting's correlation; ``steered``: batches hold
    their shares but for one image in sixteen or so.
    """
    n, size = setting.n if n is None else n, setting.batch
    if how == "independent":
        return rng.choice(len(shares), n, p=shares), np.arange(n)
    batches = np.arange(n) // size
    count = int(batches[-1]) + 1
    if how == "corr":
        spread = 1 / setting.correlation - 1
        each = rng.dirichlet(shares * spread + 1e-9, size=count)[batches]
        labels = (rng.random(n)[:, None] > each.cumsum(axis=1)[:, :-1]).sum(axis=1)
        return labels, batches
    sizes = np.bincount(batches)
    start = (rng.random(count)[batches] + np.arange(n) % size) / sizes[batches]  # unbiased
    labels = np.searchsorted(np.cumsum(shares)[:-1], start, side="right")
    loose = rng.random(n) < 1 / 16
    labels[loose] = rng.choice(len(shares), int(loose.sum()), p=shares)
    return labels, batches


def effect_of(labels: Array, batches: Array, num_groups: int) -> float:
    """As scores find it."""
    if batches[-1] == len(batches) - 1:
        return 1.0
    found = metrics.group_design_effects(labels, batches, num_groups)
    assert found is not None
    return found.overall


def places(setting: Setting, *hows: str) -> Iterator[tuple[str, Array, Array, str]]:
    """Name, shares and target for every K and place, in each of the ways images are drawn."""
    for how in hows:
        for num_groups, shares in setting.shares.items():
            for place, row in shares.items():
                target = np.full(num_groups, 1 / num_groups)
                yield f"K = {num_groups} {place}, {how}", np.array(row), target, how


@case
def discrepancy(setting: Setting) -> Iterator[Situation]:
    """The raw discrepancy of hard labels."""
    for where, shares, target, how in places(setting, "independent", "corr", "steered"):

        def trial(
            rng: np.random.Generator,
            shares: Array = shares,
            target: Array = target,
            how: str = how,
        ) -> Mapping[str, Ends]:
            labels, batches = draw(rng, shares, how, setting)
            counts = np.bincount(labels, minlength=len(shares))
            effect = effect_of(labels, batches, len(shares))
            found = metrics.discrepancy_interval(counts, target, design_effect=effect)
            return {"discrepancy": ends(found)}

        truth = metrics.discrepancy_of_shares(shares, target)
        yield Situation(where, {"discrepancy": truth}, trial, " at" in where)


@case
def family(setting: Setting) -> Iterator[Situation]:
    """Every other norm of it, at one prompt and as a mean over five."""
    for prompts in (1, 5):
        for where, shares, target, _ in places(setting, "independent"):
            truths = metrics.discrepancy_family(shares, target).columns()
            short = {name: name.removeprefix("fairness_discrepancy_") for name in truths}

            def trial(
                rng: np.random.Generator,
                shares: Array = shares,
                target: Array = target,
                prompts: int = prompts,
                short: Mapping[str, str] = short,
            ) -> Mapping[str, Ends]:
                counts = rng.multinomial(setting.n // 4, shares, size=prompts)
                found = metrics.mean_family_intervals(counts, target)
                return {name: ends(found[column]) for column, name in short.items()}

            yield Situation(
                f"{where}, {prompts} prompts",
                {name: truths[column] for column, name in short.items()},
                trial,
                " at" in where,
            )


@case
def means(setting: Setting) -> Iterator[Situation]:
    """Means over one, five and twenty prompts: of hard labels, probabilities, and penalised."""
    for prompts in (1, 5, 20):
        for where, shares, target, _ in places(setting, "independent"):
            size = len(target)
            penalty = np.append(shares * 0.97 - target, 0.03)

            def trial(
                rng: np.random.Generator,
                shares: Array = shares,
                target: Array = target,
                prompts: int = prompts,
                size: int = size,
            ) -> Mapping[str, Ends]:
                n = setting.n // 4
                counts = rng.multinomial(n, shares, size=prompts)
                tables = list(rng.dirichlet(shares * size, size=(prompts, n)))
                invalid = rng.multinomial(n, np.append(shares * 0.97, 0.03), size=prompts)
                return {
                    "mean": ends(metrics.mean_discrepancy_interval(counts, target)),
                    "soft": ends(metrics.mean_soft_interval(tables, target)[0]),
                    "penalised": ends(
                        metrics.mean_penalised_discrepancy(invalid[:, :-1], invalid[:, -1], target)
                    ),
                }

            truth = metrics.discrepancy_of_shares(shares, target)
            penalised = float(np.linalg.norm(penalty))
            truths = {"mean": truth, "soft": truth, "penalised": penalised}
            yield Situation(f"{where}, {prompts} prompts", truths, trial, " at" in where)


@case
def prompts(setting: Setting) -> Iterator[Situation]:
    """The largest discrepancy of five prompts, and how far prompt and group depend."""
    for where, shares, target, _ in places(setting, "independent"):
        mixed = np.stack([target, target, target, (target + shares) / 2, shares])

        def trial(
            rng: np.random.Generator, mixed: Array = mixed, target: Array = target
        ) -> Mapping[str, Ends]:
            counts = np.stack([rng.multinomial(setting.n // 4, row) for row in mixed])

            def flat(samples: Array) -> Array:
                return informations(samples.reshape(-1, *counts.shape))[:, None]

            found = metrics.prompt_discrepancies(counts, target)
            return {
                "worst_prompt": ends(found.per_prompt_worst),
                "prompt_dependence": table_interval(counts.astype(float), flat, draws=500),
            }

        truths = {
            "worst_prompt": max(metrics.discrepancy_of_shares(row, target) for row in mixed),
            "prompt_dependence": float(informations(mixed[None] / len(mixed))[0]),
        }
        yield Situation(where, truths, trial, " at" in where)


def read(labels: Array, confusion: Array, rng: np.random.Generator) -> Array:
    """What a judge says."""
    bounds = confusion.cumsum(axis=1)[labels, :-1]
    return np.asarray((rng.random(len(labels))[:, None] > bounds).sum(axis=1))


@case
def corrected(setting: Setting) -> Iterator[Situation]:
    """The ranked number, of one judge and of the worse of two; the shares behind it."""
    for where, shares, target, how in places(setting, "independent", "corr", "steered"):
        size = len(shares)
        confusion = np.full((size, size), (1 - setting.right) / (size - 1))
        np.fill_diagonal(confusion, setting.right)

        def trial(
            rng: np.random.Generator,
            shares: Array = shares,
            target: Array = target,
            how: str = how,
            confusion: Array = confusion,
        ) -> Mapping[str, Ends]:
            labels, batches = draw(rng, shares, how, setting)
            judges = []
            for _ in range(2):
                seen = read(labels, confusion, rng)
                table = np.stack([rng.multinomial(setting.labelled, row) for row in confusion])
                effect = effect_of(seen, batches, len(shares))
                counts = np.bincount(seen, minlength=len(shares))
                judges.append(
                    metrics.corrected_discrepancy(counts, table, target, design_effect=effect)
                )
            one = metrics.correct_shares(counts, table, design_effect=effect)
            return {
                "corrected, 1 judge": ends(judges[0]),
                "corrected, 2 judges": metrics.worse_interval(judges),
                "corrected share": (float(one.low[0]), float(one.high[0])),
            }

        truth = metrics.discrepancy_of_shares(shares, target)
        truths = {
            "corrected, 1 judge": truth,
            "corrected, 2 judges": truth,
            "corrected share": float(shares[0]),
        }
        yield Situation(where, truths, trial, " at" in where)


@case
def audited(setting: Setting) -> Iterator[Situation]:
    """The ranked number where people labelled 300 of the very images that the judge misreads.

    On real images the judge is right about nearly all; on these it takes the first group for the
    second as often as not to, so that only the labels can tell.
    """
    for where, shares, target, how in places(setting, "independent", "corr"):
        size = len(shares)
        if shares.min() < 0.15:
            continue  # too few labels of a group to be counted
        confusion = np.full((size, size), (1 - setting.right) / (size - 1))
        np.fill_diagonal(confusion, setting.right)
        confusion[0] = np.eye(size)[0] * 0.6 + np.eye(size)[1] * 0.4
        levels = {"x": tuple(map(str, range(size)))}
        task = Task("x", levels, (Prompt("x"),), tuple(target.tolist()))
        elsewhere = {"judge": {"x": np.diag([400] * size)}}

        def trial(
            rng: np.random.Generator,
            shares: Array = shares,
            target: Array = target,
            how: str = how,
            confusion: Array = confusion,
            task: Task = task,
            elsewhere: Mapping[str, Mapping[str, NDArray[np.int64]]] = elsewhere,
        ) -> Mapping[str, Ends | None]:
            size = len(shares)
            labels, batches = draw(rng, shares, how, setting)
            seen = read(labels, confusion, rng)
            n = len(labels)
            said = np.eye(size, dtype=np.float32)[seen]
            measured = Measurements({}, {"judge": {"x": said}}, np.ones(n, dtype=bool))
            sample = Sample(measured, np.zeros(n, np.int64), None, batches)
            reading = Reading(sample, "judge", task.attributes, task)
            given = np.full(n, -1, dtype=np.int64)
            chosen = rng.permutation(n)[:300]
            given[chosen] = labels[chosen]
            tables, counted = audited_confusions([reading], {"x": given}, elsewhere)
            if not counted:
                return {"corrected, audited": None}
            found = metrics.corrected_discrepancy(
                np.bincount(seen, minlength=size),
                tables["judge"]["x"],
                target,
                design_effect=effect_of(seen, batches, size),
            )
            low, high = ends(found)  # a judge that the labels find useless corrects nothing
            return {"corrected, audited": (low, high) if np.isfinite(low) else None}

        truth = {"corrected, audited": metrics.discrepancy_of_shares(shares, target)}
        yield Situation(where, truth, trial, " at" in where)


TABLES = {
    "even": np.full((2, 4), 1 / 8),
    "slightly off": np.full((2, 4), 1 / 8) + 0.01 * np.array([[1], [-1]]),
    "one attribute off": np.full((2, 4), 1 / 8) + 0.05 * np.array([[1], [-1]]),
    "crossing off": np.full((2, 4), 1 / 8) + 0.06 * np.array([[1, 1, -1, -1], [-1, -1, 1, 1]]),
    "mixed": np.array([[0.3, 0.1, 0.1, 0.05], [0.1, 0.1, 0.15, 0.1]]),
    "two cells": np.array([[0.495, 0.001, 0.002, 0.002], [0.002, 0.002, 0.001, 0.495]]),
}


@case
def cells(setting: Setting) -> Iterator[Situation]:
    """What is said of the joint cells of two attributes."""
    target = np.full(8, 1 / 8)

    def cut(measure: Callable[[Array], Array], samples: Array) -> Array:
        return measure(samples.reshape(-1, 2, 4))

    measures: dict[str, Callable[[Array], Array]] = {
        "joint_excess": partial(
            cut, partial(intersections._excesses, target=target.reshape(2, 4))
        ),
        "effective_groups": partial(cut, intersections._effective),
        "mutual_information": partial(cut, informations),
        "representation_worst": partial(intersections._smallest, target=target),
        "representation_min_over_max": partial(intersections._quotients, target=target),
    }
    for where, shares in TABLES.items():
        for how in ("independent", "corr"):

            def trial(
                rng: np.random.Generator, shares: Array = shares, how: str = how
            ) -> Mapping[str, Ends]:
                labels, batches = draw(rng, shares.ravel(), how, setting, 2 * setting.n)
                worth = np.bincount(labels, minlength=8) / effect_of(labels, batches, 8)
                found = {}
                for name, measure in measures.items():

                    def flat(samples: Array, measure: Callable[[Array], Array] = measure) -> Array:
                        return measure(samples.reshape(-1, 8))[:, None]

                    found[name] = table_interval(
                        worth.reshape(2, 4), flat, target=target, draws=500
                    )
                return found

            truths = {
                name: float(measure(shares.reshape(1, 8))[0]) for name, measure in measures.items()
            }
            yield Situation(f"{where}, {how}", truths, trial)


@case
def epsilon(setting: Setting) -> Iterator[Situation]:
    """Differential fairness of representation."""
    for where, shares, target, how in places(setting, "independent", "corr"):

        def trial(
            rng: np.random.Generator,
            shares: Array = shares,
            target: Array = target,
            how: str = how,
        ) -> Mapping[str, Ends]:
            labels, batches = draw(rng, shares, how, setting, 5 * setting.n)
            effect = effect_of(labels, batches, len(shares))
            counts = np.bincount(labels, minlength=len(shares))
            found = metrics.representation_epsilon(counts, target, design_effect=effect)
            return {"differential_fairness": ends(found)}

        truth = float(np.ptp(np.log(shares / target)))
        yield Situation(where, {"differential_fairness": truth}, trial)


@case
def shares(setting: Setting) -> Iterator[Situation]:
    """A share of images, such as validity or a hit rate; a mean of one number an image."""
    task = Task("x", {"x": ("a", "b")}, (Prompt("x"),), (0.5, 0.5))
    for share in (0.5, 0.9, 0.98, 0.995):
        for how in ("independent", "corr"):

            def trial(
                rng: np.random.Generator, share: float = share, how: str = how
            ) -> Mapping[str, Ends]:
                labels, batches = draw(rng, np.array([1 - share, share]), how, setting)
                effects = None
                if how != "independent":
                    effects = metrics.group_design_effects(labels, batches, 2)
                hits, n = int(labels.sum()), len(labels)
                found = plain.share_score("x", hits, n, "higher", "x", effects=effects)
                sample = Sample(None, np.zeros(n, np.int64), None, batches)  # type: ignore[arg-type]
                numbers = labels + rng.normal(size=n) / 4
                mean = plain.mean_score(
                    "x", numbers, "higher", "x", reading=Reading(sample, "x", {}, task)
                )
                return {"share": ends(found), "mean of numbers": ends(mean)}

            truths = {"share": share, "mean of numbers": share}
            yield Situation(f"share {share}, {how}", truths, trial)


@case
def worst_group(setting: Setting) -> Iterator[Situation]:
    """The largest of several groups' distances."""
    del setting  # the same in all
    for groups in (2, 4, 8):
        for gap in (0.0, 1.0, 4.0):
            centres = gap * np.linspace(0, 1, groups)

            def trial(rng: np.random.Generator, centres: Array = centres) -> Mapping[str, Ends]:
                values = centres + rng.normal(size=len(centres))
                found = plain.worst_score(
                    [Score("x", one, one - 1.96, one + 1.96, 100, "lower") for one in values]
                )
                return {"worst_group": ends(found)}

            yield Situation(
                f"{groups} groups, {gap:g} errors apart", {"worst_group": centres[-1]}, trial
            )


def features(
    rng: np.random.Generator, n: int, d: int, shift: float, how: str, setting: Setting
) -> Array:
    """Rows of variance 1 whose first mean is shifted; coupled: with common parts of batches."""
    rows = rng.normal(size=(n, d))
    if how == "coupled":
        part, size = setting.correlation, setting.batch - 7
        common = np.repeat(rng.normal(size=(-(-n // size), d)), size, axis=0)[:n]
        rows = np.sqrt(1 - part) * rows + np.sqrt(part) * common
    rows[:, 0] += shift
    return rows


Measured = Mapping[str, tuple[float, float, float]]


def of_features(
    setting: Setting,
    function: Callable[[Array, Array, Array | None], Measured],
    n: int,
    d: int,
    draws: int = 300,
) -> Iterator[Situation]:
    """Numbers whose truth, the mean over samples given a reference, is simulated too."""
    for how in ("independent", "coupled"):
        for shift in (0.0, 1.0, 2.5):
            reference = np.random.default_rng(1).normal(size=(n, d))
            clusters = np.arange(n) // (setting.batch - 7) if how == "coupled" else None
            rng = np.random.default_rng(2)
            values = [
                {
                    name: one[2]
                    for name, one in function(
                        features(rng, n, d, shift, how, setting), reference, clusters
                    ).items()
                }
                for _ in range(draws)
            ]

            def trial(
                rng: np.random.Generator,
                shift: float = shift,
                how: str = how,
                reference: Array = reference,
                clusters: Array | None = clusters,
            ) -> Mapping[str, Ends]:
                sample = features(rng, n, d, shift, how, setting)
                found = function(sample, reference, clusters)
                return {name: one[:2] for name, one in found.items()}

            truths = {name: float(np.mean([one[name] for one in values])) for name in values[0]}
            yield Situation(f"shift {shift:g}, {how}", truths, trial)


@case
def distances(setting: Setting) -> Iterator[Situation]:
    """Fréchet and kernel distances, given the reference; the effective number of images."""

    def of(x: Array, y: Array, clusters: Array | None) -> Measured:
        frechet = metrics.frechet_interval(x, y, clusters=clusters, seed=0)
        kernel = metrics.kernel_distance(x, y, clusters=clusters, seed=0)
        strata = np.arange(len(y)) % 2
        mixed = metrics.stratified_kernel_distance(
            x, y, strata, [0.5, 0.5], clusters=clusters, seed=0
        )
        vendi = diversity_score("x", x, y, "x", seed=0, batches=clusters)
        found = {"frechet": frechet, "kernel": kernel, "kernel, weighted": mixed, "vendi": vendi}
        return {name: (*ends(one), one.value) for name, one in found.items()}

    yield from of_features(setting, of, n=300, d=8, draws=200)


@case
def near(setting: Setting) -> Iterator[Situation]:
    """Precision, recall, density and coverage, given the reference."""

    def of(x: Array, y: Array, clusters: Array | None) -> Measured:
        found = metrics.precision_recall_density_coverage(x, y, k=5, clusters=clusters)
        scores = neighbours.scores_of(found, "x", len(x), "x", coupled=clusters is not None)
        return {one.name.removesuffix("_x"): (*ends(one), one.value) for one in scores}

    yield from of_features(setting, of, n=300, d=4 if setting.n == 400 else 12, draws=200)


@case
def worst_quality(setting: Setting) -> Iterator[Situation]:
    """The worst group's Fréchet distance and recall, at 30 images of each."""
    d, images = (4, 300) if setting.n == 400 else (12, 150)
    blank = Score("x", 0.0, None, None, GROUP_N, "lower")
    for groups in (2, 4, 8):
        for shift in (0.0, 1.0):
            shifts = shift * np.arange(groups) / (groups - 1)
            cells = np.repeat(np.arange(groups), images)

            def truth(shift: float) -> tuple[float, float]:
                rng, found = np.random.default_rng(3), []
                for _ in range(600):
                    x = features(rng, GROUP_N, d, shift, "independent", setting)
                    y = rng.normal(size=(GROUP_N, d))
                    near = metrics.precision_recall_density_coverage(x, y, k=5)
                    found.append((metrics.frechet_distance(x, y), near.recall))
                distance, recall = np.mean(found, axis=0)
                return float(distance), float(recall)

            def trial(
                rng: np.random.Generator,
                cells: NDArray[np.int64] = cells,
                shifts: Array = shifts,
                groups: int = groups,
            ) -> Mapping[str, Ends]:
                x = rng.normal(size=(len(cells), d))
                x[:, 0] += shifts[cells]
                y = rng.normal(size=(len(cells), d))
                found = metrics.group_quality(
                    x, cells, y, cells, groups, common_n=GROUP_N, minimum=GROUP_N, seed=0
                )
                names = [str(one) for one in range(groups)]
                return {
                    "frechet_worst_group": ends(parity._frechet(blank, found, "", names)),
                    "recall_worst_group": ends(parity._recall(blank, found, "", names)),
                }

            distances, recalls = zip(*map(truth, shifts if shift else [0.0]), strict=True)
            truths = {"frechet_worst_group": max(distances), "recall_worst_group": min(recalls)}
            how = f"{images} images a group"
            yield Situation(f"{groups} groups, up to {shift:g} apart, {how}", truths, trial)


@case
def extrapolation(setting: Setting) -> Iterator[Situation]:
    """The Fréchet distance at infinite N, given the reference."""
    d = 48
    moments = metrics.FrechetMoments.of(np.random.default_rng(1).normal(size=(1000, d)))
    for shift in (0.0, 0.5):
        mean = np.zeros(d)
        mean[0] = shift
        truth = moments.distance(metrics.FrechetMoments.of_moments(mean, np.eye(d)))

        def trial(rng: np.random.Generator, shift: float = shift) -> Mapping[str, Ends | None]:
            sample = features(rng, 5000, d, shift, "independent", setting)
            try:
                found = metrics.frechet_infinity(sample, moments, seed=0)
            except ContractError:
                return {"extrapolation": None}
            half = 2.093 * found.standard_error
            return {"extrapolation": (max(0.0, found.value - half), found.value + half)}

        yield Situation(f"shift {shift:g}", {"extrapolation": truth}, trial)


@case
def copies(setting: Setting) -> Iterator[Situation]:
    """Share beyond a threshold that real images estimate."""
    from statistics import NormalDist

    del setting  # the same in all
    normal = NormalDist()
    for held in (300, 2000):
        for false in (1e-2, 1e-3):
            for shift in (0.0, 1.0):
                truth = 1 - normal.cdf(normal.inv_cdf(1 - false) - shift)

                def trial(
                    rng: np.random.Generator,
                    held: int = held,
                    false: float = false,
                    shift: float = shift,
                ) -> Mapping[str, Ends]:
                    generated = (rng.normal(size=1000) + shift) / 10
                    real = rng.normal(size=held) / 10
                    return {"copies": _copies_interval(generated, real, false)}

                where = f"{held} real, {false:g}, shift {shift:g}"
                yield Situation(where, {"copies": truth}, trial)


@case
def memorised(setting: Setting) -> Iterator[Situation]:
    """Chance of lying nearer to the images learned from than real ones do, given those."""
    trained = np.random.default_rng(1).normal(size=(200, 6))
    for part in (0.0, 0.2):

        def sides(rng: np.random.Generator, n: int, part: float = part) -> tuple[Array, Array]:
            made, real = rng.normal(size=(2, n, 6))
            copied = rng.random(n) < part
            made[copied] = trained[rng.integers(0, 200, int(copied.sum()))]
            return made, real

        made, real = sides(np.random.default_rng(2), 20_000)
        truth = metrics.memorisation(made, trained, real, false_matches=0.01).auc

        def trial(
            rng: np.random.Generator,
            sides: Callable[..., tuple[Array, Array]] = sides,
        ) -> Mapping[str, Ends]:
            made, real = sides(rng, setting.n)
            found = metrics.memorisation(made, trained, real, false_matches=0.01)
            score = plain.auc_score("x", found.auc, found.auc_error, setting.n, "x", "x")
            return {"memorisation": ends(score)}

        yield Situation(f"{part:.0%} copied", {"memorisation": truth}, trial)


def measure(
    situation: Situation, trials: int, seconds: float = np.inf, start: int = 0
) -> list[Found]:
    """Try it, until there are enough trials or the time is up, but ten times at least."""
    seed, until = zlib.crc32(situation.where.encode()), time.process_time() + seconds
    held = dict.fromkeys(situation.truths, 0)
    above, total, width = dict(held), dict(held), dict.fromkeys(held, 0.0)
    for trial in range(start, start + trials):
        if trial >= start + 10 and time.process_time() > until:
            break
        for name, pair in situation.trial(np.random.default_rng([trial, seed])).items():
            if pair is None:
                continue
            (low, high), truth = pair, situation.truths[name]
            held[name] += low - 1e-9 <= truth <= high + 1e-9
            above[name] += low - 1e-9 > truth
            width[name] += high - low
            total[name] += 1
    return [
        Found(
            name,
            situation.where,
            truth,
            situation.fair,
            total[name],
            held[name] / max(1, total[name]),
            above[name] / max(1, total[name]),
            width[name] / max(1, total[name]),
        )
        for name, truth in situation.truths.items()
    ]


def rows_of(found: Iterable[Found]) -> Iterator[table.Row]:
    """Lines of the table."""
    for one in found:
        verdict = table.verdict(one.held, one.trials, below=one.below)
        yield table.Row(
            (
                one.name,
                one.where,
                f"{one.truth:.4f}",
                str(one.trials),
                f"{one.held:.3f}",
                f"{one.above:.3f}",
                f"{one.width:.4f}",
                verdict,
            ),
            one.below,
        )


HEADER = ("number", "situation", "truth", "trials", "held", "above it", "width", "bar")


def main() -> int:
    """Print the table; 1 if a row lies below its bar by more than the simulation's own error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--setting", choices=SETTINGS, default="first")
    parser.add_argument("--only", help="situations that contain this text or regular expression")
    table.add_options(parser, trials=400)
    given = parser.parse_args()
    unknown = set(given.names) - set(CASES)
    if unknown:
        parser.error(f"no such number: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    wanted = re.compile(given.only or "")

    def rows() -> Iterator[table.Row]:
        for name in given.names or CASES:
            for situation in CASES[name](SETTINGS[given.setting]):
                if wanted.search(situation.where):
                    yield from rows_of(measure(situation, given.trials, given.seconds))

    return table.show(HEADER, rows(), markdown=given.markdown)


if __name__ == "__main__":
    sys.exit(main())
