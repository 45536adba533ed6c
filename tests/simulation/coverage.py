"""How often each interval that is printed of one run holds the truth, by simulation.

    python tests/simulation/coverage.py [NAME …] [--trials N]

One row a number and situation: K groups or D features; shares or distributions at, near and far
from the target; images independent, or coupled within batches. The bars: 93 % of the truths held,
and a perfectly fair generator excluded in at most 6 %.
Rows at 100 % have an interval that ends at a bound of the range, or that allows for whichever
truth is plausible.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fairbench import metrics
from fairbench.core.errors import ContractError
from fairbench.core.score import Score
from fairbench.metrics.diversity import _copies_interval
from fairbench.metrics.fairness import table_interval
from fairbench.scores import intersections, neighbours
from fairbench.scores.parts import plain
from fairbench.scores.parts.diversity import diversity_score
from fairbench.scores.parts.shares import informations

Array = NDArray[np.float64]
Ends = tuple[float, float]
N = 400
BATCH = 32
RIGHT = 0.9  # of the images that a judge reads
LABELLED = 400  # images of each group behind a confusion
FAIR_BAR, BAR = 0.06, 0.93

SHARES: dict[int, dict[str, tuple[float, ...]]] = {
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
}


@dataclass(frozen=True)
class Row:
    """One situation.

    Attributes:
        name: Of the number.
        where: Such as ``"K = 4 near"``.
        truth: What the interval should hold.
        trial: Generator of a trial -> ends; None where the number refuses the sample.
        fair: Whether a lower end above the truth calls a fair generator unfair.
    """

    name: str
    where: str
    truth: float
    trial: Callable[[np.random.Generator], Ends | None]
    fair: bool = False


Case = Callable[[], Iterator[Row]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Add what a function yields to the table, under its name."""
    CASES[function.__name__] = function
    return function


def ends(found: object) -> Ends:
    """Of anything with `low` and `high`."""
    high = getattr(found, "high")  # noqa: B009
    return float(getattr(found, "low")), np.inf if high is None else float(high)  # noqa: B009


