"""Data sets on the user's disk: every picture is decoded and hashed once, into an index."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path

from fairbench.core.errors import InputError
from fairbench.core.progress import Reporter
from fairbench.datasets.base import Dataset
from fairbench.datasets.parts.index import Found, Index, index_path, load_index, make_index

__all__ = ["OnDisk"]


class OnDisk(Dataset):
    """A data set whose pictures are joined with a table of labels when it is prepared."""

    @property
    @abstractmethod
    def place(self) -> Path | None:
        """The folder that its files lie in or below; None where none was named."""

    @property
    @abstractmethod
    def content(self) -> str:
        """What the index is made with, part of the data's hash."""

    @abstractmethod
    def find(self) -> Found:
        """Pictures and labels as they lie there.

        Raises:
            DataError: If something is missing or damaged.
        """

    def prepare(self, report: Reporter, *, anew: bool = False) -> None:
        """Join tables and pictures, decode and hash every picture, write the index.

        Args:
            report: Told about progress.
            anew: Check although an index is there; it is taken away first.

        Raises:
            DataError: If something is missing or damaged.
        """
        if self.place is None:
            self.find()  # which says that nothing was named
            return
        path = index_path(self.name, self.place)
        if anew:
            path.unlink(missing_ok=True)
        elif self.stored() is not None:
            return
        found = self.find()
        report.note(f"{self.name}: preparing {self.place}: every picture is decoded and hashed")
        vars(self)["index"] = make_index(path, found, self.content, report)

    def stored(self) -> Index | None:
        """The index, if it is there and of the files as they are now."""
        if "index" in vars(self):
            return self.index
        if self.place is None:
            return None
        found = load_index(index_path(self.name, self.place), self.place, self.content)
        if found is not None:
            vars(self)["index"] = found
        return found

    @cached_property
    def index(self) -> Index:
        """The index.

        Raises:
            InputError: If the data set isn't prepared.
        """
        found = self.stored()
        if found is None:
            raise InputError(
                self.lacking()
                or f"{self.name} at {self.place} isn't prepared, or its files have changed since; "
                f"run fairbench data prepare {self.typed}"
            )
        return found

    def notes(self) -> tuple[str, ...]:
        """What preparing found worth saying of the files."""
        return self.index.notes
