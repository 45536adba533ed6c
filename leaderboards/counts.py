"""What records hold of their counts, whatever their age: by judge, crossing and prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.record import Record
from fairbench.core.score import RANKED
from fairbench.metrics.counting import SUM_TOLERANCE

__all__ = [
    "RAW",
    "Column",
    "Confusion",
    "Counted",
    "Counts",
    "confusions_in",
    "is_discrepancy",
    "judge_values",
    "levels_of",
    "narrowed",
]

RAW = "fairness_discrepancy"

# Ends of column names of the ranked crossing -> how they measure, and whether what they give is a
# share of the largest possible size.
_NORMS = {
    "": ("l2", False),
    "normalised": ("l2", True),
    "l1": ("l1", False),
    "tv": ("tv", False),
    "mad": ("mad", False),
    "delta": ("max", True),
    "pairwise": ("pairwise", False),
    "penalised": ("l2", False),
}


@dataclass(frozen=True)
class Column:
    """How a column of discrepancies comes from counts.

    Attributes:
        crossing: Such as ``"gender/race"``.
        by_prompt: Whether it is a mean over prompts; else all prompts are taken together.
        corrected: Whether judges' errors are undone; else the first judge alone counts.
        size: One of `fairbench.metrics.seeds.SIZES`.
        relative: Whether it is a share of the largest possible size.
        penalised: Whether images that aren't valid are one more, unwanted group.
    """

    crossing: str
    by_prompt: bool
    corrected: bool
    size: str = "l2"
    relative: bool = False
    penalised: bool = False


@dataclass(frozen=True, eq=False)
class Counted:
    """What one judge counted in one run.

    Attributes:
        counts: (P, K) images of each declared group by prompt.
        target: (K,) wanted shares.
        confusion: (K, K) labelled images by true (row) and judged group, None if it isn't known.
        effect: Variance of the shares over that of independent images; None if it can't be seen.
    """

    counts: NDArray[np.int64]
    target: NDArray[np.float64]
    confusion: NDArray[np.int64] | None
    effect: float | None


class Counts:
    """Reads counts out of records.

    Records of today hold them for every judge. Older ones hold the first judge's, in their tables
    of groups, and the confusion of the judge that counted; what one of them lacks of a judge,
    another that was measured by the same judge may hold.

    Args:
        confusions: What `confusions_in` finds in all records that may hold a judge's confusion.
    """

    def __init__(self, confusions: Iterable[Confusion]) -> None:
        self._confusions: dict[tuple[str, str], Any] = {}
        for instrument, crossing, table in confusions:
            self._confusions.setdefault((instrument, crossing), table)

    @property
    def known(self) -> list[list[Any]]:
        """What it knows of judges beside the records themselves, as plain values."""
        return [[*place, table] for place, table in sorted(self._confusions.items())]

    def column(self, record: Record, name: str) -> Column | None:
        """How a column comes from counts; None if it doesn't, or if that isn't known."""
        if not is_discrepancy(name):  # most names; they take no look into the record
            return None
        ranked = _ranked_crossing(record)
        by_prompt = _by_prompt(record)
        if name == RANKED:
            return Column(ranked, by_prompt, corrected=True)
        if name.startswith(f"{RANKED}_"):
            crossing = _crossing_of(record, name)
            return Column(crossing, False, corrected=True) if crossing else None
        end = name.removeprefix(RAW).removeprefix("_")
        if end in _NORMS:
            size, relative = _NORMS[end]
            penalised = end == "penalised"
            return Column(ranked, by_prompt, False, size, relative, penalised)
        if end == "pooled":
            return Column(ranked, False, corrected=False)
        crossing = _crossing_of(record, name)
        return Column(crossing, False, corrected=False) if crossing else None

    def of(self, record: Record, column: Column) -> dict[str, Counted]:
        """Judge -> what it counted, the first judge first; those whose counts aren't held lack."""
        return narrowed(record, column, self.held(record, column.crossing, column.by_prompt))

    def held(self, record: Record, crossing: str, by_prompt: bool) -> dict[str, Counted]:
        """What every judge counted of a crossing: columns of it are `narrowed` from this.

        Args:
            record: The record.
            crossing: Such as ``"gender/race"``.
            by_prompt: Whether prompts are held apart.
        """
        estimate = record.facts.get("estimate")
        if estimate:
            judges = {
                judge: _counted(tables[crossing])
                for judge, tables in estimate["judges"].items()
                if crossing in tables
            }
        else:
            judges = self._from_tables(record, crossing, by_prompt)
        if not by_prompt:
            judges = {judge: _pooled(one) for judge, one in judges.items()}
        return judges if all(map(_has_images, judges.values())) else {}

    def _from_tables(self, record: Record, crossing: str, by_prompt: bool) -> dict[str, Counted]:
        """The first judge's counts, from a record that holds only its tables of groups."""
        pooled = _table(record, crossing)
        if pooled is None:
            return {}
        target = np.array([row["target"] for row in record.groups[crossing]], dtype=float)
        if target.min() < 0 or abs(target.sum() - 1) > SUM_TOLERANCE:
            return {}
        tables = [
            rows
            for name in record.groups
            if name.partition("|")[0] == crossing and "|" in name
            if (rows := _table(record, name)) is not None
        ]
        if not tables or sum(rows.sum() for rows in tables) != pooled.sum():
            if by_prompt and _by_prompt(record):
                return {}
            tables = [pooled]
        name = next((n for n in record.facts.get("fair", {}) if _is_of(record, n, crossing)), None)
        judge = next(iter(judge_values(record, RANKED)), "")
        confusion = self._confusions.get((_instrument(record, judge), crossing))
        effect: float | None = 1.0
        if record.card.get("batch_coupled") or "no_floor" in record.facts.get("fairness", {}):
            worth = None if name is None else sum(record.facts["fair"][name]["n"])
            effect = None if not worth else float(pooled.sum()) / worth
        known = _confusion(confusion)
        if known is not None and len(known) != len(target):
            known = None  # of other groups by the same name
        return {judge: Counted(np.stack(tables), target, known, effect)}


