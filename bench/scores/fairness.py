"""Earlier place of the ranked score's name."""

from fairbench.scores.parts.shares import RANKED

__all__ = ["RANKED"]
