"""JSON with everything that is in the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fairbench.core.keys import plain
from fairbench.leaderboards.aggregate import Row
from fairbench.leaderboards.formats import Format

__all__ = ["FORMAT", "to_json"]


def to_json(rows: Sequence[Row]) -> str:
    """Everything in the rows as a JSON list, which interval is shown included."""
    data = [plain(row, "row") for row in rows]
    for row in data:
        for name in ("card", "may_rank", "ranked_preset", "quality", "real_distance", "given"):
            del row[name]
    text = json.dumps(data, indent=2, ensure_ascii=False)
    # JSON escapes the codes below a space alone; others steer terminals, too.
    return (
        "".join(one if one.isprintable() or one == "\n" else _escaped(one) for one in text) + "\n"
    )


def _escaped(letter: str) -> str:
    return json.dumps(letter)[1:-1]


FORMAT = Format("json", (".json",), to_json)
