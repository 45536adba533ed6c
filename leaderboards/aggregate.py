"""Records to rows: seeds become one estimate, rows are admitted, compared, then ranked.

One row is one configuration of one method; its records differ in nothing but the seed. One block
is one data set, task and backbone; only rows of one block are ever ranked against each other.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from fnmatch import fnmatchcase
from sys import intern
from typing import Any, get_args

import orjson

from fairbench.core.keys import canonical, plain
from fairbench.core.record import PerImage, Record
from fairbench.core.score import RANKED, Better, Score
from fairbench.leaderboards.admission import (
    Admission,
    Baselines,
    admit,
    declared_sampling,
    flatten,
    sampled,
    samplings,
    told_defaults,
)
from fairbench.leaderboards.averages import Averages, Cell, exact_mean, measure_together
from fairbench.leaderboards.counts import Counts
from fairbench.leaderboards.ranking import ImagesOf, ranked_row, stand
from fairbench.leaderboards.row import UNRANKED, Copies, Distance, Row
from fairbench.leaderboards.shelf import Group, Shelf, in_memory

__all__ = ["RANKED_BY", "UNRANKED", "Cell", "Row", "rows", "rows_of"]

RANKED_BY = RANKED
QUOTA_CHANCE = 0.001
ENOUGH_SEEDS = 3
_RECORDS_AT_ONCE = 48

# The stage of `Record.seconds` in which images are made; training and scoring are others.
_SAMPLING_STAGE = "generate"


def _no_images(record: Record) -> PerImage | None:
    """What is known of single images isn't at hand."""
    return None


def rows(
    records: Iterable[Record],
    *,
    dataset: str | None = None,
    task: str | None = None,
    images: ImagesOf = _no_images,
    warn: Callable[[str], None],
) -> list[Row]:
    """The rows of a leaderboard: block by block, ranked ones first, incomparable ones last.

    Args:
        records: Any records; only complete ones are used. Rows are admitted and compared over all
            of them, whatever is kept of the outcome.
        dataset: Keep this data set alone.
        task: Keep this task alone.
        images: Gives what is known of each image of a record, for comparisons in pairs; None
            where that isn't kept.
        warn: Told in one line about each record or score that is left out.
    """
    return rows_of(in_memory(records, images), dataset=dataset, task=task, warn=warn)


def rows_of(
    shelf: Shelf,
    *,
    dataset: str | None = None,
    task: str | None = None,
    warn: Callable[[str], None],
) -> list[Row]:
    """As `rows`, from a shelf that may hold more records than there is room for in memory."""
    for remembered in (samplings, told_defaults):
        remembered.cache_clear()  # what is installed, or on the disk, may have changed since
    by_configuration: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    kept = shelf.records
    answered = [_question(record) for record in kept]
    newest = _newest(kept, answered)

    def is_asked_for(record: Record) -> bool:
        return dataset in (None, record.dataset) and task in (None, record.task)

    def tell(record: Record) -> Callable[[str], None]:
        return warn if is_asked_for(record) else lambda line: None

    for record, question in zip(kept, answered, strict=True):
        if record.status != "complete":
            tell(record)(f"{_name(record)}: left out, because its run is {record.status}")
            continue
        if _breadth(record) < newest[question]:
            tell(record)(
                f"{_name(record)}: left out, because another record scores its images anew"
            )
            continue
        configuration = _text_of(_without_seed(record))
        by_configuration[record.dataset, record.task, record.method, configuration].append(record)
    counts = Counts(
        one
        for group in by_configuration.values()
        for record in group
        for one in shelf.confusions(record)
    )
    # Baselines may stand in blocks that aren't asked for.
    wanted = [
        (_by_seed(group, tell(group[0])), tell(group[0]))
        for _, group in sorted(by_configuration.items())
        if is_asked_for(group[0]) or group[0].method == "vanilla"
    ]

    del answered, newest, by_configuration  # helpers would take them along

    def work(groups: Sequence[Group]) -> Iterator[Any]:
        for some in _few(groups):
            every = [[shelf.whole(run) for run in group.rows[0]] for group in some]
            averages = [Averages(runs, counts) for runs in every]
            columns = [_columns(runs) for runs in every]
            measure_together(zip(averages, columns, strict=True))
            for runs, one, columns_ in zip(every, averages, columns, strict=True):
                yield _worked_out(runs, one, columns_, shelf)

    merged: dict[tuple[str, ...], tuple[Row, list[Record]]] = {}
    every = shelf.kept([Group([runs]) for runs, _ in wanted], counts.known, work)
    for (runs, told), found in zip(wanted, every, strict=True):
        for line in found["warnings"]:
            told(line)
        row = _merged(runs, found)
        merged[row.place] = row, runs
    baselines = Baselines(row for row, _ in merged.values())
    asked = [row for row, runs in merged.values() if is_asked_for(runs[0])]
    asked.sort(key=lambda row: row.block)
    blocks = [list(block) for _, block in itertools.groupby(asked, key=lambda row: row.block)]
    decided = [admit(block, baselines) for block in blocks]
    admitted = [
        [row for row in block if not one.reasons[row.place]]
        for block, one in zip(blocks, decided, strict=True)
    ]

    def compare(groups: Sequence[Group]) -> Iterator[Any]:
        for group in groups:
            by, values = group.detail
            cells = [Cell(*value) for value in values]
            yield _standings(group.rows, cells, by, counts, shelf)

    questions = [
        Group(
            [merged[row.place][1] for row in rows_],
            [one.ranked_by, [_values(row.scores[one.ranked_by]) for row in rows_]],
        )
        for rows_, one in zip(admitted, decided, strict=True)
    ]
    arranged = []
    answers = shelf.kept(questions, counts.known, compare)
    for block, one, rows_, found in zip(blocks, decided, admitted, answers, strict=True):
        places = {row.place: place for row, place in zip(rows_, found, strict=True)}
        arranged += _arrange(block, one, places)
    return arranged


