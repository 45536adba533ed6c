"""A folder of web pages that opens from the disk."""

from __future__ import annotations

from fairbench.leaderboards.formats import Format
from fairbench.leaderboards.site.pages import write_site

__all__ = ["FORMAT"]


FORMAT = Format("html", (), None, write_site, entry="index.html")
