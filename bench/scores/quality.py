"""Earlier place of what :mod:`fairbench.scores.parts.evidence` holds."""

from fairbench.scores.parts.evidence import Columns, Reference

__all__ = ["Columns", "Reference"]
