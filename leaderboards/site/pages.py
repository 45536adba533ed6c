"""Writes the pages: a board to a folder of files."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fairbench.core.errors import ContractError, FairbenchError, InputError
from fairbench.core.record import Record
from fairbench.core.text import shown
from fairbench.datasets.base import get_dataset
from fairbench.leaderboards.averages import Cell
from fairbench.leaderboards.board import Board
from fairbench.leaderboards.columns import (
    ARROWS,
    MISSING,
    blocks,
    is_main,
    method_of,
    notes_of,
    score_column,
    score_names,
    significant,
    standing_of,
)
from fairbench.leaderboards.curves import Curve, curves_of
from fairbench.leaderboards.formats.csv import to_csv
from fairbench.leaderboards.plane import plane_of
from fairbench.leaderboards.row import Row
from fairbench.leaderboards.site import charts
from fairbench.leaderboards.site.reported import fair_value, reported
from fairbench.methods import known_methods
from fairbench.metrics.counting import wilson_interval
from fairbench.metrics.discrepancies import discrepancy_family
from fairbench.metrics.rosetta import ROSETTA
from fairbench.runs.question import command_of
from fairbench.scores.catalogue import spec_of, specs
from fairbench.storage.files import atomic_write

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["write_site"]

CSV = "leaderboard.csv"
_PICTURE_BYTES = 16 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"


def write_site(board: Board, folder: Path) -> None:
    """Write a board as web pages that need no network.

    ``index.html`` has every table, ``tables/`` the charts of each, ``rows/`` everything about each
    row and the records behind it.

    Args:
        board: What to write.
        folder: Where to; made if missing. Files of other boards in it are replaced one by one.

    Raises:
        InputError: If it can't be written to.
    """
    try:
        for name, content in _files(board):
            with atomic_write(folder / name) as file:
                file.write(content)
    except OSError as error:
        raise InputError(f"--output {folder} can't be written: {error.strerror}") from error


def _files(board: Board) -> Iterator[tuple[str, bytes]]:
    site = _Site(board)
    yield CSV, to_csv(board.rows).encode()
    yield "index.html", site.index()
    yield "columns.html", site.columns()
    yield "methods.html", site.methods()
    yield "disagree.html", site.disagree()
    yield "labels.html", site.labels()
    for title, block in blocks(board.rows):
        yield f"tables/{_block_name(block)}.html", site.table(title, block)
        for row in block:
            yield from site.row(row, title, block)


class _Site:
    """Everything that pages share."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._tables = [
            {
                "name": _block_name(block),
                "title": title,
                "notes": notes_of(block),
                **_table_of(block),
                "dataset": shown(block[0].dataset),
                "task": shown(block[0].task),
                "backbone": shown(block[0].backbone),
            }
            for title, block in blocks(board.rows)
        ]

    def index(self) -> bytes:
        filters = {
            "kind": ("Kind of method", sorted({_kind(row) for row in self._board.rows})),
            "role": ("Role", sorted({shown(row.role) for row in self._board.rows})),
            "supervision": (
                "Learns from",
                sorted(
                    {shown(s) for row in self._board.rows for s in row.supervision or ("nothing",)}
                ),
            ),
            "dataset": ("Data set", sorted({str(one["dataset"]) for one in self._tables})),
            "task": ("Task", sorted({str(one["task"]) for one in self._tables})),
            "backbone": ("Backbone", sorted({str(one["backbone"]) for one in self._tables})),
        }
        return _page(
            "index.html",
            "Leaderboard",
            "",
            tables=self._tables,
            filters=filters,
            csv=CSV,
            older=any(map(_has_older, self._board.rows)),
        )

    def columns(self) -> bytes:
        shown = {name for row in self._board.rows for name in row.scores}
        known = [
            {
                "name": spec.display or spec.pattern,
                "meaning": spec.meaning,
                "better": spec.better,
                "unit": spec.unit,
                "scale": f"{spec.scale:g}",
                "needs": spec.needs,
                "version": spec.version,
                "here": any(fnmatchcase(name, spec.pattern) for name in shown),
            }
            for spec in specs()
        ]
        return _page("columns.html", "What each column is", "", specs=known)

    def methods(self) -> bytes:
        cards: dict[str, dict[str, Any]] = {}
        for name, method in known_methods()[0].items():
            cards[name] = _card({field: getattr(method.card, field) for field in _CARD})
            cards[name]["presets"] = sorted(method.presets)
        for row in self._board.rows:
            if row.method not in cards:
                cards[row.method] = _card(row.card) | {"presets": []}
        told = [
            {**card, "name": shown(name), "anchor": _anchor(name)}
            for name, card in sorted(cards.items())
        ]
        return _page("methods.html", "The methods", "", cards=told)

    def labels(self) -> bytes:
        return _page("labels.html", "What the labels are not", "")

    def disagree(self) -> bytes:
        return _page(
            "disagree.html",
            "Why published numbers disagree",
            "",
            examples=list(self._examples()),
            reported=reported(),
        )

    def table(self, title: str, block: Sequence[Row]) -> bytes:
        found = plane_of(block)
        spec = spec_of(found.quality) if found.quality else None
        scale = 1.0 if spec is None else spec.scale
        return _page(
            "table.html",
            title,
            "../",
            notes=notes_of(block),
            name=_block_name(block),
            plane=charts.plane(found, title, scale) if found.points else None,
            found=found,
            scale=scale,
            curves=[
                charts.curve(one, block[0].ranked_by, scale) for one in self._curves_of(block)
            ],
        )

    def _curves_of(self, block: Sequence[Row]) -> Iterator[Curve]:
        """Curves with a point in this table; those over steps or guidance pass through others."""
        first, mine = block[0], {row.place for row in block}
        surroundings = [
            row
            for row in self._board.rows
            if (row.dataset, row.task, row.network) == (first.dataset, first.task, first.network)
        ]
        for curve in curves_of(surroundings):
            if any(row.place in mine for _, row in curve.points):
                yield curve

    def row(self, row: Row, title: str, block: Sequence[Row]) -> Iterator[tuple[str, bytes]]:
        name, records = _row_name(row), self._board.records(row)
        pictures = []
        if _may_show(row.dataset):
            for number, record in enumerate(records):
                picture = _picture(self._board.results, record)
                if picture is not None:
                    path = f"pictures/{name}-{number}.png"
                    yield path, picture
                    pictures.append({"path": f"../{path}", "key": shown(record.key)})
        page = _page(
            "row.html",
            f"{method_of(row)}: {title}",
            "../",
            row=row,
            method=method_of(row),
            anchor=_anchor(row.method),
            block=title,
            block_name=_block_name(block),
            standing=standing_of(row),
            reasons=[shown(reason) for reason in row.reasons],
            flags=[shown(flag) for flag in row.flags],
            supervision=[shown(one) for one in row.supervision] or ["nothing"],
            scores=_scores_of(row),
            older=_has_older(row),
            bars=[charts.bars(*one) for one in _share_tables(records, row)],
            heat=[charts.heat_map(*one) for one in _share_tables(records, row) if "/" in one[0]],
            strips=[charts.strips(*one) for one in _strips(records)],
            pictures=pictures,
            runs=[_run_of(record) for record in records],
        )
        yield f"rows/{name}.html", page

    def _examples(self) -> Iterator[dict[str, Any]]:
        """One set of images under every definition: of a task asked prompt by prompt, if any."""
        for row in sorted(self._board.rows, key=lambda row: (row.method != "vanilla", row.place)):
            records = self._board.records(row)
            found = _definitions(records[0])
            if found is not None and found["prompts"] > 1:
                yield {
                    **found,
                    "title": " · ".join(shown(p) for p in row.block if p),
                    "method": method_of(row),
                    "page": f"rows/{_row_name(row)}.html",
                }
                return
        for row in sorted(self._board.rows, key=lambda row: (row.method != "vanilla", row.place)):
            found = _definitions(self._board.records(row)[0])
            if found is not None:
                yield {
                    **found,
                    "title": " · ".join(shown(p) for p in row.block if p),
                    "method": method_of(row),
                    "page": f"rows/{_row_name(row)}.html",
                }
                return


