"""Groups within each level of a control variable, such as a role, an age band or a seed.

Shares that are fair over all images may be unfair within each level, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import InputError, unknown_name
from fairbench.core.task import Control
from fairbench.metrics import by_group_table, discrepancy_interval, noise_floor_for
from fairbench.metrics.fairness import whole_size
from fairbench.scores.parts.crossings import Reading, crossings
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.group_tables import share_rows

__all__ = ["FAMILY", "check_controls", "strata_tables"]


def check_controls(
    names: Sequence[str], attributes: Mapping[str, tuple[str, ...]], sensitive: Sequence[str]
) -> tuple[Control, ...]:
    """The attributes that ``--control`` names, each once.

    Raises:
        InputError: If there is no such attribute, or none would be left to compare within it.
    """
    for name in names:
        if name not in attributes:
            raise unknown_name("attribute for --control", name, attributes)
        if not set(sensitive) - {name}:
            raise InputError(f"--control {name} leaves no attribute to compare; choose another")
    return tuple(Control(name, attributes[name]) for name in dict.fromkeys(names))


def strata_tables(
    reading: Reading, sensitive: Sequence[str], controls: Sequence[Control]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Shares of every group within each level of each control variable.

    Args:
        reading: The sample as the primary judge reads it, with a valid image.
        sensitive: Attributes whose shares are asked to be fair.
        controls: Variables to split by, one after another, not crossed.

    Returns:
        Tables such as ``"gender|role=santa"``, none of a level without valid images; and by
        control variable and level: valid images, discrepancy of each crossing with interval and
        floor, and the ratio and difference of representation as fairlearn's MetricFrame has them
        with control features. A level without images has n = 0 and nothing else.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    facts: dict[str, Any] = {}
    for control in controls:
        compared = tuple(name for name in sensitive if name != control.name)
        index = _index(reading, control)
        ratios = _representation(reading, compared, control, index)
        rows = []
        for k, level in enumerate(control.levels):
            mine = index == k
            row: dict[str, Any] = {"level": level, "n": int(mine.sum())}
            if mine.any():
                for chosen in crossings(compared):
                    name = "/".join(chosen)
                    found = share_rows(reading, chosen, mine, reading.target(chosen))
                    tables[f"{name}|{control.name}={level}"] = found
                row["discrepancy"] = {
                    "/".join(chosen): _discrepancy(reading, chosen, mine)
                    for chosen in crossings(compared)
                }
                row["representation"] = ratios[k]
            rows.append(row)
        facts[control.name] = rows
    return tables, facts


def _index(reading: Reading, control: Control) -> NDArray[np.int64]:
    """(n,) level of each valid image."""
    read = reading.labels[control.name] if control.index is None else control.index
    return np.asarray(read[reading.valid], dtype=np.int64)


def _discrepancy(
    reading: Reading, chosen: Sequence[str], within: NDArray[np.bool_]
) -> dict[str, Any]:
    counts, target = reading.counts(chosen, within), reading.target(chosen)
    index = reading.index(chosen)[reading.valid][within]
    effects = reading.effects(index, len(counts), within)
    effect = 1.0 if effects is None else effects.overall
    found = discrepancy_interval(counts, target, design_effect=effect)
    unseen = reading.coupled and effects is None
    floor = None if unseen else noise_floor_for(target, whole_size(counts / effect))
    return {"value": found.value, "low": found.low, "high": found.high, "floor": floor}


def _representation(
    reading: Reading, compared: Sequence[str], control: Control, index: NDArray[np.int64]
) -> list[dict[str, Any] | None]:
    """By level: smallest over largest share / target of a joint cell, and their difference."""
    import pandas as pd  # half a second, and only for those who ask

    target = reading.target(compared)
    if target.min() <= 0 or len(control.levels) < 2:
        return [None] * len(control.levels)
    columns = [reading.labels[name][reading.valid] for name in compared]
    levels = {name: reading.levels[name] for name in compared}
    # No attribute is called as a column of --labels is, so the name is free.
    table = by_group_table(
        np.stack([index, *columns], axis=1),
        {control.name: control.levels, **levels},
        target=np.tile(target, len(control.levels)) / len(control.levels),
        control=(control.name,),
    )
    ratio, difference = (
        np.asarray(pd.DataFrame(found)["representation"])
        for found in (table.ratio(), table.difference())
    )
    return [
        {"min_over_max": float(low), "difference": float(gap)}
        for low, gap in zip(ratio, difference, strict=True)
    ]


def compute(evidence: Evidence) -> Found:
    """Tables within each level of the control variables; no scores."""
    if not evidence.controls:
        return Found()
    tables, facts = strata_tables(evidence.first, evidence.sensitive, evidence.controls)
    return Found(tables=tables, facts={"control": facts})


FAMILY = ScoreFamily("strata", 110, (), compute)
