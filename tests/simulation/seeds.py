"""How often the interval over seeds holds the truth: ``python tests/simulation/seeds.py --help``.

Prints coverage of the discrepancy of mean shares for K = 2, 4, 8 groups and S = 1, 3, 5, 10 seeds,
at, near and far from the target and near a collapse; with no effect of the seed and with one of
.03 on the shares; images independent or coupled in batches of 64; the counts as they are, one
judge that is right about 90 % of images, and the worse of two such judges. With S = 1 the truth is
that of this run; with more it is that of the recipe, the mean over all seeds.
"""

from __future__ import annotations

import argparse
import itertools
import zlib
from dataclasses import dataclass

import numpy as np

from fairbench.metrics import (
    corrected_discrepancy,
    design_effect,
    discrepancy_interval,
    worse_of_judges,
)
from fairbench.metrics.jackknife import student
from fairbench.metrics.seeds import mean_shares, united_judges

IMAGES = 2000
BATCH = 64
CORRELATION = 0.05  # of two images of a batch
LABELLED = 1000  # images of each group behind a confusion
RIGHT = 0.9
EFFECT = 0.03
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
        coverage: Share of trials whose interval holds the truth.
        excluded: Share of trials whose interval lies above 0.
        width: Mean width.
        truth: The discrepancy; with one seed its mean over runs.
        inside: Whether every end lies within [0, largest possible].
    """

    coverage: float
    excluded: float
    width: float
    truth: float
    inside: bool


def simulate(cell: Cell, trials: int) -> Result:
    """Draw rows and estimate each."""
    rng = np.random.default_rng(zlib.crc32(repr(cell).encode()))
    target = np.full(cell.groups, 1 / cell.groups)
    shares = _shares(cell)
    recipe = shares
    if cell.effect:
        recipe = np.mean([_moved(cell, shares, rng) for _ in range(20_000)], axis=0)
    truth = float(np.linalg.norm(recipe - target))
    largest = float(np.sqrt(1 - 1 / cell.groups))
    held, above, widths, inside = 0, 0, [], True
    for trial in range(trials):
        runs = [_moved(cell, shares, rng) for _ in range(cell.seeds)]
        wanted = truth if cell.seeds > 1 else float(np.linalg.norm(runs[0] - target))
        low, high = _interval(cell, runs, target, trial, rng)
        held += low - 1e-12 <= wanted <= high + 1e-12
        above += low > 0
        widths.append(high - low)
        inside &= 0 <= low <= high <= largest + 1e-12
    return Result(held / trials, above / trials, float(np.mean(widths)), truth, inside)


def _shares(cell: Cell) -> np.ndarray:
    even = np.full(cell.groups, 1 / cell.groups)
    distance = {"fair": 0.0, "near": 0.02, "middle": 0.05, "far": 0.3}.get(cell.place)
    if distance is None:
        rest = (1 - float(cell.place)) / (cell.groups - 1)
        return np.r_[float(cell.place), np.full(cell.groups - 1, rest)]
    first = np.r_[1.0, np.zeros(cell.groups - 1)] - even
    return even + distance * first / np.linalg.norm(first)


def _moved(cell: Cell, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shares of one seed."""
    if not cell.effect:
        return shares
    half = cell.groups // 2
    if cell.groups == 2 or cell.along:
        step = rng.standard_normal() * np.r_[np.ones(half), -np.ones(cell.groups - half)]
    else:
        step = rng.standard_normal(cell.groups)
        step = (step - step.mean()) / np.sqrt(1 - 1 / cell.groups)
    found = np.clip(shares + cell.effect * step, 0, 1)
    return found / found.sum()


def _interval(
    cell: Cell,
    runs: list[np.ndarray],
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
    united = worse_of_judges(found) if cell.seeds == 1 else united_judges(found)
    return united.low, united.high


def _images(cell: Cell, shares: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Counts of one run, and what its batches do to their variance, as records hold it."""
    if not cell.coupled:
        return rng.multinomial(IMAGES, shares), 1.0
    sizes = [BATCH] * (IMAGES // BATCH) + [IMAGES % BATCH]
    spread = (1 - CORRELATION) / CORRELATION
    table = np.stack(
        [rng.multinomial(size, rng.dirichlet(np.maximum(shares, 1e-9) * spread)) for size in sizes]
    )
    stretch = (student(0.95, len(sizes) - 1) / 1.96) ** 2
    return table.sum(axis=0), max(1.0, design_effect(table)) * stretch


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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="rows a line")
    parser.add_argument("--groups", type=int, help="only this K")
    parser.add_argument("--seeds", type=int, help="only this S")
    given = parser.parse_args()
    print(" K   S place  effect images      judges  truth  coverage  excludes 0  width  inside")
    for cell in cells():
        if given.groups not in (None, cell.groups) or given.seeds not in (None, cell.seeds):
            continue
        one = simulate(cell, given.trials)
        effect = f"{cell.effect:.2f}{'|' if cell.along else ' '}"
        images = "coupled" if cell.coupled else "independent"
        print(
            f"{cell.groups:2} {cell.seeds:3} {cell.place:6} {effect:6} {images:11} "
            f"{cell.judges:6}  {one.truth:.3f}  {one.coverage:8.3f}  {one.excluded:10.3f}  "
            f"{one.width:.3f}  {'yes' if one.inside else 'NO'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