# What pages are made of


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["shown"] = lambda value: shown(str(value))
    return made


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


@cache
def _policy() -> str:
    """Nothing may be loaded but pictures beside the page; only this script and style are run."""
    script, style = (_hash(_asset(name)) for name in ("board.js", "board.css"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; img-src 'self' file:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _page(template: str, title: str, root: str, **values: Any) -> bytes:
    from markupsafe import Markup

    text = (
        _environment()
        .get_template(template)
        .render(
            title=shown(title),
            root=root,
            policy=_policy(),
            style=Markup(_asset("board.css")),
            script=Markup(_asset("board.js")),
            here=template,
            **values,
        )
    )
    # Surrogates of undecodable file names aren't text.
    return text.encode("utf-8", "replace")


def _named(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _row_name(row: Row) -> str:
    return _named(*row.place)


def _block_name(block: Sequence[Row]) -> str:
    return _named(*block[0].block)


def _anchor(method: str) -> str:
    return f"method-{_named(method)}"


def _kind(row: Row) -> str:
    return shown(str(row.card.get("family") or "not known"))


def _table_of(block: Sequence[Row]) -> dict[str, Any]:
    """Header and rows of the readable table."""
    names = [name for name in score_names(block) if is_main(name)]
    columns = {name: score_column(name, block) for name in names}
    header = [
        ("rank", True),
        ("method", False),
        ("role", False),
        ("learns from", False),
        ("seeds × n", True),
        *((columns[name].header, True) for name in names),
        ("seconds/image ↓", True),
        ("calls/image ↓", True),
        ("extra parameters ↓", True),
        ("flags", False),
    ]
    lines = []
    for place, row in enumerate(block):
        cells = [
            (f"{row.n * len(row.seeds)}", f"{len(row.seeds)} × {row.n:,}"),
            *((_sortable(row.scores.get(name)), columns[name].text(row)) for name in names),
            (_number(row.seconds_per_image), significant(row.seconds_per_image)),
            (_number(row.network_calls_per_image), significant(row.network_calls_per_image)),
            (str(row.extra_parameters), f"{row.extra_parameters:,}"),
        ]
        learns = [shown(one) for one in row.supervision] or ["nothing"]
        lines.append(
            {
                "place": place,
                "page": f"rows/{_row_name(row)}.html",
                "method": method_of(row),
                "standing": standing_of(row),
                "ranked": bool(row.tie_class),
                "tie": row.tie_class,
                "reason": shown("; ".join(row.reasons)),
                "role": shown(row.role),
                "kind": _kind(row),
                "learns": learns,
                "cells": cells,
                "unverified": "evaluated" in row.config,
                "flags": ", ".join(shown(flag) for flag in row.flags),
            }
        )
    return {"header": header, "lines": lines, "count": len(block)}


def _sortable(cell: Cell | None) -> str:
    return "" if cell is None else repr(cell.value)


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _has_older(row: Row) -> bool:
    """Whether a score is marked as one of an older definition."""
    return any(cell.older for cell in row.scores.values())


def _scores_of(row: Row) -> list[dict[str, str]]:
    told = []
    for name in score_names([row]):
        cell = row.scores[name]
        column = score_column(name, [row])
        told.append(
            {
                "name": column.header,
                "value": column.text(row),
                "n": f"{cell.n:,}",
                "interval": shown(cell.interval),
                "better": ARROWS[cell.better].strip() or MISSING,
            }
        )
    return told


_CARD = (
    "title",
    "arxiv",
    "family",
    "supervision",
    "reference_images",
    "role",
    "ranked",
    "ranked_preset",
    "batch_coupled",
    "uses_target",
    "trains",
    "extra_parameters",
    "extra_network_calls",
    "deviations",
)


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a card; an old record's may lack fields."""
    told: dict[str, Any] = {name: card.get(name) for name in _CARD}
    arxiv = str(told["arxiv"] or "")
    told["arxiv"] = arxiv if arxiv.replace(".", "").isdigit() else ""
    told["supervision"] = sorted(shown(str(one)) for one in told["supervision"] or ())
    told["deviations"] = [shown(str(one)) for one in told["deviations"] or ()]
    return {
        name: shown(value) if isinstance(value, str) else value for name, value in told.items()
    }


def _run_of(record: Record) -> dict[str, Any]:
    """What is told of one record: where it came from, and how to make it again."""
    command = ""
    if "evaluated" not in record.config:
        with suppress(FairbenchError, KeyError, TypeError, ValueError, AttributeError):
            command = shown(command_of(record))
    environment = dict(record.environment)
    return {
        "key": shown(record.key),
        "seed": record.config.get("seed", ""),
        "created": shown(record.created),
        "command": command,
        "config": legible_json(record.config),
        "environment": legible_json(environment),
        "seconds": {shown(stage): f"{float(s):.1f}" for stage, s in record.seconds.items()},
        "memory": f"{record.peak_memory_mib:.0f}",
        "facts": {
            "schema": record.schema,
            "generation key": shown(record.generation_key or "none: made elsewhere"),
            "sidecar": shown(record.sidecar or "none"),
            "rescored": "no" if record.rescored is None else legible_json(record.rescored),
        },
    }


def legible_json(value: object) -> str:
    """JSON with an indent; line breaks are its own."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=dict)
    return "\n".join(shown(line) for line in text.split("\n"))


# Shares


def _pooled(records: Sequence[Record], table: str) -> list[charts.Share]:
    """Counts of all seeds together; nothing if a record lacks the table."""
    found = [record.groups.get(table) for record in records]
    if not found or any(not rows for rows in found):
        return []
    groups = [str(row["group"]) for row in found[0] or ()]
    if any([str(row["group"]) for row in rows or ()] != groups for rows in found):
        return []
    told: list[charts.Share] = []
    for index, group in enumerate(groups):
        rows = [(rows or [])[index] for rows in found]
        count, n = (sum(int(row.get(name) or 0) for row in rows) for name in ("count", "n"))
        if n <= 0 or not 0 <= count <= n:
            return []
        low, high = wilson_interval(count, n)
        target = rows[0].get("target")
        told.append(
            (group, count, n, count / n, low, high, None if target is None else float(target))
        )
    return told


def _share_tables(records: Sequence[Record], row: Row) -> list[tuple[str, list[charts.Share]]]:
    """Tables over all prompts, the ranked one first."""
    wanted = sorted(row.config.get("target") or {})
    found = [
        (name, shares)
        for name in records[0].groups
        if "|" not in name and (shares := _pooled(records, name))
    ]
    return sorted(found, key=lambda one: sorted(share[0] for share in one[1]) != wanted)


def _strips(records: Sequence[Record]) -> Iterator[tuple[str, dict[str, list[charts.Share]]]]:
    for table in [name for name in records[0].groups if "|" not in name]:
        prompts = {
            name.partition("|")[2]: shares
            for name in records[0].groups
            if name.partition("|")[0] == table and "|" in name
            if (shares := _pooled(records, name))
        }
        if len(prompts) > 1:
            yield table, prompts


def _definitions(record: Record) -> dict[str, Any] | None:
    """Every published measure of one record's images; None if it holds no counts for that."""
    ranked = sorted(record.config.get("target") or {})
    table = next(
        (
            name
            for name, rows in record.groups.items()
            if "|" not in name and sorted(str(row["group"]) for row in rows) == ranked
        ),
        None,
    )
    shares = _pooled([record], table) if table else []
    if not shares or any(share[6] is None for share in shares):
        return None
    by_prompt = [
        one for name, prompts in _strips([record]) if name == table for one in prompts.values()
    ]
    try:
        pooled = _family(shares)
        each = [_family(one) for one in by_prompt] or [pooled]
    except ContractError:  # counts of nothing, or wanted shares that are none
        return None
    mean = {name: float(np.mean([one[name] for one in each])) for name in pooled}
    n, groups = shares[0][2], len(shares)
    lines = []
    for one in ROSETTA:
        values = {
            "source": one.source,
            "published": one.published_name,
            "member": one.member or "none of them",
            "labels": one.labels,
            "aggregation": one.aggregation,
            "note": "; ".join(
                filter(None, [one.note, "unverified" if one.evidence == "unverified" else ""])
            ),
            "pooled": MISSING,
            "mean": MISSING,
            "fair": MISSING,
        }
        if one.member is not None:
            values["pooled"] = f"{pooled[one.member]:.3f}"
            values["mean"] = f"{mean[one.member]:.3f}"
            values["fair"] = significant(fair_value(one.member, n, groups))
        lines.append(values)
    return {
        "lines": lines,
        "n": f"{n:,}",
        "prompts": len(each),
        "shares": ", ".join(f"{shown(s[0])} {s[3]:.1%}" for s in shares),
    }


def _family(shares: Sequence[charts.Share]) -> dict[str, float]:
    total = sum(share[1] / share[2] for share in shares)
    if not total:
        raise ContractError("shares of no images")
    found = discrepancy_family(
        np.array([share[1] / share[2] for share in shares]) / total,
        [share[6] or 0.0 for share in shares],
    )
    return {name: getattr(found, name) for name in found.__dataclass_fields__}


# Pictures


@cache
def _may_show(dataset: str) -> bool:
    """Whether the licence of a data set lets its images be shown; no if it isn't known."""
    with suppress(FairbenchError, OSError):
        return get_dataset(dataset).card.may_publish_images
    return False


def _picture(results: Path, record: Record) -> bytes | None:
    """The grid of samples beside a record; None if there is none."""
    from fairbench.storage.records import record_path

    with suppress(InputError, OSError):
        path = record_path(results, record.dataset, record.method, record.key).with_suffix(".png")
        if path.is_file() and path.stat().st_size <= _PICTURE_BYTES:
            content = path.read_bytes()
            return content if content.startswith(_PNG) else None
    return None
