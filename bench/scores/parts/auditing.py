"""Errors of judges on the images of a run, where people told what some of them show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fairbench.metrics import count_groups
from fairbench.scores.parts.crossings import Reading, crossing

__all__ = ["LEAST", "audited_confusions", "errors_of", "labelled"]

LEAST = 20
"""Labelled images of every group from which on errors are counted on them."""

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
        `LEAST` labelled valid images; and how many images each of these was counted on.

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
        counted = {reading.judge: errors_of(reading, given, chosen) for reading in readings}
        if min(int(table.sum(axis=1).min()) for table in counted.values()) < LEAST:
            continue
        audited[name] = int(next(iter(counted.values())).sum())
        for judge, table in counted.items():
            tables[judge][name] = table
    return tables, audited
