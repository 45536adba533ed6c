"""How often the interval over seeds holds the truth: ``python tests/simulation/seeds.py --help``.

Prints coverage of the discrepancy of mean shares for K = 2, 4, 8 groups and S = 1, 3, 5, 10 seeds,
at, near and far from the target and near a collapse; with no effect of the seed and with one of
.03 on the shares; images independent or coupled in batches of 64; the counts as they are, one
judge that is right about 90 % of images, and the worse of two such judges. With S = 1 the truth is
that of this run; with more it is that of the recipe, the mean over all seeds. The bars: 93 % of
the truths held, 90 % where a seed's shares would leave [0, 1] within two deviations; a fair
generator excluded in at most 6 %.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairbench.metrics import (
    corrected_discrepancy,
    discrepancy_interval,
    worse_interval,
)
from fairbench.metrics.clusters import group_design_effects
from fairbench.metrics.seeds import mean_shares, united_judges

sys.path.insert(0, str(Path(__file__).parent))
import table

IMAGES = 2000
BATCH = 64
CORRELATION = 0.05  # of two images of a batch
LABELLED = 1000  # images of each group behind a confusion
RIGHT = 0.9
EFFECT = 0.03
FAIR_BAR, BAR, EDGE_BAR = 0.06, 0.93, 0.90
PLACES = ("fair", "near", "middle", "far", "0.98", "0.995")


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        groups: K.
        seeds: S.
        place: One of `PLACES`; a number is the share of one group.
        effect: Standard deviation of a share over seeds.
        along: Whether seeds move shares along one line; else in all directions.
        coupled: Whether images come in batches that agree.
        judges: 0 for counts as they are.
    """

    groups: int
    seeds: int
    place: str
    effect: float = 0.0
    along: bool = False
    coupled: bool = False
    judges: int = 0


@dataclass(frozen=True)
class Result:
    """What a number of trials gave.

    Attributes:
        trials: Rows drawn.
        coverage: Share of trials whose interval holds the truth.
        excluded: Share of trials whose interval lies above 0.
        width: Mean width.
        truth: The discrepancy; with one seed its mean over runs.
        inside: Whether every end lies within [0, largest possible].
    """

    trials: int
    coverage: float
    excluded: float
    width: float
    truth: float
    inside: bool


def bar_of(cell: Cell) -> float:
    """What share of the truths should be held."""
    shares = _shares(cell)
    near = min(float(shares.min()), 1 - float(shares.max())) < 2 * cell.effect
    return EDGE_BAR if cell.effect and near else BAR


def is_below(cell: Cell, found: Result) -> bool:
    """Whether a bar is missed by more than three standard errors of the simulation."""
    slack = 3 * np.sqrt(BAR * (1 - BAR) / found.trials)
    unfair = cell.place == "fair" and found.excluded > FAIR_BAR + slack
    return bool(found.coverage < bar_of(cell) - slack or unfair or not found.inside)


def simulate(cell: Cell, trials: int, seconds: float = np.inf) -> Result:
    """Draw rows and estimate each, ten at least, until the processor time is up."""
    rng = np.random.default_rng(zlib.crc32(repr(cell).encode()))
    target = np.full(cell.groups, 1 / cell.groups)
    shares = _shares(cell)
    recipe = shares
    if cell.effect:
        recipe = _moved(cell, shares, 100_000, rng).mean(axis=0)
    truth = float(np.linalg.norm(recipe - target))
    largest = float(np.sqrt(1 - 1 / cell.groups))
    held, above, widths, inside = 0, 0, [], True
    until = time.process_time() + seconds
    for trial in range(trials):
        if trial >= 10 and time.process_time() > until:
            break
        runs = _moved(cell, shares, cell.seeds, rng)
        wanted = truth if cell.seeds > 1 else float(np.linalg.norm(runs[0] - target))
        low, high = _interval(cell, runs, target, trial, rng)
        held += low - 1e-12 <= wanted <= high + 1e-12
        above += low > 0
        widths.append(high - low)
        inside &= 0 <= low <= high <= largest + 1e-12
    done = len(widths)
    return Result(done, held / done, above / done, float(np.mean(widths)), truth, inside)


def _shares(cell: Cell) -> np.ndarray:
    even = np.full(cell.groups, 1 / cell.groups)
    distance = {"fair": 0.0, "near": 0.02, "middle": 0.05, "far": 0.3}.get(cell.place)
    if distance is None:
        rest = (1 - float(cell.place)) / (cell.groups - 1)
        return np.r_[float(cell.place), np.full(cell.groups - 1, rest)]
    first = np.r_[1.0, np.zeros(cell.groups - 1)] - even
    return even + distance * first / np.linalg.norm(first)


