"""Puts odd values into records and baselines and looks whether any of them ends a board or check.

By hand, from an environment in which fairbench is installed:

    python tests/mutations/mutations.py --times 5000 --seed 0

Each round takes one of the committed records, replaces or deletes one value somewhere inside of
it, reads it from a file and, unless that refuses it in one line, makes a board of it, of the same
record of another seed and of another method's, and everything that a board is written as but
pictures. A record that is read is one that all of these must cope with. Baselines of the gate are
compared with what they were, both ways, and the verdict is written in every form. Printed: each
new failure, and how many mutations were refused, taken and failed. Exit status 1 if any failed.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from fairbench.core.errors import InputError
from fairbench.gate.baseline import read_baseline
from fairbench.gate.checking import Checked
from fairbench.gate.comparing import compare
from fairbench.gate.reports import document as verdict_document
from fairbench.gate.reports import junit, markdown
from fairbench.leaderboards import to_csv, to_json, to_markdown, to_table
from fairbench.leaderboards.board import open_board
from fairbench.leaderboards.formats.eval_results import entries
from fairbench.leaderboards.formats.every_eval_ever import document
from fairbench.leaderboards.formats.latex import to_latex
from fairbench.leaderboards.site.pages import _files
from fairbench.storage.records import RecordError, read_record

HERE = Path(__file__).resolve().parent
COMMITTED = HERE.parents[1] / "results"
BASELINES = HERE.parent / "baselines"
METHODS = ("vanilla", "fairgen", "tiw", "invdiff", "distribution_guidance")
GONE = object()
ODD = (
    *(GONE, None, True, "", "x", "\x00", "<b>", [], {}, [[]], ["a"], [[1], [2, 3]], {"x": 1}),
    *(0, -1, 3, 10**13, 10**20, 0.3, -0.5, 1.5, 1e-300, 1e200, 1e308),
)
"""What is put in the place of a value."""


Tried = Callable[[Path, dict[str, Any]], str]
"""Writes something into a folder, reads and uses it: ``"refused"`` in one line, or ``"taken"``."""


def originals() -> list[tuple[str, dict[str, Any], Tried]]:
    """What is mutated: its name, what it holds, and how it is tried."""
    found = records()
    every: list[tuple[str, dict[str, Any], Tried]] = [
        (data["method"], data, partial(try_record, base=data, other=found[place - 1]))
        for place, data in enumerate(found)
    ]
    for path in sorted(BASELINES.glob("*.json")):
        every.append((path.name, json.loads(path.read_bytes()), partial(try_baseline, sound=path)))
    return every


def records() -> list[dict[str, Any]]:
    """A committed record of each of a few methods, of both schemas and of many prompts."""
    found: dict[tuple[str, int, bool], dict[str, Any]] = {}
    for path in sorted(COMMITTED.glob("*/*/*.json")):
        data = json.loads(path.read_bytes())
        if data["method"] in METHODS and data["config"]["backbone"] == "cartoonfaces-sd":
            kind = data["method"], data["schema"], data["task"] == "gender_by_role"
            found.setdefault(kind, data)
    return list(found.values())


def of_another_seed(data: dict[str, Any]) -> dict[str, Any]:
    """The same record as if of another seed."""
    config = {**data["config"], "seed": data["config"]["seed"] + 1000}
    return {**data, "config": config, "key": data["key"][::-1], "generation_key": "0" * 16}


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where everything inside of a value stands; of long lists of the like the first alone."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for place, inner in enumerate(value[:3]):
            yield from places(inner, (*path, place))


def mutated(data: dict[str, Any], path: Sequence[str | int], value: Any) -> dict[str, Any]:
    """A copy with another value at one place."""
    made = copy.deepcopy(data)
    inner: Any = made
    for step in path[:-1]:
        inner = inner[step]
    if value is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = copy.deepcopy(value)
    return made


def use(results: Path) -> None:
    """Make everything that a board is written as."""
    board = open_board(results)
    for form in (to_csv, to_markdown, to_json, to_latex):
        form(board.rows)
    Console(file=io.StringIO(), width=80).print(to_table(board.rows))
    for _ in _files(board):
        pass
    for row in board.rows:
        entries(row, board.records(row))
        document(row, board.records(row))


def rounds(times: int, seed: int) -> Counter[str]:
    """Mutate so many times; how many were refused, taken and failed."""
    draw = random.Random(seed)
    bases = originals()
    fields = [list(places({k: v for k, v in b.items() if k != "manifest"})) for _, b, _ in bases]
    counted: Counter[str] = Counter()
    told: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FAIRBENCH_CACHE"] = f"{folder}/cache"
        for _ in range(times):
            place = draw.randrange(len(bases))
            name, base, tried = bases[place]
            path, value = draw.choice(fields[place]), draw.choice(ODD)
            try:
                outcome = tried(Path(folder), mutated(base, path, value))
            except Exception as error:
                outcome = "failed"
                last = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
                if what not in told:
                    told.add(what)
                    seen = "deleted" if value is GONE else repr(value)
                    print(f"{what}: {error} ({name}, {'.'.join(map(str, path))}: {seen})")
            counted[outcome] += 1
    return counted


def try_record(folder: Path, data: dict[str, Any], *, base: dict[str, Any], other: Any) -> str:
    """A record, beside what it was of another seed and a record of another method."""
    shelf = folder / "results" / "cartoonfaces" / "any"
    shelf.mkdir(parents=True, exist_ok=True)
    for name, one in (("mutated", data), ("twin", of_another_seed(base)), ("other", other)):
        (shelf / f"{name}.json").write_text(json.dumps(one))
    try:
        read_record(shelf / "mutated.json")
    except RecordError as error:
        return in_one_line(error)
    use(folder / "results")
    return "taken"


def try_baseline(folder: Path, data: dict[str, Any], *, sound: Path) -> str:
    """A baseline, beside what it was."""
    file = folder / "baseline.json"
    file.write_text(json.dumps(data))
    try:
        odd = read_baseline(file).runs
    except InputError as error:
        return in_one_line(error)
    was = read_baseline(sound).runs
    for verdict in (compare(was, odd), compare(odd, was)):
        markdown(verdict)
        junit(verdict)
        verdict_document(Checked(verdict))
    return "taken"


def in_one_line(error: Exception) -> str:
    """``"refused"``; raised again if it takes more than a line."""
    if "\n" in str(error):
        raise error
    return "refused"


def main() -> int:
    """Mutate, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    counted = rounds(asked.times, asked.seed)
    print(", ".join(f"{counted[name]} {name}" for name in ("refused", "taken", "failed")))
    return 1 if counted["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
