"""Every Eval Ever: one JSON a row, in the schema 0.2.1 of that shared database of evaluations.

Source: https://github.com/evaleval/every_eval_ever, ``eval.schema.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fairbench.core.errors import FairbenchError, InputError
from fairbench.core.keys import canonical, run_key
from fairbench.core.record import Record
from fairbench.core.text import shown
from fairbench.leaderboards.averages import Cell
from fairbench.leaderboards.board import Board
from fairbench.leaderboards.columns import method_of, score_names, standing_of
from fairbench.leaderboards.formats import Format
from fairbench.leaderboards.row import Row
from fairbench.runs.question import command_of
from fairbench.scores.catalogue import spec_of
from fairbench.storage.files import atomic_write

__all__ = ["FORMAT", "document", "write_every_eval_ever", "write_rows"]

SCHEMA = "0.2.1"


def write_every_eval_ever(board: Board, folder: Path) -> None:
    """One file a row, under ``data/fairbench_<data set>/<method>/``.

    Raises:
        InputError: If the folder can't be written to.
    """

    def place(row: Row) -> str:
        return f"data/fairbench_{_file(row.dataset)}/{_file(row.method)}/{_name(row)}.json"

    def text(row: Row, records: Sequence[Record]) -> str:
        return f"{json.dumps(document(row, records), indent=2, ensure_ascii=False)}\n"

    write_rows(board, folder, place, text)


def write_rows(
    board: Board,
    folder: Path,
    place: Callable[[Row], str],
    text: Callable[[Row, Sequence[Record]], str],
) -> None:
    """One file a row.

    Args:
        board: The rows.
        folder: Where to; made if missing.
        place: Path of a row's file in the folder.
        text: What is in it, from the row and its records.

    Raises:
        InputError: If the folder can't be written to.
    """
    try:
        for row in board.rows:
            with atomic_write(folder / place(row)) as file:
                file.write(text(row, board.records(row)).encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"--output {folder} can't be written: {error.strerror}") from error


def document(row: Row, records: Sequence[Record]) -> dict[str, Any]:
    """A row in that schema; values of additional details are text there.

    Args:
        row: The row.
        records: Those that it rests on, at least one.
    """
    created = max(record.created for record in records)
    return {
        "schema_version": SCHEMA,
        "evaluation_id": f"fairbench_{shown(row.dataset)}/{shown(row.method)}/{_name(row)}",
        "dedupe_identity": {
            "run_fingerprint": _name(row),
            "hash_algorithm": "sha256",
            "canonicalization_version": "fairbench run key",
        },
        "evaluation_timestamp": shown(created),
        "retrieved_timestamp": _seconds(created),
        "source_metadata": {
            "source_name": "fairbench",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "third_party",
        },
        "eval_library": {
            "name": "fairbench",
            "version": shown(str(records[0].environment.get("fairbench", "unknown"))),
        },
        "model_info": {
            "name": shown(f"{row.backbone or 'images made elsewhere'} with {method_of(row)}"),
            "id": shown(f"{row.backbone or 'unknown'}/{method_of(row)}"),
            "additional_details": {
                "backbone": shown(row.backbone),
                "method": shown(row.method),
                "role": shown(row.role),
                "supervision": shown(", ".join(row.supervision) or "none"),
                "parameters": shown(canonical(row.config.get("parameters", {}))),
            },
        },
        "evaluation_results": [
            _result(row, name, row.scores[name], records) for name in score_names([row])
        ],
    }


def _result(row: Row, name: str, cell: Cell, records: Sequence[Record]) -> dict[str, Any]:
    spec = spec_of(name)
    uncertainty: dict[str, Any] = {"num_samples": cell.n * len(row.seeds)}
    if cell.low is not None and cell.high is not None:
        uncertainty["confidence_interval"] = {
            "lower": cell.low,
            "upper": cell.high,
            "confidence_level": 0.95,
            "method": shown(cell.interval),
        }
    details = {
        "better": cell.better,
        "unit": cell.unit,
        "seeds": ", ".join(map(str, row.seeds)),
        "standing": standing_of(row) if name == row.ranked_by else "",
        "noise_floor": "" if cell.floor is None else repr(cell.floor),
    }
    result: dict[str, Any] = {
        "evaluation_name": shown(f"{row.task}: {name}"),
        "source_data": {
            "dataset_name": shown(row.dataset),
            "source_type": "other",
            "additional_details": {
                "task": shown(row.task),
                "target": shown(canonical(row.config.get("target", {}))),
            },
        },
        "metric_config": {
            "evaluation_description": shown(name if spec is None else spec.meaning),
            # The schema has no third answer; `details` says where neither is better.
            "lower_is_better": cell.better == "lower",
        },
        "score_details": {
            "score": cell.value,
            "details": {key: shown(value) for key, value in details.items() if value},
            "uncertainty": uncertainty,
        },
    }
    with suppress(FairbenchError, KeyError, TypeError, ValueError, AttributeError):
        command = shown(command_of(records[0]))
        result["generation_config"] = {"generation_args": {"execution_command": command}}
    return result


def _name(row: Row) -> str:
    return run_key({"place": list(row.place)})


def _file(name: str) -> str:
    """A name as a folder: other signs than letters, digits and a few become underscores."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)
    return kept or "_"


def _seconds(created: str) -> str:
    """Unix time of an ISO date; 0 if it isn't one."""
    try:
        return str(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return "0"


FORMAT = Format("every_eval_ever", (), None, write_every_eval_ever)
