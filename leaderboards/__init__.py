"""Leaderboards: records to tables and a plot; reads nothing but records."""

from fairbench.leaderboards.aggregate import RANKED_BY, Cell, Row, rows
from fairbench.leaderboards.board import leaderboard
from fairbench.leaderboards.plot import to_plot
from fairbench.leaderboards.tables import to_csv, to_json, to_markdown, to_table

__all__ = [
    "RANKED_BY",
    "Cell",
    "Row",
    "leaderboard",
    "rows",
    "to_csv",
    "to_json",
    "to_markdown",
    "to_plot",
    "to_table",
]