def narrowed(record: Record, column: Column, judges: Mapping[str, Counted]) -> dict[str, Counted]:
    """What of `Counts.held` a column is made of."""
    judges = dict(judges) if column.corrected else dict(list(judges.items())[:1])
    if not (column.penalised and judges):
        return judges
    images = _images_of_prompts(record)
    images = images if column.by_prompt else images.sum(keepdims=True)
    judges = {judge: _penalised(one, images) for judge, one in judges.items()}
    return {judge: one for judge, one in judges.items() if _has_images(one)}


def _has_images(one: Counted) -> bool:
    """Whether every prompt has images."""
    return bool(one.counts.sum(axis=1).all())


Confusion = tuple[str, str, Any]
"""Which judge, of which crossing, and its confusion as a record holds it."""


def confusions_in(record: Record) -> list[Confusion]:
    """The confusions that a record of schema 1 holds, of the judges that counted."""
    found: list[Confusion] = []
    for name, entry in record.facts.get("fair", {}).items():
        score = record.score(name)
        if score is None or "confusion" not in entry:
            continue
        crossing = _crossing_of(record, name)
        for judge in judge_values(record, name):
            if f"({judge})" in score.source or f"judge {judge}," in score.source:
                found.append((_instrument(record, judge), crossing, entry["confusion"]))
    return found


def _instrument(record: Record, judge: str) -> str:
    hashes = record.config.get("hashes", {})
    return str(hashes.get(f"judge_{judge}", f"{record.dataset} {judge}"))


def judge_values(record: Record, name: str) -> dict[str, float]:
    """Judge -> its corrected discrepancy in this run, of those that aren't refused."""
    details = record.facts.get("fairness", {}).get("corrected", {}).get(name, {})
    return {judge: float(one["value"]) for judge, one in details.items() if "value" in one}


