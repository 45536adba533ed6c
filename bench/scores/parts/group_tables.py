"""Tables of groups: what is in a record beside the scores, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.metrics import (
    CorrectedShares,
    GroupEffects,
    GroupQuality,
    clustered_share_intervals,
    correct_shares,
    wilson_interval,
)
from fairbench.scores.parts.crossings import GIVEN_BATCHES, WORTH_BATCHES, Reading, crossings

__all__ = ["group_tables", "hit_matrix", "share_rows", "validity_by_requested"]

Row = dict[str, Any]


def group_tables(
    reading: Reading,
    sensitive: Sequence[str],
    confusions: Mapping[str, NDArray[np.int64]],
    quality: Mapping[str, GroupQuality],
) -> dict[str, list[Row]]:
    """Counts, shares and intervals of every group, with its quality in the sensitive crossing.

    Args:
        reading: The sample as the primary judge reads it, with a valid image.
        sensitive: Attributes whose shares are asked to be fair.
        confusions: That judge's, by attribute or attributes joined by ``"/"``.
        quality: Encoder -> quality of each cell of the crossing of all sensitive attributes.

    Returns:
        ``"gender"``, ``"gender/race"``, … and ``"gender|tennis player"`` for each prompt of
        several -> rows in declared order. A group without images has count 0. Where batches
        couple images, rows say what their interval is.
    """
    tables: dict[str, list[Row]] = {}
    for chosen in crossings(sensitive):
        rows = share_rows(reading, chosen, None, reading.target(chosen))
        effects = _effects(reading, chosen, None)
        _add_corrected(rows, reading.counts(chosen), confusions.get("/".join(chosen)), effects)
        _add_accuracy(rows, reading, chosen)
        tables["/".join(chosen)] = rows
    for encoder, found in quality.items():
        _add_quality(tables["/".join(sensitive)], encoder, found)
    for name in reading.levels:
        if name not in sensitive:
            tables[name] = share_rows(reading, (name,), None, None)
    if len(reading.task.prompts) > 1:
        for p, prompt in enumerate(reading.task.prompts):
            mine = reading.prompts == p
            for chosen in crossings(sensitive) if mine.any() else ():
                rows = share_rows(reading, chosen, mine, reading.target(chosen))
                tables[f"{'/'.join(chosen)}|{prompt.subject}"] = rows
    return tables


def share_rows(
    reading: Reading,
    chosen: Sequence[str],
    within: NDArray[np.bool_] | None,
    target: NDArray[np.float64] | None,
) -> list[Row]:
    """Count, share, interval and target of each cell of a crossing.

    Args:
        reading: The sample.
        chosen: Attributes that are crossed.
        within: Which of the valid images count, (n,), at least one; None for all.
        target: Wanted shares, (K,); None if there are none.
    """
    counts = reading.counts(chosen, within)
    n = int(counts.sum())
    effects = _effects(reading, chosen, within)
    low, high = _intervals(counts, effects)
    return [
        {
            "group": group,
            "count": int(counts[k]),
            "n": n,
            "share": counts[k] / n,
            "low": float(low[k]),
            "high": float(high[k]),
            "target": None if target is None else float(target[k]),
            **_how(reading, effects),
        }
        for k, group in enumerate(reading.groups(chosen))
    ]


def _effects(
    reading: Reading, chosen: Sequence[str], within: NDArray[np.bool_] | None
) -> GroupEffects | None:
    index = reading.index(chosen)[reading.valid]
    return reading.effects(
        index if within is None else index[within], len(reading.groups(chosen)), within
    )


def _intervals(
    counts: NDArray[np.int64], effects: GroupEffects | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's, of as many independent images as coupled ones are worth."""
    if effects is not None:
        return clustered_share_intervals(counts, effects)
    low, high = wilson_interval(counts, np.full(counts.shape, counts.sum()))
    return np.asarray(low), np.asarray(high)


def _how(reading: Reading, effects: GroupEffects | None) -> Row:
    """How the interval was found, where images depend on each other."""
    if not reading.coupled:
        return {}
    return {"interval": f"wilson, {GIVEN_BATCHES if effects is None else WORTH_BATCHES}"}


