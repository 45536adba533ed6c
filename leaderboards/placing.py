"""Where the labels of points go, so that none covers another label or a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

__all__ = ["Box", "place_labels"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_RINGS = 8
_DIRECTIONS = 12


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    *,
    radius: float,
) -> list[tuple[float, float]]:
    """Centres of labels, each as near to its point as the others allow.

    Crowded points are served first by how few neighbours they have; a label that fits nowhere near
    goes where it overlaps least.

    Args:
        points: (x, y) of each point.
        sizes: Width and height of each label, in the points' unit.
        frame: What labels stay within.
        radius: Of the points' markers.

    Returns:
        (x, y) of each label's centre, in the order of the points.
    """
    markers = [(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    placed: list[Box] = []
    centres: dict[int, tuple[float, float]] = {}
    for index in sorted(range(len(points)), key=lambda i: (_crowd(points, i, 6 * radius), i)):
        best: tuple[float, Box] | None = None
        for box in _candidates(points[index], sizes[index], radius):
            if not _inside(box, frame):
                continue
            covered = sum(_overlap(box, other) for other in (*markers, *placed))
            if best is None or covered < best[0]:
                best = covered, box
            if covered == 0:
                break
        box = best[1] if best else _around(points[index], sizes[index])
        placed.append(box)
        centres[index] = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return [centres[index] for index in range(len(points))]


def _crowd(points: Sequence[tuple[float, float]], index: int, reach: float) -> int:
    x, y = points[index]
    return sum(math.hypot(x - a, y - b) < reach for a, b in points)


def _candidates(
    point: tuple[float, float], size: tuple[float, float], radius: float
) -> Iterator[Box]:
    for ring in range(_RINGS):
        away = radius + 2 + ring * max(radius, size[1] / 2)
        for direction in range(_DIRECTIONS):
            angle = 2 * math.pi * direction / _DIRECTIONS - math.pi / 4
            across = math.cos(angle) * (away + size[0] / 2)
            down = math.sin(angle) * (away + size[1] / 2)
            yield _around((point[0] + across, point[1] + down), size)


def _around(centre: tuple[float, float], size: tuple[float, float]) -> Box:
    x, y = centre
    return x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2


def _inside(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return across * down if across > 0 and down > 0 else 0.0