def levels_of(record: Record, attribute: str) -> int:
    """How many levels an attribute has."""
    return len(record.groups.get(attribute, ()))


def is_discrepancy(name: str) -> bool:
    """Whether a column is a distance of shares from the target."""
    return name == RAW or name.startswith(f"{RAW}_")


def _counted(entry: Mapping[str, Any]) -> Counted:
    return Counted(
        np.array(entry["counts"], dtype=np.int64),
        np.array(entry["target"], dtype=np.float64),
        _confusion(entry["confusion"]),
        entry["effect"],
    )


def _confusion(rows: Sequence[Sequence[int]] | None) -> NDArray[np.int64] | None:
    """A judge's confusion; None if a group has no labelled image: its errors aren't known."""
    return None if rows is None else _confusion_of(tuple(map(tuple, rows)))


@lru_cache(maxsize=256)  # a few judges read all records
def _confusion_of(rows: tuple[tuple[int, ...], ...]) -> NDArray[np.int64] | None:
    table = np.array(rows, dtype=np.int64)
    table.flags.writeable = False
    return table if table.sum(axis=1).all() else None


def _pooled(one: Counted) -> Counted:
    return Counted(one.counts.sum(axis=0, keepdims=True), one.target, one.confusion, one.effect)


def _penalised(one: Counted, images: NDArray[np.int64]) -> Counted:
    """With the images that aren't valid as one more group."""
    if len(images) != len(one.counts):
        return Counted(np.zeros_like(one.counts), one.target, None, one.effect)
    invalid = np.maximum(0, images - one.counts.sum(axis=1))
    counts = np.column_stack([one.counts, invalid])
    return Counted(counts, np.r_[one.target, 0.0], None, one.effect)


def _table(record: Record, name: str) -> NDArray[np.int64] | None:
    """(K,) counts of a table of groups that declares all of them."""
    rows = record.groups.get(name)
    if not rows or any(row.get("target") is None for row in record.groups[name.split("|")[0]]):
        return None
    counts = np.array([row["count"] for row in rows], dtype=np.int64)
    declared = len(record.groups[name.split("|")[0]])
    return counts if len(counts) == declared > 1 and counts.sum() == rows[0]["n"] else None


def _images_of_prompts(record: Record) -> NDArray[np.int64]:
    """(P,) images of each prompt, valid or not: spread evenly, the first have one more."""
    estimate = record.facts.get("estimate")
    if estimate:
        return np.array(estimate["images"], dtype=np.int64)
    total = int(record.config.get("num_images", len(record.manifest)))
    prompts = len(record.config.get("prompts", [""]))
    return np.array([total // prompts + (p < total % prompts) for p in range(prompts)])


def _by_prompt(record: Record) -> bool:
    estimate = record.facts.get("estimate")
    if estimate:
        return bool(estimate["per_prompt"])
    return "by_prompt" in record.facts.get("fairness", {})


def _ranked_crossing(record: Record) -> str:
    """The crossing whose groups the target names."""
    estimate = record.facts.get("estimate")
    if estimate:
        return str(estimate["ranked"])
    wanted = list(record.config.get("target") or {})
    for name, rows in record.groups.items():
        if "|" not in name and sorted(row["group"] for row in rows) == sorted(wanted):
            return name
    return ""


def _crossing_of(record: Record, name: str) -> str:
    """The crossing at the end of a column's name, or the ranked one; empty if none is."""
    for start in (RANKED, RAW):
        if name == start:
            return _ranked_crossing(record)
        if name.startswith(f"{start}_"):
            end = name.removeprefix(f"{start}_")
            named = (n for n in record.groups if "|" not in n and n.replace("/", "_") == end)
            return next(named, "")
    return ""


def _is_of(record: Record, name: str, crossing: str) -> bool:
    """Whether what a floor rests on is told for a column of this crossing."""
    found = name.startswith(RAW) and not name.startswith(RANKED)
    return found and _crossing_of(record, name) == crossing
