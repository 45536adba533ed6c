"""What the formats share: blocks of rows, names of scores in order, and cells as text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fairbench.core.keys import canonical
from fairbench.core.text import shown
from fairbench.leaderboards.aggregate import Cell, Row
from fairbench.scores.catalogue import spec_of

__all__ = [
    "ARROWS",
    "COSTS",
    "EMPTY",
    "IDENTITY",
    "MISSING",
    "Column",
    "blocks",
    "digits_of",
    "exact",
    "is_main",
    "method_of",
    "notes_of",
    "score_column",
    "score_names",
    "significant",
    "standing_of",
]

ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}
MISSING = "–"
OLDER = "†"
"""Behind a number that an older version of its score's definition gave."""
EMPTY = "No complete records.\n"


def blocks(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The tables, with their titles."""
    for names, block in itertools.groupby(rows, key=lambda row: row.block):
        yield shown(" · ".join(filter(None, names))), list(block)


def notes_of(block: Sequence[Row]) -> str:
    """What a table's title says of its ranks."""
    first = block[0]
    luck = "differences between seeds included"
    if not first.luck:
        luck = "the luck of a training isn't included: fewer than 3 seeds a row"
    told = [f"ranked by {first.ranked_by}", luck]
    if first.unchecked:
        told.append(f"not checked: {', '.join(first.unchecked)}")
    return "; ".join(told)


CellText = Callable[[Row], str]


def _safe(texts: Mapping[str, CellText]) -> dict[str, CellText]:
    """The same cells, in which nothing steers a terminal: records may hold anything."""

    def safe(text: CellText) -> CellText:
        return lambda row: shown(text(row))

    return {name: safe(text) for name, text in texts.items()}


_IDENTITY: dict[str, CellText] = {
    "dataset": lambda row: row.dataset,
    "task": lambda row: row.task,
    "backbone": lambda row: row.backbone,
    "rank": lambda row: row.rank,
    "tie_class": lambda row: row.tie_class,
    "why_unranked": lambda row: row.why_unranked,
    "reasons": lambda row: "; ".join(row.reasons),
    "ranked_by": lambda row: row.ranked_by,
    "compared": lambda row: row.compared,
    "method": lambda row: row.method,
    "label": lambda row: row.label,
    "role": lambda row: row.role,
    "supervision": lambda row: "+".join(row.supervision) or "none",
    "comparable": lambda row: row.comparable,
    "flags": lambda row: "+".join(row.flags),
    "older_scores": lambda row: " ".join(n for n, cell in row.scores.items() if cell.older),
    "seeds": lambda row: str(len(row.seeds)),
    "n": lambda row: str(row.n),
}
IDENTITY = _safe(_IDENTITY)
_COSTS: dict[str, CellText] = {
    "seconds_per_image": lambda row: exact(row.seconds_per_image),
    "network_calls_per_image": lambda row: exact(row.network_calls_per_image),
    "extra_parameters": lambda row: str(row.extra_parameters),
    "parameters": lambda row: canonical(row.config.get("parameters", {})),
    "keys": lambda row: " ".join(row.keys),
}
COSTS = _safe(_COSTS)


def score_names(rows: Iterable[Row]) -> list[str]:
    """Names of all scores: main columns in their order, then the others by name."""
    names = {name for row in rows for name in row.scores}
    return sorted(names, key=lambda name: (not is_main(name), _place(name), name))


def is_main(name: str) -> bool:
    """Whether the readable tables show a score; one without a spec isn't."""
    spec = spec_of(name)
    return spec is not None and spec.main is not None


def _place(name: str) -> int:
    spec = spec_of(name)
    return 0 if spec is None or spec.main is None else spec.main


def exact(value: float | None) -> str:
    """A number at full precision; empty for None."""
    return "" if value is None else repr(value)


@dataclass(frozen=True)
class Column:
    """A column of a readable table: its header, and the text of a row's cell."""

    header: str
    text: CellText
    is_number: bool = True


def score_column(name: str, block: Sequence[Row]) -> Column:
    """A score with its interval, scaled as its spec says."""
    first = next(row.scores[name] for row in block if name in row.scores)
    spec = spec_of(name)
    scale = 1.0 if spec is None else spec.scale
    unit = f" ({first.unit})" if first.unit else ""
    times = f" ×{scale:g}" if scale != 1 else ""
    return Column(
        shown(f"{name}{times}{unit}{ARROWS.get(first.better, '')}"),
        lambda row: _with_interval(row.scores.get(name), scale),
    )


def method_of(row: Row) -> str:
    """Method, and what tells the row from others of it."""
    return shown(f"{row.method} ({row.label})" if row.label else row.method)


def standing_of(row: Row) -> str:
    """Tie class and interval of ranks, such as ``"A 1–2"``; why there is none, in one word."""
    return f"{row.tie_class} {row.rank}" if row.tie_class else shown(row.why_unranked or row.rank)


def _with_interval(cell: Cell | None, scale: float) -> str:
    """Such as ``"0.412 [0.390, 0.430] ≤ floor 0.450"``."""
    if cell is None:
        return MISSING
    value = cell.value * scale
    digits = digits_of(value)
    text = f"{value:.{digits}f}{OLDER if cell.older else ''}"
    if cell.low is not None and cell.high is not None:
        text += f" [{cell.low * scale:.{digits}f}, {cell.high * scale:.{digits}f}]"
    if cell.floor is not None and cell.at_floor:
        text += f" ≤ floor {cell.floor * scale:.{digits}f}"
    return text


def digits_of(value: float) -> int:
    """Decimals that a number is shown with."""
    return 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1


def significant(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return MISSING
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
