"""The tables of ``docs/results.md`` from the committed records: run as a module, it writes them.

Each stands between two comments, ``<!-- NAME -->`` and ``<!-- end -->``; all else on the page is
written by hand.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fairbench.leaderboards import leaderboard
from fairbench.leaderboards.averages import Cell
from fairbench.leaderboards.row import Row

__all__ = ["TABLES", "rewritten"]

TASKS = {
    "gender": "gender",
    "race": "race",
    "gender_race": "gender × race",
    "gender_by_role": "gender by role",
}
MODELS = {"cartoonfaces-sd": "sd", "cartoonfaces-ddpm": "ddpm"}
ROLES = ("method", "control", "ablation", "oracle")
RANKED = "fairness_discrepancy_corrected"
KERNEL = "kernel_cartoonfaces_reweighted"
NONE = "–"


def _shown(cell: Cell | None, scale: float = 1.0, digits: int = 3) -> str:
    """A value with its interval."""
    if cell is None:
        return NONE
    value = f"{cell.value * scale:.{digits}f}"
    if cell.low is None or cell.high is None:
        return value
    return f"{value} [{cell.low * scale:.{digits}f}, {cell.high * scale:.{digits}f}]"


def _parameters(row: Row) -> Mapping[str, object]:
    return row.config.get("parameters") or {}


def _settings(row: Row) -> str:
    """What tells a row from the method's own: preset, parameters, guidance."""
    return ", ".join(filter(None, [row.label, row.sampled]))


def _is_curve(row: Row) -> bool:
    return _parameters(row).get("rate_schedule") == "constant"


def _is_whole(row: Row) -> bool:
    """Whether it is sampled in the declared steps, of a network that wasn't built from nothing."""
    return "steps" not in row.sampled and row.network == row.backbone and not _is_curve(row)


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """A Markdown table whose first columns are words."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


def _main(rows: Sequence[Row]) -> str:
    by_name: dict[tuple[object, ...], dict[str, Row]] = defaultdict(dict)
    for row in filter(_is_whole, rows):
        seeds, settings = len(row.seeds), _settings(row)
        place = (
            list(MODELS).index(row.backbone),
            -seeds * row.n,
            "guidance" in row.sampled,
            ROLES.index(row.role),
            row.method,
            settings,
        )
        by_name[place][row.task] = row

    def told(found: Mapping[str, Row]) -> list[str]:
        first = next(iter(found.values()))
        settings = _settings(first)
        gender = found.get("gender")
        return [
            MODELS[first.backbone],
            f"{first.method} ({settings})" if settings else first.method,
            first.role,
            f"{len(first.seeds)} × {first.n:,}",
            *(_shown(found[task].scores.get(RANKED)) if task in found else NONE for task in TASKS),
            _shown(gender.scores.get(KERNEL), 1000, 1) if gender else NONE,
            _shown(gender.scores.get("validity"), 100, 1) if gender else NONE,
        ]

    header = [
        *("model", "method", "role", "seeds × n"),
        *(f"{words} ↓" for words in TASKS.values()),
        *("kernel distance ×1000 ↓", "valid faces, % ↑"),
    ]
    return _lines(header, (told(found) for _, found in sorted(by_name.items())), 3)


def _quality(row: Row) -> list[str]:
    return [
        f"{len(row.seeds)} × {row.n:,}",
        _shown(row.scores.get(RANKED)),
        _shown(row.scores.get(KERNEL), 1000, 1),
        _shown(row.scores.get("validity"), 100, 1),
    ]


def _budgets(rows: Sequence[Row]) -> str:
    def place(row: Row) -> tuple[object, ...]:
        given = _parameters(row)
        references = given.get("reference_images", 0)
        return row.method, str(row.config.get("preset") or ""), references, given["steps"]

    def told(row: Row) -> list[str]:
        preset, given = row.config.get("preset"), _parameters(row)
        references = row.card.get("reference_images") or 0
        return [
            f"{row.method} ({preset})" if preset else row.method,
            f"{given['steps']:,}",
            str(references or NONE),
            *_quality(row),
            _shown(row.scores.get("memorisation_cartoonfaces"), 1, 2),
        ]

    header = [
        *("method", "training steps", "reference images", "seeds × n", "gender ↓"),
        *("kernel distance ×1000 ↓", "valid faces, % ↑", "memorisation"),
    ]
    found = [row for row in rows if _is_curve(row) and row.task == "gender"]
    if not found:
        return "No such row is committed yet."
    return _lines(header, map(told, sorted(found, key=place)), 1)


def _weightings(rows: Sequence[Row]) -> str:
    def place(row: Row) -> tuple[object, ...]:
        given = _parameters(row)
        return given["steps"], row.config["sampling"]["steps"], str(given["loss_weighting"])

    def told(row: Row) -> list[str]:
        given = _parameters(row)
        return [
            str(given["loss_weighting"]),
            "noise" if given.get("prediction") == "noise" else "velocity",
            f"{given['steps']:,}",
            str(row.config["sampling"]["steps"]),
            f"{len(row.seeds)} × {row.n:,}",
            _shown(row.scores.get("frechet_cartoonfaces_natural"), 1, 1),
            _shown(row.scores.get("kernel_cartoonfaces_natural"), 1000, 0),
            _shown(row.scores.get("validity"), 100, 1),
        ]

    header = [
        *("weighting", "predicts", "training steps", "sampling steps", "seeds × n"),
        *("Fréchet distance ↓", "kernel distance ×1000 ↓", "valid faces, % ↑"),
    ]
    found = [row for row in rows if row.network != row.backbone]
    return _lines(header, map(told, sorted(found, key=place)), 2)


TABLES: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "main table": _main,
    "budgets": _budgets,
    "weightings": _weightings,
}
"""Name on the page -> what writes it."""


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    for name in TABLES:
        found = re.search(rf"<!-- {name} -->\n.*?<!-- end -->", text, re.DOTALL)
        if found is not None:
            yield name, found[0]


def rewritten(text: str, rows: Sequence[Row]) -> str:
    """The page with its tables written anew.

    Args:
        text: The page.
        rows: Of all committed records.
    """
    for name, old in _pieces(text):
        text = text.replace(old, f"<!-- {name} -->\n{TABLES[name](rows)}\n<!-- end -->")
    return text


def main() -> None:
    """Rewrite the page in the repository that is the working directory."""
    page = Path("docs/results.md")
    page.write_text(rewritten(page.read_text(), leaderboard(Path("results"))))


if __name__ == "__main__":
    main()