def _few(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups of one row each in portions of not many records, which are held in memory."""
    some: list[Group] = []
    for group in groups:
        if some and sum(len(one.rows[0]) for one in [*some, group]) > _RECORDS_AT_ONCE:
            yield some
            some = []
        some.append(group)
    if some:
        yield some


def _standings(
    rows_: Sequence[Sequence[Record]],
    cells: Sequence[Cell],
    by: str,
    counts: Counts,
    shelf: Shelf,
) -> list[list[Any]]:
    """Tie class, first and last rank and whether it is compared in pairs, of each admitted row."""
    ranked = [
        ranked_row([shelf.counted(run) for run in runs], cell, by, counts, shelf.images)
        for runs, cell in zip(rows_, cells, strict=True)
    ]
    return [
        [place.tie_class, *place.ranks, one.paired]
        for place, one in zip(stand(ranked), ranked, strict=True)
    ]


def _newest(
    records: Iterable[Record], questions: Iterable[str]
) -> dict[str, tuple[int, int, int]]:
    """Question -> the best `_breadth` that a complete record answers it with."""
    newest: dict[str, tuple[int, int, int]] = {}
    for record, question in zip(records, questions, strict=True):
        if record.status == "complete":
            newest[question] = max(newest.get(question, (0, 0, 0)), _breadth(record))
    return newest


def _breadth(record: Record) -> tuple[int, int, int]:
    """Version of the metrics, and how many instruments and control variables they come with."""
    config = record.config
    hashes, controls = config.get("hashes", ()), config.get("control", ())
    return int(config.get("metric_version", 0)), len(hashes), len(controls)


def _question(record: Record) -> str:
    """What images were measured, and for which task and target."""
    images = record.generation_key or record.config.get("images", record.key)
    return _text_of([record.dataset, record.task, record.method, images, _target(record)])


def _text_of(value: Any) -> str:
    """One text for values that are equal as JSON, as of `canonical`, in a fifth of its time."""
    try:
        try:
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
        except TypeError:  # a record in memory may hold sets or NumPy's numbers
            return orjson.dumps(plain(value), option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:  # names that are no text, whole numbers beyond 64 bits
        return canonical(value)


def _target(record: Record) -> Any:
    return record.config.get("target")


def _by_seed(records: Sequence[Record], warn: Callable[[str], None]) -> list[Record]:
    """The newest record of each seed, ascending."""
    by_seed: dict[int, Record] = {}
    for record in sorted(records, key=lambda record: (record.created, record.key)):
        seed = int(record.config.get("seed", 0))
        if seed in by_seed:
            warn(f"{_name(by_seed[seed])}: left out, because {record.key} repeats its seed")
        by_seed[seed] = record
    return [by_seed[seed] for seed in sorted(by_seed)]


def _merged(runs: Sequence[Record], found: Mapping[str, Any]) -> Row:
    """One row of the records that differ in the seed only.

    Args:
        runs: One a seed; their configuration suffices.
        found: What `_worked_out` made of them.
    """
    first = runs[0]
    seconds = [_seconds_per_image(run) for run in runs]
    copies, quality = found["copies"], found["quality"]
    row = Row(
        dataset=first.dataset,
        task=first.task,
        backbone=str(first.config.get("backbone") or ""),
        rank=UNRANKED,
        tie_class="",
        why_unranked="",
        reasons=(),
        ranked_by=RANKED_BY,
        compared="",
        method=first.method,
        label="",
        role=str(first.card.get("role", "method")),
        supervision=tuple(sorted(first.card.get("supervision", ()))),
        comparable="yes",
        flags=tuple(found["flags"]),
        seeds=tuple(int(run.config.get("seed", 0)) for run in runs),
        n=_images(first),
        scores={intern(name): _cell(values) for name, values in found["cells"].items()},
        seconds_per_image=_mean(value for value in seconds if value is not None),
        network_calls_per_image=exact_mean(run.network_calls_per_image for run in runs),
        extra_parameters=first.extra_parameters,
        config=_without_seed(first),
        keys=tuple(run.key for run in runs),
        luck=False,
        unchecked=(),
        copies=None if copies is None else Copies(**copies),
        card=first.card,
        may_rank=_may_rank(first.card),
        ranked_preset=str(first.card.get("ranked_preset") or ""),
        quality=None if quality is None else Distance(**quality),
        real_distance=found["real_distance"],
        given=None,
        sampled=sampled(first.dataset, str(first.config.get("backbone") or ""), first.config),
    )
    told = found["given"]
    return row if told is None else replace(row, given=_given(row, told))


def _worked_out(
    runs: Sequence[Record], averages: Averages, columns: _Columns, shelf: Shelf
) -> dict[str, Any]:
    """What a row has of its records beside their configuration, as plain values.

    Args:
        runs: Whole records, one a seed.
        averages: Of their columns.
        columns: Of their scores.
        shelf: Knows their images.
    """
    lines: list[str] = []
    cells = _cells(runs, averages, columns, lines.append)
    copies, quality = _copies(runs, shelf.hashes), _quality(runs)
    return {
        "flags": list(_flags(runs)),
        "cells": {name: _values(cell) for name, cell in cells.items()},
        "copies": None if copies is None else asdict(copies),
        "quality": None if quality is None else asdict(quality),
        "real_distance": max(_real_distance(run) for run in runs),
        "given": runs[0].facts.get("baseline"),
        "warnings": lines,
    }


_CELL = [one.name for one in fields(Cell)]
_BETTER: Mapping[str, Better] = {name: name for name in get_args(Better)}


def _cell(values: Sequence[Any]) -> Cell:
    """A cell whose texts, of which there are few, are those of other cells."""
    value, low, high, interval, floor, n, better, unit, older = values
    return Cell(value, low, high, intern(interval), floor, n, _BETTER[better], intern(unit), older)


def _values(cell: Cell) -> list[Any]:
    """What `Cell` takes, in its order."""
    return [getattr(cell, name) for name in _CELL]


def _given(row: Row, told: Mapping[str, Any]) -> Row:
    """The baseline that a record of images made elsewhere names."""
    cells = {
        name: Cell(
            float(one["value"]), one["low"], one["high"], "", None, int(one["n"]), "neither", ""
        )
        for name, one in told["scores"].items()
    }
    near = next((c for n, c in cells.items() if fnmatchcase(n, "kernel_*_reweighted")), None)
    quality = None
    if near is not None:
        ends = [near.value if end is None else end for end in (near.low, near.high)]
        quality = Distance(near.value, *ends)
    return replace(row, method=str(told["method"]), scores=cells, quality=quality, seeds=(0,))


def _copies(
    runs: Sequence[Record], hashes_of: Callable[[Record], Sequence[Any] | None]
) -> Copies | None:
    """Exact copies among the images of all runs; None if a run's hashes aren't known."""
    counted = [run.facts.get("copies") for run in runs]
    leaks = [None if one is None else one.get("evaluation") for one in counted]
    leaked = None if None in leaks else sum(int(one) for one in leaks if one is not None)
    hashes: Counter[Any] = Counter()
    copies = total = 0
    for run, told in zip(runs, counted, strict=True):
        mine = hashes_of(run)
        if mine is not None and len(mine):
            hashes.update(mine)
        elif told is not None:  # then copies between runs stay unseen
            copies += int(told["images"]) - int(told["distinct"])
        else:
            return None
        total += len(mine or ()) or int((told or {}).get("images", 0))
    # Every image of a picture that occurs more than once is a copy but for one.
    copies += sum(count - 1 for count in hashes.values())
    return Copies(copies / max(1, total), total - copies, leaked)


def _quality(runs: Sequence[Record]) -> Distance | None:
    """Kernel distance of the first encoder to real images in the row's own shares."""
    first = next((s for s in runs[0].scores if fnmatchcase(s.name, "kernel_*_reweighted")), None)
    if first is None:
        return None
    found = [score for run in runs if (score := run.score(first.name)) is not None]
    if len(found) < len(runs):
        return None
    # An interval that doesn't hold its own value says nothing.
    ends = [
        (s.low, s.high)
        if s.low is not None and s.high is not None and s.low <= s.value <= s.high
        else (s.value, s.value)
        for s in found
    ]
    # The real images are the same in all runs, so their error doesn't average out.
    low, high = (exact_mean(pair[side] for pair in ends) for side in (0, 1))
    return Distance(exact_mean(score.value for score in found), low, high)


def _real_distance(run: Record) -> float:
    found = (run.facts.get("estimate") or {}).get("real_distance")
    return 0.0 if found is None else float(found)


def _flags(runs: Sequence[Record]) -> tuple[str, ...]:
    checks = [run.facts.get("fairness", {}).get("quota", {}) for run in runs]
    if any(check.get("quota", False) for check in checks):
        return ("quota",)
    statistics_ = [check.get("statistic") for check in checks]
    if len(runs) < 2 or None in statistics_:
        return ()
    # One run of one prompt can't tell; several that all hit the target exactly can.
    from scipy.special import chdtr

    degrees = sum(int(check["degrees"]) for check in checks)
    chance = float(chdtr(degrees, sum(float(value) for value in statistics_ if value is not None)))
    return ("quota",) if degrees and chance < QUOTA_CHANCE else ()


_Columns = Mapping[str, Sequence[Score]]


def _columns(runs: Sequence[Record]) -> _Columns:
    """Name -> a score, in every run that has it."""
    by_name: dict[str, list[Score]] = defaultdict(list)
    for run in runs:
        for score in run.scores:
            by_name[score.name].append(score)
    return by_name


def _cells(
    runs: Sequence[Record], averages: Averages, columns: _Columns, warn: Callable[[str], None]
) -> dict[str, Cell]:
    cells = {}
    for name, scores in columns.items():
        if len(scores) < len(runs):
            warn(f"{_name(runs[0])}: {name} left out; {len(scores)} of {len(runs)} seeds have it")
            continue
        cell = averages.cell(scores)
        if cell is None:
            warn(
                f"{_name(runs[0])}: {name} left out; its seeds have it by different versions of "
                "its definition; bring them up to date by fairbench rescore"
            )
            continue
        cells[name] = cell
    return cells


def _arrange(
    block: list[Row], decided: Admission, places: Mapping[tuple[str, ...], Sequence[Any]]
) -> list[Row]:
    """Label and order the rows of one block, with what was decided and found of them."""
    told = []
    for row in _label(block):
        reasons, place = decided.reasons[row.place], places.get(row.place)
        flags = [*row.flags, *(["quality?"] if row.place in decided.doubtful else [])]
        row = replace(
            row,
            comparable=decided.comparable[row.place],
            why_unranked=reasons[0].word if reasons else "",
            reasons=tuple(reason.text for reason in reasons),
            ranked_by=decided.ranked_by,
            luck=decided.seeds >= ENOUGH_SEEDS,
            unchecked=decided.unchecked,
            flags=tuple(flags),
        )
        if place is not None:
            tie_class, first, last, paired = place
            row = replace(
                row,
                rank=str(first) if first == last else f"{first}–{last}",
                tie_class=_letters(tie_class),
                compared="paired" if paired else "unpaired",
            )
        told.append(row)
    return sorted(told, key=_order)


def _letters(number: int) -> str:
    """A, B, …, Z, then AA, AB and so on."""
    text = ""
    while number >= 0:
        text = chr(ord("A") + number % 26) + text
        number = number // 26 - 1
    return text


def _order(row: Row) -> tuple[Any, ...]:
    cell = row.scores.get(row.ranked_by)
    value = math.inf if cell is None else cell.value
    place = (not row.tie_class, len(row.tie_class), row.tie_class)
    return (*place, row.comparable != "yes", value, row.method, row.label, row.keys)


def _label(block: Sequence[Row]) -> list[Row]:
    """Rows with labels that tell them from other rows of their method and preset."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in block:
        groups[row.method, _preset(row)].append(row)
    labels: dict[tuple[str, ...], str] = {}
    for group in groups.values():
        choices = [_choices(row) for row in group]
        varying = _varying(choices)
        told = list(zip(group, choices, strict=True))
        short = [_label_of(row, chosen, varying, _defaults(row)) for row, chosen in told]
        whole = [_label_of(row, chosen, varying, {}) for row, chosen in told]
        # Records from before a parameter was there are told from its default by whole ones only.
        names = short if len(set(short)) == len(set(whole)) else whole
        labels.update((row.place, label) for row, label in zip(group, names, strict=True))
    return [replace(row, label=labels[row.place]) for row in block]


def _preset(row: Row) -> str:
    return str(row.config.get("preset") or "")


def _choices(row: Row) -> dict[str, str]:
    told = ("version", "bias", "batch_size", "network_batch", "decode_batch", "sampling")
    chosen = {name: row.config[name] for name in told if name in row.config}
    target = row.config.get("target") or {}
    if len(set(target.values())) > 1:  # even shares are every task's own
        chosen["target"] = target
    return dict(flatten({**row.config.get("parameters", {}), **chosen}))


def _varying(choices: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the parameters in which rows of these choices differ, sorted."""
    names = sorted(set().union(*choices))
    return [name for name in names if len({choice.get(name) for choice in choices}) > 1]


def _defaults(row: Row) -> dict[str, str]:
    """Today's parameters of the row's method and preset, and its backbone's sampling settings."""
    declared = declared_sampling(row.dataset, row.backbone)
    sampling = dict(flatten({"sampling": declared})) if declared else {}
    return {**told_defaults(row.method, _preset(row)), **sampling}


def _label_of(
    row: Row, choices: Mapping[str, str], varying: Sequence[str], defaults: Mapping[str, str]
) -> str:
    told = [name for name in varying if name in choices and choices[name] != defaults.get(name)]
    parts = [f"{name}={choices[name]}" for name in told]
    return ", ".join(filter(None, [_preset(row), *parts]))


def _may_rank(card: Mapping[str, Any]) -> bool:
    return bool(card.get("ranked", True)) and card.get("role") not in ("control", "oracle")


def _without_seed(record: Record) -> dict[str, Any]:
    # Control variables add tables and change no score.
    return {k: value for k, value in record.config.items() if k not in ("seed", "control")}


def _images(record: Record) -> int:
    return int(record.config.get("num_images", len(record.manifest)))


def _seconds_per_image(record: Record) -> float | None:
    seconds, images = record.seconds.get(_SAMPLING_STAGE), _images(record)
    return seconds / images if seconds is not None and images else None


def _mean(values: Iterable[float]) -> float | None:
    kept = list(values)
    return exact_mean(kept) if kept else None


def _name(record: Record) -> str:
    return f"{record.dataset}/{record.method}/{record.key}"