def draw(rng: np.random.Generator, shares: Array, how: str, n: int = N) -> tuple[Array, Array]:
    """Group and batch of each image.

    ``corr``: images of a batch agree, with correlation .1; ``steered``: batches hold their shares
    but for one image in sixteen or so.
    """
    batches = np.repeat(np.arange(-(-n // BATCH)), BATCH)[:n]
    if how == "independent":
        return rng.choice(len(shares), n, p=shares), np.arange(n)
    labels = np.empty(n, dtype=np.int64)
    for batch in np.unique(batches):
        mine = np.flatnonzero(batches == batch)
        if how == "corr":
            labels[mine] = rng.choice(len(shares), len(mine), p=rng.dirichlet(shares * 9 + 1e-9))
            continue
        start = (rng.random() + np.arange(len(mine))) / len(mine)  # systematic: unbiased
        places = np.searchsorted(np.cumsum(shares)[:-1], start, side="right")
        loose = rng.random(len(mine)) < 1 / 16
        places[loose] = rng.choice(len(shares), int(loose.sum()), p=shares)
        labels[mine] = places
    return labels, batches


def effect_of(labels: Array, batches: Array, num_groups: int) -> float:
    """As scores find it."""
    if len(np.unique(batches)) == len(batches):
        return 1.0
    found = metrics.group_design_effects(labels, batches, num_groups)
    assert found is not None
    return found.overall


def situations(*hows: str) -> Iterator[tuple[str, Array, Array, str]]:
    """Name, shares and target for every K and place, in each of the ways images are drawn."""
    for how in hows:
        for num_groups, places in SHARES.items():
            for place, shares in places.items():
                target = np.full(num_groups, 1 / num_groups)
                yield f"K = {num_groups} {place}, {how}", np.array(shares), target, how


def of_counts(
    name: str, function: Callable[..., object], truth: Callable[[Array, Array], float]
) -> Iterator[Row]:
    """Rows of a number that counts, a target and a design effect decide."""
    for where, shares, target, how in situations("independent", "corr", "steered"):

        def trial(
            rng: np.random.Generator,
            shares: Array = shares,
            target: Array = target,
            how: str = how,
        ) -> Ends:
            labels, batches = draw(rng, shares, how)
            counts = np.bincount(labels, minlength=len(shares))
            effect = effect_of(labels, batches, len(shares))
            return ends(function(counts, target, design_effect=effect))

        yield Row(name, where, truth(shares, target), trial, " at" in where)


@case
def discrepancy() -> Iterator[Row]:
    """The raw discrepancy of hard labels."""
    yield from of_counts(
        "discrepancy", metrics.discrepancy_interval, metrics.discrepancy_of_shares
    )


@case
def family() -> Iterator[Row]:
    """Every other norm of it, at one prompt and as a mean over five."""
    for prompts in (1, 5):
        for where, shares, target, _ in situations("independent"):
            truths = metrics.discrepancy_family(shares, target).columns()
            for column, truth in truths.items():

                def trial(
                    rng: np.random.Generator,
                    shares: Array = shares,
                    target: Array = target,
                    column: str = column,
                    prompts: int = prompts,
                ) -> Ends:
                    counts = rng.multinomial(100, shares, size=prompts)
                    return ends(metrics.mean_family_intervals(counts, target)[column])

                name = column.removeprefix("fairness_discrepancy_")
                yield Row(name, f"{where}, {prompts} prompts", truth, trial, " at" in where)


def over_prompts(
    name: str, function: Callable[[Array, Array, np.random.Generator], object]
) -> Iterator[Row]:
    """Rows of a mean over one, five and twenty prompts."""
    for prompts in (1, 5, 20):
        for where, shares, target, _ in situations("independent"):

            def trial(
                rng: np.random.Generator,
                shares: Array = shares,
                target: Array = target,
                prompts: int = prompts,
            ) -> Ends:
                return ends(function(np.tile(shares, (prompts, 1)), target, rng))

            truth = metrics.discrepancy_of_shares(shares, target)
            yield Row(name, f"{where}, {prompts} prompts", truth, trial, " at" in where)


@case
def mean() -> Iterator[Row]:
    """The mean over prompts."""

    def of(shares: Array, target: Array, rng: np.random.Generator) -> object:
        counts = np.stack([rng.multinomial(100, row) for row in shares])
        return metrics.mean_discrepancy_interval(counts, target)

    yield from over_prompts("mean", of)


@case
def soft() -> Iterator[Row]:
    """Of mean probabilities."""

    def of(shares: Array, target: Array, rng: np.random.Generator) -> object:
        tables = [rng.dirichlet(row * len(target), size=100) for row in shares]
        return metrics.mean_soft_interval(tables, target)[0]

    yield from over_prompts("soft", of)


@case
def penalised() -> Iterator[Row]:
    """With 3 % of images that can't be read."""
    for row in over_prompts("penalised", _penalised):
        num_groups = int(row.where.split()[2])
        shares = np.array(SHARES[num_groups][row.where.split()[3].rstrip(",")])
        gaps = np.append(shares * 0.97 - 1 / num_groups, 0.03)
        yield Row(row.name, row.where, float(np.linalg.norm(gaps)), row.trial)


def _penalised(shares: Array, target: Array, rng: np.random.Generator) -> object:
    counts = np.stack([rng.multinomial(100, np.append(row * 0.97, 0.03)) for row in shares])
    return metrics.mean_penalised_discrepancy(counts[:, :-1], counts[:, -1], target)


@case
def worst_prompt() -> Iterator[Row]:
    """The largest of five prompts."""
    for where, shares, target, _ in situations("independent"):
        mixed = np.stack([target, target, target, (target + shares) / 2, shares])
        truth = max(metrics.discrepancy_of_shares(row, target) for row in mixed)

        def trial(rng: np.random.Generator, mixed: Array = mixed, target: Array = target) -> Ends:
            counts = np.stack([rng.multinomial(100, row) for row in mixed])
            return ends(metrics.prompt_discrepancies(counts, target).per_prompt_worst)

        yield Row("worst_prompt", where, truth, trial, " at" in where)


def read(labels: Array, confusion: Array, rng: np.random.Generator) -> Array:
    """What a judge says."""
    seen = np.empty_like(labels)
    for group, rates in enumerate(confusion):
        mine = labels == group
        seen[mine] = rng.choice(len(rates), int(mine.sum()), p=rates)
    return seen


def judged(
    rng: np.random.Generator, shares: Array, target: Array, how: str, judges: int
) -> list[metrics.CorrectedDiscrepancy]:
    """Corrected discrepancies of several judges of the same images."""
    size = len(shares)
    confusion = np.full((size, size), (1 - RIGHT) / (size - 1))
    np.fill_diagonal(confusion, RIGHT)
    labels, batches = draw(rng, shares, how)
    found = []
    for _ in range(judges):
        seen = read(labels, confusion, rng)
        table = np.stack([rng.multinomial(LABELLED, row) for row in confusion])
        effect = effect_of(seen, batches, size)
        counts = np.bincount(seen, minlength=size)
        found.append(metrics.corrected_discrepancy(counts, table, target, design_effect=effect))
    return found


@case
def corrected() -> Iterator[Row]:
    """The ranked number, of one judge and of the worse of two."""
    for judges in (1, 2):
        for where, shares, target, how in situations("independent", "corr", "steered"):

            def trial(
                rng: np.random.Generator,
                shares: Array = shares,
                target: Array = target,
                how: str = how,
                judges: int = judges,
            ) -> Ends:
                return metrics.worse_interval(judged(rng, shares, target, how, judges))

            truth = metrics.discrepancy_of_shares(shares, target)
            name = f"corrected, {judges} judge{'s' * (judges > 1)}"
            yield Row(name, where, truth, trial, " at" in where)


TABLES = {
    "even": np.full((2, 4), 1 / 8),
    "slightly off": np.full((2, 4), 1 / 8) + 0.01 * np.array([[1], [-1]]),
    "one attribute off": np.full((2, 4), 1 / 8) + 0.05 * np.array([[1], [-1]]),
    "crossing off": np.full((2, 4), 1 / 8) + 0.06 * np.array([[1, 1, -1, -1], [-1, -1, 1, 1]]),
    "mixed": np.array([[0.3, 0.1, 0.1, 0.05], [0.1, 0.1, 0.15, 0.1]]),
    "two cells": np.array([[0.495, 0.001, 0.002, 0.002], [0.002, 0.002, 0.001, 0.495]]),
}


@case
def cells() -> Iterator[Row]:
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
            for name, measure in measures.items():

                def trial(
                    rng: np.random.Generator,
                    shares: Array = shares,
                    how: str = how,
                    measure: Callable[[Array], Array] = measure,
                ) -> Ends:
                    labels, batches = draw(rng, shares.ravel(), how, 2 * N)
                    worth = np.bincount(labels, minlength=8) / effect_of(labels, batches, 8)

                    def flat(samples: Array) -> Array:
                        return measure(samples.reshape(-1, 8))[:, None]

                    return table_interval(worth.reshape(2, 4), flat, target=target, draws=500)

                truth = float(measure(shares.reshape(1, 8))[0])
                yield Row(name, f"{where}, {how}", truth, trial)


@case
def epsilon() -> Iterator[Row]:
    """Differential fairness of representation."""
    for where, shares, target, how in situations("independent", "corr"):

        def trial(
            rng: np.random.Generator,
            shares: Array = shares,
            target: Array = target,
            how: str = how,
        ) -> Ends:
            labels, batches = draw(rng, shares, how, 5 * N)
            effect = effect_of(labels, batches, len(shares))
            counts = np.bincount(labels, minlength=len(shares))
            return ends(metrics.representation_epsilon(counts, target, design_effect=effect))

        truth = float(np.ptp(np.log(shares / target)))
        yield Row("differential_fairness", where, truth, trial)


@case
def shares() -> Iterator[Row]:
    """A share of images, such as validity or a hit rate."""
    for share in (0.5, 0.9, 0.98):
        for how in ("independent", "corr"):

            def trial(rng: np.random.Generator, share: float = share, how: str = how) -> Ends:
                labels, batches = draw(rng, np.array([1 - share, share]), how)
                effects = None
                if how != "independent":
                    effects = metrics.group_design_effects(labels, batches, 2)
                hits = int(labels.sum())
                return ends(
                    plain.share_score("x", hits, len(labels), "higher", "x", effects=effects)
                )

            yield Row("share", f"{share}, {how}", share, trial)


@case
def worst_group() -> Iterator[Row]:
    """The largest of several groups' distances."""
    for groups in (2, 4, 8):
        for gap in (0.0, 1.0, 4.0):
            means = gap * np.linspace(0, 1, groups)

            def trial(rng: np.random.Generator, means: Array = means) -> Ends:
                values = means + rng.normal(size=len(means))
                return ends(
                    plain.worst_score(
                        [
                            Score("x", value, value - 1.96, value + 1.96, 100, "lower")
                            for value in values
                        ]
                    )
                )

            yield Row("worst_group", f"{groups} groups, {gap:g} errors apart", means[-1], trial)


def features(rng: np.random.Generator, n: int, d: int, shift: float, how: str) -> Array:
    """Rows of variance 1 whose first mean is shifted; coupled: with batch means of variance .1."""
    rows = rng.normal(size=(n, d))
    if how == "coupled":
        rows *= np.sqrt(0.9)
        rows += np.sqrt(0.1) * np.repeat(rng.normal(size=(-(-n // 25), d)), 25, axis=0)[:n]
    rows[:, 0] += shift
    return rows


def of_features(
    name: str, function: Callable[[Array, Array, Array | None], Ends], n: int = 300, d: int = 8
) -> Iterator[Row]:
    """Rows of numbers whose truth, the mean over samples given a reference, is simulated too."""
    for how in ("independent", "coupled"):
        for shift in (0.0, 1.0, 2.5):
            reference = np.random.default_rng(1).normal(size=(n, d))
            clusters = np.arange(n) // 25 if how == "coupled" else None
            rng = np.random.default_rng(2)
            values = [
                function(features(rng, n, d, shift, how), reference, clusters)[2]  # type: ignore[misc]
                for _ in range(200)
            ]

            def trial(
                rng: np.random.Generator,
                shift: float = shift,
                how: str = how,
                reference: Array = reference,
                clusters: Array | None = clusters,
            ) -> Ends:
                sample = features(rng, n, d, shift, how)
                return function(sample, reference, clusters)[:2]

            yield Row(name, f"shift {shift:g}, {how}", float(np.mean(values)), trial)


@case
def frechet() -> Iterator[Row]:
    """The Fréchet distance, given the reference."""

    def of(x: Array, y: Array, clusters: Array | None) -> tuple[float, float, float]:
        found = metrics.frechet_interval(x, y, clusters=clusters, seed=0)
        return found.low, found.high, found.value

    yield from of_features("frechet", of)


@case
def kernel() -> Iterator[Row]:
    """The kernel distance; here, as in every row of features, the reference stays the same."""

    def of(x: Array, y: Array, clusters: Array | None) -> tuple[float, float, float]:
        found = metrics.kernel_distance(x, y, clusters=clusters, seed=0)
        return found.low, found.high, found.value

    yield from of_features("kernel", of)


@case
def near() -> Iterator[Row]:
    """Precision, recall, density and coverage, given the reference."""
    for which in ("precision", "recall", "density", "coverage"):

        def of(
            x: Array, y: Array, clusters: Array | None, which: str = which
        ) -> tuple[float, float, float]:
            found = metrics.precision_recall_density_coverage(x, y, k=5, clusters=clusters)
            blocks = 20 if clusters is None else min(20, len(np.unique(clusters)))
            score = next(
                score
                for score in neighbours.scores_of(found, "x", len(x), "x", blocks, clusters)
                if score.name.startswith(which)
            )
            return (*ends(score), score.value)

        yield from of_features(which, of, d=4)


@case
def vendi() -> Iterator[Row]:
    """The effective number of images, given the reference."""

    def of(x: Array, y: Array, clusters: Array | None) -> tuple[float, float, float]:
        found = diversity_score("x", x, y, "x", seed=0, batches=clusters)
        return (*ends(found), found.value)

    yield from of_features("vendi", of)


@case
def extrapolation() -> Iterator[Row]:
    """The Fréchet distance at infinite N, given the reference."""
    d = 48
    moments = metrics.FrechetMoments.of(np.random.default_rng(1).normal(size=(1000, d)))
    for shift in (0.0, 0.5):
        mean = np.zeros(d)
        mean[0] = shift
        truth = moments.distance(metrics.FrechetMoments.of_moments(mean, np.eye(d)))

        def trial(rng: np.random.Generator, shift: float = shift) -> Ends | None:
            try:
                found = metrics.frechet_infinity(
                    features(rng, 5000, d, shift, "independent"), moments, seed=0
                )
            except ContractError:
                return None
            half = 2.093 * found.standard_error
            return found.value - half, found.value + half

        yield Row("extrapolation", f"shift {shift:g}", truth, trial)


@case
def copies() -> Iterator[Row]:
    """Share beyond a threshold that real images estimate."""
    from statistics import NormalDist

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
                ) -> Ends:
                    return _copies_interval(
                        (rng.normal(size=1000) + shift) / 10, rng.normal(size=held) / 10, false
                    )

                yield Row("copies", f"{held} real, {false:g}, shift {shift:g}", truth, trial)


def measure(row: Row, trials: int) -> tuple[float, float, float]:
    """Share of trials whose interval holds the truth, whose lower end exceeds it; mean width."""
    held, above, widths = 0, 0, []
    for trial in range(trials):
        found = row.trial(np.random.default_rng([trial, 7]))
        if found is None:
            continue
        low, high = found
        held += low - 1e-9 <= row.truth <= high + 1e-9
        above += low - 1e-9 > row.truth
        widths.append(high - low)
    total = max(1, len(widths))
    return held / total, above / total, float(np.mean(widths)) if widths else 0.0


def main() -> int:
    """Print the table; 1 if a row lies below its bar by more than the simulation's own error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--trials", type=int, default=300)
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(CASES)
    if unknown:
        parser.error(f"no such number: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    below = 0
    print(f"{'number':28} {'situation':34} {'truth':>8} {'held':>6} {'above':>6} {'width':>8}")
    for name in chosen.names or CASES:
        for row in CASES[name]():
            held, above, width = measure(row, chosen.trials)
            bad = is_below(row, held, above, chosen.trials)
            below += bad
            print(
                f"{row.name:28} {row.where:34} {row.truth:8.4f} {held:6.3f} {above:6.3f} "
                f"{width:8.4f}{'  below its bar' * bad}",
                flush=True,
            )
    return int(below > 0)


def is_below(row: Row, held: float, above: float, trials: int) -> bool:
    """Whether a row misses its bar by more than three standard errors of the simulation."""
    slack = 3 * np.sqrt(BAR * (1 - BAR) / trials)
    return bool(held < BAR - slack or (row.fair and above > FAIR_BAR + slack))


if __name__ == "__main__":
    sys.exit(main())
