"""What is wrong with a data set on the user's disk, all of it at once."""

from __future__ import annotations

from collections.abc import Sequence

from fairbench.core.errors import InputError

__all__ = ["DataError"]


class DataError(InputError):
    """Files of a data set that are missing or can't be used.

    Attributes:
        problems: What is wrong; one line each.
        steps: What to do, in order; one line each.
    """

    def __init__(self, problems: Sequence[str], steps: Sequence[str]) -> None:
        self.problems, self.steps = tuple(problems), tuple(steps)
        super().__init__("; ".join((*problems, *steps)))
