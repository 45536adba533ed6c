"""Errors of judges on the images of a run, where people told what some of them show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fairbench.metrics import count_groups, group_design_effects
from fairbench.scores.parts.crossings import Reading, crossing

__all__ = ["LEAST", "audited_confusions", "errors_of", "labelled"]

LEAST = 20
"""Labelled images of every group from which on errors are counted on them; where batches couple
images, as many independent ones as they are worth."""

Confusions = Mapping[str, Mapping[str, NDArray[np.int64]]]


def labelled(
    reading: Reading, given: Mapping[str, NDArray[np.int64]], chosen: Sequence[str]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which valid images people told all of some attributes of, (N,), and the cell, (M,)."""
    told = reading.valid.copy()
    for name in chosen:
        told &= given[name] >= 0
    picked = {name: given[name][told] for name in chosen}
    return told, crossing(picked, chosen, reading.levels)


def errors_of(
    reading: Reading, given: Mapping[str, NDArray[np.int64]], chosen: Sequence[str]
) -> NDArray[np.int64]:
    """(K, K) counts of labelled images: rows are what people saw, columns what the judge read."""
    told, truth = labelled(reading, given, chosen)
    size = len(reading.groups(chosen))
    read = reading.index(chosen)[told]
    if not len(read):
        return np.zeros((size, size), dtype=np.int64)
    return count_groups(truth * size + read, size**2).reshape(size, size)


def _worth(
    reading: Reading, given: Mapping[str, NDArray[np.int64]], chosen: Sequence[str]
) -> NDArray[np.int64] | None:
    """`errors_of` in independent images: those of a batch may be misread together.

    Rates stay what they are up to whole numbers. None where batches can't be told apart.
    """
    table = errors_of(reading, given, chosen)
    if not reading.coupled or not table.any():
        return table
    told, truth = labelled(reading, given, chosen)
    effects = group_design_effects(
        reading.index(chosen)[told], reading.sample.batch_id[told], len(table), strata=truth
    )
    if effects is None:
        return None
    return np.stack([_fewer(row, max(1.0, effects.overall)) for row in table])


def _fewer(row: NDArray[np.int64], effect: float) -> NDArray[np.int64]:
    """Whole counts that sum to a row's total over the effect, largest remainders rounded up."""
    exact = row / effect
    found = np.floor(exact).astype(np.int64)
    lacking = round(float(exact.sum())) - int(found.sum())
    found[np.argsort(found - exact, kind="stable")[:lacking]] += 1
    return found


def audited_confusions(
    readings: Sequence[Reading], given: Mapping[str, NDArray[np.int64]], confusions: Confusions
) -> tuple[Confusions, dict[str, int]]:
    """Errors of the judges, counted on the images themselves where enough of them are labelled.

    A judge that is right on real images may not be on generated ones, and then what is corrected
    by its errors on real ones is wrong. Which images people look at mustn't depend on what a judge
    said of them; a random draw doesn't.

    Args:
        readings: The images as each judge reads them.
        given: Attribute -> (N,) level that a person saw, -1 where nobody told.
        confusions: Judge -> attribute or crossing, joined by ``/`` -> (K, K) counts on held-out
            real images.

    Returns:
        The same, with those attributes and crossings replaced of which every group has at least
        `LEAST` labelled valid images; and how many images each of these was counted on. Where
        batches couple images, counts are those of as many independent images as they are worth,
        by the batches' effect on what is misread.

    Source: ``docs/metrics.md``, "Classifier error".
    """
    if not given:
        return confusions, {}
    tables = {reading.judge: dict(confusions[reading.judge]) for reading in readings}
    audited: dict[str, int] = {}
    for name in dict.fromkeys(name for table in tables.values() for name in table):
        chosen = name.split("/")
        if not all(one in given for one in chosen):
            continue
        worth = {reading.judge: _worth(reading, given, chosen) for reading in readings}
        counted = {judge: table for judge, table in worth.items() if table is not None}
        if len(counted) < len(worth):
            continue
        if min(int(table.sum(axis=1).min()) for table in counted.values()) < LEAST:
            continue
        audited[name] = int(errors_of(readings[0], given, chosen).sum())
        for judge, table in counted.items():
            tables[judge][name] = table
    return tables, audited