def _moved(cell: Cell, shares: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Shares of each of some seeds, (count, K)."""
    if not cell.effect:
        return np.tile(shares, (count, 1))
    half = cell.groups // 2
    if cell.groups == 2 or cell.along:
        line = np.r_[np.ones(half), -np.ones(cell.groups - half)]
        step = rng.standard_normal((count, 1)) * line
    else:
        step = rng.standard_normal((count, cell.groups))
        step = (step - step.mean(axis=1, keepdims=True)) / np.sqrt(1 - 1 / cell.groups)
    found = np.clip(shares + cell.effect * step, 0, 1)
    return found / found.sum(axis=1, keepdims=True)


def _interval(
    cell: Cell,
    runs: np.ndarray,
    target: np.ndarray,
    trial: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    true, effects = zip(*[_images(cell, run, rng) for run in runs], strict=True)
    if not cell.judges:
        counts = np.stack(true)[:, None]
        if cell.seeds == 1:
            one = discrepancy_interval(counts[0, 0], target, design_effect=effects[0], seed=trial)
            return one.low, one.high
        two = mean_shares(counts, target, effects=effects, seed=trial).estimate()
        return two.low, two.high
    found, rates = [], _rates(cell.groups)
    for _ in range(cell.judges):
        confusion = np.stack([rng.multinomial(LABELLED, row) for row in rates])
        counts = np.stack([_read(one, rates, rng) for one in true])[:, None]
        if cell.seeds == 1:
            found.append(
                corrected_discrepancy(
                    counts[0], confusion, target, design_effect=effects[0], seed=trial
                )
            )
        else:
            made = mean_shares(counts, target, confusion=confusion, effects=effects, seed=trial)
            found.append(made.estimate())
    if cell.seeds == 1:
        return worse_interval(found)
    united = united_judges(found)
    return united.low, united.high


def _images(cell: Cell, shares: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Counts of one run, and what its batches do to their variance, as records hold it."""
    if not cell.coupled:
        return rng.multinomial(IMAGES, shares), 1.0
    sizes = np.array([BATCH] * (IMAGES // BATCH) + [IMAGES % BATCH])
    spread = (1 - CORRELATION) / CORRELATION
    each = rng.dirichlet(np.maximum(shares, 1e-9) * spread, size=len(sizes))
    counts = rng.multinomial(sizes, each)
    labels = np.repeat(np.tile(np.arange(cell.groups), len(sizes)), counts.ravel())
    effects = group_design_effects(labels, np.repeat(np.arange(len(sizes)), sizes), cell.groups)
    assert effects is not None
    return counts.sum(axis=0), effects.overall


def _rates(groups: int) -> np.ndarray:
    wrong = (1 - RIGHT) / (groups - 1)
    return np.full((groups, groups), wrong) + (RIGHT - wrong) * np.eye(groups)


def _read(counts: np.ndarray, rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a judge counts."""
    return sum(rng.multinomial(n, row) for n, row in zip(counts, rates, strict=True))


def cells() -> list[Cell]:
    """All lines of the table."""
    found = []
    for groups, seeds, place in itertools.product((2, 4, 8), (1, 3, 5, 10), PLACES):
        found += [
            Cell(groups, seeds, place),
            Cell(groups, seeds, place, coupled=True),
            Cell(groups, seeds, place, judges=1),
            Cell(groups, seeds, place, judges=2),
        ]
        if seeds > 1:
            found += [
                Cell(groups, seeds, place, EFFECT),
                Cell(groups, seeds, place, EFFECT, coupled=True),
                Cell(groups, seeds, place, EFFECT, judges=2),
            ]
            if groups > 2:
                found.append(Cell(groups, seeds, place, EFFECT, along=True))
    return found


HEADER = (
    "row",
    "images and judges",
    "effect of the seed",
    "truth",
    "trials",
    "held",
    "excludes fair",
    "width",
    "bar",
)


def main() -> int:
    """Print the table; 1 if a line lies below its bar by more than the simulation's own error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, help="only this K")
    parser.add_argument("--seeds", type=int, help="only this S")
    parser.add_argument("--place", choices=PLACES, help="only this place")
    table.add_options(parser, trials=1000)
    given = parser.parse_args()

    def rows() -> Iterator[table.Row]:
        for cell in cells():
            asked = (given.groups, cell.groups), (given.seeds, cell.seeds)
            if all(one in (None, seen) for one, seen in (*asked, (given.place, cell.place))):
                found = simulate(cell, given.trials, given.seconds)
                yield _row(cell, found)

    return table.show(HEADER, rows(), markdown=given.markdown)


def _row(cell: Cell, found: Result) -> table.Row:
    below = is_below(cell, found)
    verdict = table.verdict(found.coverage, found.trials, below=below)
    judges = ("counts", "1 judge", "2 judges")[cell.judges]
    effect = f"{cell.effect:.2f}{', along a line' if cell.along else ''}" if cell.effect else "no"
    cut = "" if found.inside else ", an end outside"
    return table.Row(
        (
            f"K = {cell.groups}, S = {cell.seeds}, {cell.place}",
            f"{'coupled' if cell.coupled else 'independent'}, {judges}",
            effect,
            f"{found.truth:.3f}",
            str(found.trials),
            f"{found.coverage:.3f}",
            f"{found.excluded:.3f}",
            f"{found.width:.3f}",
            f"{bar_of(cell):.2f} {verdict}{cut}",
        ),
        below,
    )


if __name__ == "__main__":
    sys.exit(main())
