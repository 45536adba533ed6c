"""Leaderboards: records to tables and a plot; reads nothing but records."""

from fairbench.leaderboards.aggregate import RANKED_BY, Cell, Row, rows
from fairbench.leaderboards.board import leaderboard
from fairbench.leaderboards.formats.csv import to_csv
from fairbench.leaderboards.formats.json import to_json
from fairbench.leaderboards.formats.markdown import to_markdown
from fairbench.leaderboards.formats.table import to_table
from fairbench.leaderboards.plot import to_plot

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
