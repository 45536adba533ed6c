"""Tie classes and intervals of ranks of the admitted rows of a block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fairbench.core.record import PerImage, Record
from fairbench.core.score import RANKED
from fairbench.leaderboards.averages import Cell, means_of, shifts
from fairbench.leaderboards.counts import Column, Counts, judge_values, levels_of
from fairbench.metrics.ties import (
    Contender,
    ImageLabels,
    Standing,
    difference_p,
    least_p,
    may_differ,
    standings,
)

__all__ = ["ImagesOf", "Ranked", "stand"]

ImagesOf = Callable[[Record], PerImage | None]
"""What is known of each image of a record; None if it isn't kept."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """An admitted row, as it is compared with others.

    Attributes:
        cell: What it is ranked by.
        contender: Its counts and labels; None if its records don't hold them.
    """

    cell: Cell
    contender: Contender | None

    @property
    def paired(self) -> bool:
        """Whether its images can be compared in pairs."""
        return self.contender is not None and bool(self.contender.labels)


def ranked_row(
    runs: Sequence[Record], cell: Cell, ranked_by: str, counts: Counts, images: ImagesOf
) -> Ranked:
    """An admitted row with what its records hold for comparisons.

    Args:
        runs: One record a seed.
        cell: The row's ranked column.
        ranked_by: Its name.
        counts: Reads the records' counts.
        images: Reads what is known of single images.
    """
    columns = {counts.column(run, ranked_by) for run in runs}
    if len(columns) != 1 or (column := columns.pop()) is None:
        return Ranked(cell, None)
    by_run = [counts.of(run, column) for run in runs]
    found: list[tuple[float, str, float]] = []
    judges = [judge for judge in by_run[0] if all(judge in one for one in by_run)]
    for judge in judges:
        made = means_of([one[judge] for one in by_run], corrected=column.corrected)
        if made is None:
            return Ranked(cell, None)
        value = float(np.linalg.norm(made.shares - made.target, axis=1).mean())
        found.append((value, judge, 0.0))
    if not found:
        return Ranked(cell, None)
    if column.corrected:
        others = shifts([judge_values(run, RANKED) for run in runs], judges)
        if others is None:
            return Ranked(cell, None)
        found += [(found[0][0] + shift, judges[0], shift) for shift in others.values()]
    _, judge, shift = max(found)
    counted = [one[judge] for one in by_run]
    seeds = tuple(int(run.config.get("seed", 0)) for run in runs)
    labels = {
        seed: one
        for seed, run in zip(seeds, runs, strict=True)
        if (one := _labels(run, judge, column, images(run))) is not None
    }
    target = np.tile(counted[0].target, (len(counted[0].counts), 1))
    return Ranked(
        cell,
        Contender(
            np.stack([one.counts for one in counted]),
            seeds,
            target,
            judge,
            counted[0].confusion if column.corrected else None,
            tuple(one.effect or 1.0 for one in counted),
            labels if len(labels) == len(runs) else {},
            shift,
        ),
    )


def stand(rows: Sequence[Ranked]) -> list[Standing]:
    """Where each of a block's admitted rows stands.

    All rows at or below the lowest floor of them are at the floor: by its own, a row of few valid
    images would be let off more than others.
    """
    floors = [row.cell.floor for row in rows if row.cell.floor is not None]
    least = min(floors, default=-math.inf)
    values = [row.cell.value for row in rows]
    at_floor = [value <= least for value in values]
    table = np.ones((len(rows), len(rows)))
    for one, other in itertools.combinations(range(len(rows)), 2):
        if not (at_floor[one] and at_floor[other]):  # those two don't differ
            table[one, other] = table[other, one] = _least_p(rows[one], rows[other])
    # Whether images tell two rows apart takes long to find, and most pairs differ too little.
    for one, other in np.argwhere(np.triu(may_differ(table))):
        first, second = rows[one].contender, rows[other].contender
        if first is not None and second is not None:
            table[one, other] = table[other, one] = difference_p(first, second)
    return standings(values, table, at_floor=at_floor)


def _least_p(one: Ranked, other: Ranked) -> float:
    """What the p-value of no difference is at least; that p-value itself without counts."""
    if one.contender is not None and other.contender is not None:
        return least_p(one.contender, other.contender)
    # Without counts only the intervals tell how sure the values are.
    errors = [_error(row.cell) for row in (one, other)]
    if None in errors:
        return 1.0
    gap = abs(one.cell.value - other.cell.value)
    error = math.hypot(*(found for found in errors if found is not None))
    if error == 0:
        return 1.0 if gap == 0 else 0.0
    return 2 * NormalDist().cdf(-gap / error)


def _error(cell: Cell) -> float | None:
    """Standard error as the wider side of an interval tells it."""
    if cell.low is None or cell.high is None:
        return None
    return max(cell.high - cell.value, cell.value - cell.low) / NormalDist().inv_cdf(0.975)


def _labels(
    run: Record, judge: str, column: Column, images: PerImage | None
) -> ImageLabels | None:
    """The judge's group of each image."""
    if images is None or judge not in images.labels:
        return None
    said: Mapping[str, NDArray[np.int64]] = images.labels[judge]
    names = column.crossing.split("/")
    sizes = [levels_of(run, name) for name in names]
    if not all(name in said for name in names) or 0 in sizes:
        return None
    group = np.zeros(len(images), dtype=np.int64)
    for name, size in zip(names, sizes, strict=True):
        group = group * size + said[name]
    prompt = images.prompt_index if column.by_prompt else np.zeros(len(images), dtype=np.int64)
    index = images.image_index
    if not column.by_prompt:
        index = index + images.prompt_index * (1 + int(index.max(initial=0)))
    return ImageLabels(np.where(images.valid, group, -1), prompt, index, images.batch_id)
