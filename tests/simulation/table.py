"""How both simulations are asked and how they print what they found."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FEWEST = 100  # trials that say something


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        cells: As many as the header has.
        below: Whether it misses its bar by more than the simulation's own error.
    """

    cells: tuple[str, ...]
    below: bool


def verdict(held: float, trials: int, *, below: bool) -> str:
    """What the last column says: ``"wide"`` where more than 99.5 % are held."""
    if below:
        return "below"
    if trials < FEWEST:
        return "too few trials"
    return "wide" if held > 0.995 else "held"


def add_options(parser: argparse.ArgumentParser, trials: int) -> None:
    """What both scripts can be told."""
    parser.add_argument("--trials", type=int, default=trials, help="of each line, at most")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="of processor time a situation, after which ten trials or more are enough",
    )
    parser.add_argument("--markdown", action="store_true", help="as a page of docs/ has it")


def show(header: Sequence[str], rows: Iterable[Row], *, markdown: bool) -> int:
    """Print lines as they come, none left out; 1 if one is below its bar, else 0.

    Progress goes to standard error where the table doesn't go to a terminal.
    """
    below = total = 0
    if markdown:
        print(f"| {' | '.join(header)} |")
        print(f"|{'---|' * len(header)}", flush=True)
    else:
        print(" ".join(_wide(cell, place) for place, cell in enumerate(header)))
    for row in rows:
        total, below = total + 1, below + row.below
        if markdown:
            print(f"| {' | '.join(row.cells)} |", flush=True)
        else:
            print(" ".join(_wide(cell, place) for place, cell in enumerate(row.cells)), flush=True)
        if not sys.stdout.isatty() and total % 20 == 0:
            print(f"{total} lines, {below} below their bar", file=sys.stderr, flush=True)
    print(f"{total} lines, {below} below their bar", file=sys.stderr)
    return int(below > 0)


def _wide(cell: str, place: int) -> str:
    return f"{cell:<34}" if place < 2 else f"{cell:>10}"
