"""Rows of one method that differ in one number: what more budget or strength buys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fairbench.core.keys import canonical
from fairbench.leaderboards.admission import declared_sampling, flatten, told_defaults
from fairbench.leaderboards.row import Row

__all__ = ["Curve", "curves_of"]


@dataclass(frozen=True)
class Curve:
    """Rows along one parameter.

    Attributes:
        method: Their method.
        preset: Their preset; empty: none.
        parameter: Dotted name of what changes, such as ``"strength"`` or ``"sampling.steps"``.
        settings: What else their labels say, the same for all.
        points: Value of the parameter and row, ascending; two or more.
    """

    method: str
    preset: str
    parameter: str
    settings: str
    points: tuple[tuple[float, Row], ...]


def curves_of(block: Sequence[Row]) -> list[Curve]:
    """All curves of a block, by method and parameter.

    Numbers of images and seeds may differ along a curve; of two rows at one value the one with
    more images is shown.
    """
    by_preset: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in block:
        by_preset[row.method, str(row.config.get("preset") or "")].append(row)
    found = []
    for (method, preset), rows in sorted(by_preset.items()):
        if len(rows) < 2:
            continue
        choices = [_choices(row, preset) for row in rows]
        for name in sorted(set().union(*choices)):
            values = [_number(one.get(name)) for one in choices]
            if len({value for value in values if value is not None}) < 2:
                continue
            alike: dict[str, dict[float, Row]] = defaultdict(dict)
            for row, one, value in zip(rows, choices, values, strict=True):
                if value is None:
                    continue
                rest = canonical({other: one[other] for other in one if other != name})
                had = alike[rest].get(value)
                if had is None or _images(row) > _images(had):
                    alike[rest][value] = row
            varying = sorted(
                n for n in set().union(*choices) if len({o.get(n) for o in choices}) > 1
            )
            for points in alike.values():
                if len(points) < 2:
                    continue
                ordered = tuple(sorted(points.items(), key=lambda point: point[0]))
                first = _choices(ordered[0][1], preset)
                told = [f"{n}={first[n]}" for n in varying if n != name and n in first]
                found.append(Curve(method, preset, name, ", ".join(told), ordered))
    return found


def _choices(row: Row, preset: str) -> dict[str, str]:
    """Dotted name -> value of everything that the method or the user chose; defaults included."""
    sampling = row.config.get("sampling") or {}
    target = row.config.get("target") or {}
    defaults = told_defaults(row.method, preset)
    given = dict(
        flatten(
            {
                **(row.config.get("parameters") or {}),
                "sampling": {**declared_sampling(row.dataset, row.backbone), **sampling},
                "target": target,
                "version": row.config.get("version", 0),
            }
        )
    )
    return {**defaults, **given}


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _images(row: Row) -> int:
    return row.n * len(row.seeds)