def _add_corrected(
    rows: list[Row],
    counts: NDArray[np.int64],
    confusion: NDArray[np.int64] | None,
    effects: GroupEffects | None,
) -> None:
    """The share with classifier error undone; None where that can't be."""
    found: CorrectedShares | None = None
    if confusion is not None:
        effect = 1.0 if effects is None else effects.overall
        found = correct_shares(counts, confusion, design_effect=effect)
    for k, row in enumerate(rows):
        row["corrected"] = None
        if found is not None and found.reason is None:
            row["corrected"] = {
                "value": float(found.shares[k]),
                "low": float(found.low[k]),
                "high": float(found.high[k]),
            }


def _add_accuracy(rows: list[Row], reading: Reading, chosen: Sequence[str]) -> None:
    """How many images of the group show the subject asked for."""
    right = reading.right_subject()
    if right is None:
        return
    index = reading.index(chosen)[reading.valid]
    for k, row in enumerate(rows):
        among = right[index == k]
        row["prompt_accuracy"] = None
        if len(among):
            low, high = _interval(reading, among, index == k)
            value = float(among.mean())
            row["prompt_accuracy"] = {"value": value, "low": low, "high": high, "n": len(among)}


def _interval(
    reading: Reading,
    hits: NDArray[np.bool_],
    within: NDArray[np.bool_],
    *,
    every: bool = False,
) -> tuple[float, float]:
    """Interval of the share of hits among some of the valid images, or of all."""
    effects = reading.effects(hits.astype(np.int64), 2, within, every=every)
    low, high = _intervals(np.bincount(hits, minlength=2), effects)
    return float(low[1]), float(high[1])


def _add_quality(rows: list[Row], encoder: str, quality: GroupQuality) -> None:
    """Distances to real images of the same group; what isn't measurable says why."""
    for row, cell in zip(rows, quality.cells, strict=True):
        entry: Row = {"reason": cell.reason, "common_n": quality.common_n}
        if cell.kernel is not None:
            found = cell.kernel
            ends = {"low": found.low, "high": found.high, "n": cell.n_generated}
            entry["kernel"] = {"value": found.value, **ends}
        if cell.frechet is not None:
            entry["frechet"] = cell.frechet
        if cell.neighbours is not None:
            for name in ("precision", "recall", "density", "coverage"):
                entry[name] = getattr(cell.neighbours, name)
        row.setdefault("quality", {})[encoder] = entry


def hit_matrix(reading: Reading) -> dict[str, Any] | None:
    """Valid images by requested (rows) and measured group; None if no group was asked for."""
    requested = reading.sample.requested
    if requested is None:
        return None
    chosen = tuple(reading.task.attributes)
    groups = reading.groups(chosen)
    pairs = requested[reading.valid] * len(groups) + reading.index(chosen)[reading.valid]
    matrix = np.bincount(pairs, minlength=len(groups) ** 2).reshape(len(groups), -1)
    return {"groups": groups, "counts": matrix.tolist()}


def validity_by_requested(
    reading: Reading,
    valid: NDArray[np.bool_] | None = None,
    chosen: NDArray[np.int64] | None = None,
) -> list[Row] | None:
    """Validity of the images of each requested group; None if no group was asked for.

    It can't be split by measured group: an image that isn't valid has none.

    Args:
        reading: The sample.
        valid: (M,) what passes for valid of the chosen images; None for the validity check.
        chosen: (M,) places of the images that were looked at; None for all.
    """
    requested = reading.sample.requested
    if requested is None:
        return None
    places = np.arange(len(requested)) if chosen is None else chosen
    passed = np.zeros(len(requested), dtype=bool)
    passed[places] = reading.valid if valid is None else valid
    looked = np.zeros(len(requested), dtype=bool)
    looked[places] = True
    rows: list[Row] = []
    for k, group in enumerate(reading.groups(tuple(reading.task.attributes))):
        mine = looked & (requested == k)
        row: Row = {"group": group, "n": int(mine.sum()), "value": None}
        if mine.any():
            low, high = _interval(reading, passed[mine], mine, every=True)
            value = int(passed[mine].sum()) / row["n"]
            row |= {"value": value, "low": low, "high": high}
        rows.append(row)
    return rows
