"""The Hugging Face hub's ``.eval_results`` files: one YAML a row, for a model's repository.

Source: https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fairbench.core.keys import run_key
from fairbench.core.record import Record
from fairbench.core.text import shown
from fairbench.leaderboards.board import Board
from fairbench.leaderboards.columns import is_main, method_of, score_names, standing_of
from fairbench.leaderboards.formats import Format
from fairbench.leaderboards.formats.every_eval_ever import write_rows
from fairbench.leaderboards.row import Row

__all__ = ["FORMAT", "entries", "write_eval_results"]


def write_eval_results(board: Board, folder: Path) -> None:
    """One file a row, ``<row>/.eval_results/fairbench.yaml``, to be copied into a repository.

    Raises:
        InputError: If the folder can't be written to.
    """

    def place(row: Row) -> str:
        return f"{run_key({'place': list(row.place)})}/.eval_results/fairbench.yaml"

    write_rows(board, folder, place, entries)


def entries(row: Row, records: Sequence[Record]) -> str:
    """The main scores of a row as YAML; every text is quoted as JSON does, which YAML reads.

    Args:
        row: The row.
        records: Those that it rests on, at least one.
    """
    created = max(record.created for record in records)
    lines = [f"# {method_of(row)} on {shown(row.backbone)}"]
    for name in score_names([row]):
        if not is_main(name):
            continue
        cell = row.scores[name]
        note = f"{cell.n} images x {len(row.seeds)} seeds; {cell.better} is better"
        if cell.low is not None and cell.high is not None:
            note += f"; 95 % interval [{cell.low:.6g}, {cell.high:.6g}]"
        if name == row.ranked_by:
            note += f"; {standing_of(row)}"
        lines += [
            "- dataset:",
            f"    id: {_quoted(f'fairbench/{row.dataset}')}",
            f"    task_id: {_quoted(f'{row.task}/{name}')}",
            f"  value: {cell.value!r}",
            f"  date: {_quoted(created)}",
            f"  notes: {_quoted(note)}",
        ]
    if len(lines) == 1:
        lines.append("[]")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(shown(text))


FORMAT = Format("eval_results", (), None, write_eval_results)
