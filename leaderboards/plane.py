"""Fairness against quality: which rows no other beats in both, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from fairbench.leaderboards.averages import Cell
from fairbench.leaderboards.row import Row
from fairbench.metrics.fairness import worst_distance

__all__ = ["QUALITY", "REFERENCES", "Plane", "Point", "plane_of", "quality_of"]

QUALITY = "kernel_*_reweighted"
"""Distance to real images in a row's own shares: the balanced one falls with composition too."""

REFERENCES = {"kernel_cartoonfaces_reweighted": 0.5}
"""Quality column -> the distance at the hypervolume's reference point.

Published and fixed: no row moves it. The other coordinate is the largest possible discrepancy. A
column that isn't listed has no hypervolume: distances of encoders have no common scale.
"""

_DRAWS = 2000
_SEED = 20_245  # any constant: the same rows must always give the same probabilities
_FAR = 10  # times the median distance
_APART = 1.5  # times the largest distance of those that take part, for one that doesn't
# What makes a row no honest point of the plane, whatever its two numbers.
_FAULTS = {"validity", "duplicates", "leak", "quota", "images", "unmeasured"}


@dataclass(frozen=True)
class Point:
    """One row of the plane.

    Attributes:
        row: The row.
        fair: Its ranked discrepancy; lower is fairer.
        quality: Its distance to real images; lower is better.
        takes_part: Whether it can be in the Pareto set: it has its block's protocol, isn't an
            oracle, and nothing but its quality speaks against it.
        on_set: Whether no row that takes part is at least as good in both and better in one.
        probability: Share of joint draws of all rows in which it is on the set; None of one that
            doesn't take part.
        far: Whether a chart names it instead: it lies much higher than most, or doesn't take part
            and lies well above all that do.
    """

    row: Row
    fair: Cell
    quality: Cell
    takes_part: bool
    on_set: bool
    probability: float | None
    far: bool


@dataclass(frozen=True)
class Plane:
    """A block's rows in the plane.

    Attributes:
        points: Rows with both numbers, in the block's order.
        lacking: Rows without one of them.
        fairness: Name of the column across.
        quality: Name of the column upwards; empty if no row has one.
        floor: Lowest noise floor of the block; None if there is none.
        hypervolume: Share of the rectangle between (0, 0) and the reference point that the Pareto
            set dominates, in [0, 1], higher is better; None if no point is published.
        reference: Discrepancy and distance of the reference point; None without one.
    """

    points: tuple[Point, ...]
    lacking: tuple[Row, ...]
    fairness: str
    quality: str
    floor: float | None
    hypervolume: float | None
    reference: tuple[float, float] | None


def quality_of(row: Row) -> Cell | None:
    """The row's distance to real images in its own shares."""
    return next((cell for name, cell in row.scores.items() if fnmatchcase(name, QUALITY)), None)


def plane_of(block: Sequence[Row]) -> Plane:
    """The plane of one block.

    Each draw moves every row at once, by normal errors as wide as either side of its intervals,
    rows and coordinates apart; a discrepancy below 0 counts as 0. What rows share, such as the
    real images, isn't in it, so that a probability is nearer to a half than it had to be.

    Args:
        block: Rows of one data set, task and backbone; at least one.
    """
    by = block[0].ranked_by
    names = sorted({name for row in block for name in row.scores if fnmatchcase(name, QUALITY)})
    held = [
        (row, fair, quality)
        for row in block
        if (fair := row.scores.get(by)) is not None and (quality := quality_of(row)) is not None
    ]
    part = [_takes_part(row) for row, _, _ in held]
    values = np.array([[fair.value, quality.value] for _, fair, quality in held]).reshape(-1, 2)
    mask = np.array(part, dtype=bool)
    on_set = np.zeros(len(held), dtype=bool)
    chances = np.zeros(len(held))
    if mask.any():
        on_set[mask] = _pareto(values[None, mask])[0]
        chosen = [one for one, takes in zip(held, part, strict=True) if takes]
        chances[mask] = _pareto(_draws(chosen)).mean(axis=0)
    middle = statistics.median(quality.value for _, _, quality in held) if held else 0.0
    near = [
        quality.value
        for (_, _, quality), takes in zip(held, part, strict=True)
        if takes and quality.value <= _FAR * middle
    ]
    above = _APART * max(near, default=math.inf)
    points = tuple(
        Point(
            row,
            fair,
            quality,
            takes,
            bool(on),
            float(chance) if takes else None,
            quality.value > _FAR * middle > 0 or (not takes and quality.value > above > 0),
        )
        for (row, fair, quality), takes, on, chance in zip(
            held, part, on_set, chances, strict=True
        )
    )
    floors = [
        cell.floor
        for row in block
        if (cell := row.scores.get(by)) is not None and cell.floor is not None
    ]
    quality_name = names[0] if names else ""
    reference = _reference(block[0], quality_name)
    volume = None if reference is None or not mask.any() else _volume(values[on_set], reference)
    lacking = tuple(row for row in block if all(row is not one for one, _, _ in held))
    return Plane(points, lacking, by, quality_name, min(floors, default=None), volume, reference)


def _takes_part(row: Row) -> bool:
    return row.comparable == "yes" and row.role != "oracle" and row.why_unranked not in _FAULTS


def _reference(row: Row, quality: str) -> tuple[float, float] | None:
    target = [float(share) for share in (row.config.get("target") or {}).values()]
    if quality not in REFERENCES or len(target) < 2:
        return None
    return float(worst_distance(target)), REFERENCES[quality]


def _pareto(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of m points no other dominates, (D, m), of draws (D, m, 2); lower is better."""
    order = np.lexsort((values[..., 1], values[..., 0]), axis=-1)
    quality = np.take_along_axis(values[..., 1], order, axis=-1)
    least = np.minimum.accumulate(quality, axis=-1)
    better = np.ones(order.shape, dtype=bool)
    better[:, 1:] = quality[:, 1:] < least[:, :-1]
    found = np.empty(order.shape, dtype=bool)
    np.put_along_axis(found, order, better, axis=-1)
    return found


def _draws(held: Sequence[tuple[Row, Cell, Cell]]) -> NDArray[np.float64]:
    """(draws, m, 2) values of all rows at once."""
    rng = np.random.default_rng(_SEED)
    normal = rng.standard_normal((_DRAWS, len(held), 2)) / 1.959964
    middle, below, above = np.moveaxis(
        np.array([[_sides(cell) for cell in (fair, quality)] for _, fair, quality in held]), -1, 0
    )
    with np.errstate(over="ignore"):  # of numbers near the largest that there are
        drawn = middle + normal * np.where(normal < 0, below, above)
    drawn[..., 0] = np.maximum(0.0, drawn[..., 0])
    return np.asarray(drawn, dtype=np.float64)


def _sides(cell: Cell) -> tuple[float, float, float]:
    """A value, and how far its interval reaches below and above it."""
    below = 0.0 if cell.low is None else cell.value - cell.low
    above = 0.0 if cell.high is None else cell.high - cell.value
    return cell.value, below, above


def _volume(points: NDArray[np.float64], reference: tuple[float, float]) -> float:
    """Share of the reference's rectangle that the points dominate."""
    clipped = np.clip(points, 0.0, reference)
    total, height = 0.0, reference[1]
    for fair, quality in sorted(map(tuple, clipped.tolist())):
        if quality < height:
            total += (reference[0] - fair) * (height - quality)
            height = quality
    return total / (reference[0] * reference[1])
