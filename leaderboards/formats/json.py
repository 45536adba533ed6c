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
    return f"{json.dumps(data, indent=2, ensure_ascii=False)}\n"


FORMAT = Format("json", (".json",), to_json)
