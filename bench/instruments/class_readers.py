"""Judges made of networks that know classes of their own, such as ages in years or races.

The network says how likely each of its classes is; which of a data set's levels a class belongs to
is decided here, by name or, for ages, by a cut that labelled images of the data set fix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError, InputError
from fairbench.inputs.resizing import to_square
from fairbench.instruments.base import Instrument, Kind, Outputs
from fairbench.instruments.faces import FaceDetector, crop_faces

__all__ = ["Calibrated", "ClassReader", "Classes", "Cut", "DatasetJudge", "FaceCrops", "best_cut"]

Probabilities = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Classes:
    """What a network tells apart under one name.

    Attributes:
        names: C names, such as ``("female", "male")``.
        starts: Age in years from which on each class counts, ascending; None if its classes have
            no order.
        aliases: Level of a data set -> the classes that make it, where it isn't named like one.
    """

    names: tuple[str, ...]
    starts: tuple[int, ...] | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def table(self, levels: Sequence[str]) -> NDArray[np.float64] | None:
        """(C, K) of 0 and 1, which class belongs to which level; None if some level has none."""
        known = {_plain(name): row for row, name in enumerate(self.names)}
        table = np.zeros((len(self.names), len(levels)))
        for column, level in enumerate(levels):
            own = self.aliases.get(_plain(level), (level,))
            rows = [known[_plain(name)] for name in own if _plain(name) in known]
            if not rows:
                return None
            table[rows, column] = 1
        return table if (table.sum(axis=1) <= 1).all() else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


class ClassReader(Instrument, Protocol):
    """A network with classes of its own: one (N, C) float32 array of probabilities a name."""

    @property
    def classes(self) -> Mapping[str, Classes]:
        """Name -> its classes; the same names as `outputs`."""


@dataclass(frozen=True)
class Cut:
    """Where an age begins to count as the older of two levels.

    Attributes:
        older: The level of those who are at least as old.
        start: Age in years.
    """

    older: str
    start: int

    def table(self, classes: Classes, levels: Sequence[str]) -> NDArray[np.float64]:
        """(C, 2) of 0 and 1, which class belongs to which level."""
        old = np.asarray(classes.starts) >= self.start
        column = list(levels).index(self.older)
        table = np.zeros((len(classes.names), 2))
        table[old, column] = 1
        table[~old, 1 - column] = 1
        return table


def best_cut(
    probabilities: NDArray[Any], truth: NDArray[Any], classes: Classes, levels: Sequence[str]
) -> Cut:
    """The cut with the highest balanced accuracy on labelled images.

    Args:
        probabilities: (N, C) of the classes.
        truth: (N,) index of each image's level.
        classes: C classes with an order.
        levels: The two levels.

    Raises:
        InputError: If not both levels are there.
    """
    counts = np.bincount(np.asarray(truth, np.int64), minlength=2)
    if counts.min() == 0:
        raise InputError(
            f"expected labelled images of both {' and '.join(levels)} to find the age between "
            f"them, seen {counts[0]} and {counts[1]}"
        )
    assert classes.starts is not None
    starts = np.asarray(classes.starts)
    mean_age = np.asarray(probabilities, np.float64) @ starts
    older = int(mean_age[truth == 1].mean() > mean_age[truth == 0].mean())
    below = np.cumsum(np.asarray(probabilities, np.float64), axis=1)[:, :-1]
    called_older = below < 0.5  # (N, C - 1): the cut lies before class 1, 2, …
    is_older = truth == older
    balanced = called_older[is_older].mean(axis=0) + (~called_older[~is_older]).mean(axis=0)
    best = np.flatnonzero(balanced == balanced.max())
    # The middle of equally good ones.
    return Cut(levels[older], int(starts[best[len(best) // 2] + 1]))


class Calibrated:
    """A judge whose errors are counted on the images of the data set that it is used for.

    Attributes:
        levels: Attribute -> levels, of all attributes that it could read.
        uncut: Those of them that are ages, and need a cut.
        cuts: Attribute -> where the older of its levels begins.
        refused: Attribute -> why what is said of it can't be trusted.
        attributes: Attribute -> levels, of those that can be read as it stands.
        confusion: As of every judge; empty until it was counted.
    """

    kind: Kind = "judge"
    name: str
    weights_sha256: str
    preprocessing: str
    dtype: str
    outputs: Outputs
    attributes: Mapping[str, tuple[str, ...]]
    confusion: Mapping[str, NDArray[np.int64]]
    levels: Mapping[str, tuple[str, ...]]
    uncut: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    cuts: Mapping[str, Cut] = MappingProxyType({})
    refused: Mapping[str, str] = MappingProxyType({})

    @property
    def reader(self) -> Instrument:
        """What looks at images; `said` tells the levels of what it returns."""
        return self

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Attribute -> (N, K) float32 probabilities of (N, H, W, 3) uint8 images."""
        raise NotImplementedError

    def said(self, seen: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Attribute -> (N, K) of what the reader returned for N images."""
        return dict(seen)

    def fitted(
        self, seen: Mapping[str, NDArray[Any]], labels: Mapping[str, NDArray[Any]]
    ) -> Calibrated:
        """The judge with the cuts that labelled images ask for.

        Args:
            seen: What the reader returned for them.
            labels: Attribute -> (N,) index of the level.
        """
        return self

    def measured(
        self,
        cuts: Mapping[str, Cut],
        confusion: Mapping[str, NDArray[np.int64]],
        refused: Mapping[str, str],
    ) -> Calibrated:
        """The judge with cuts and counts that were measured of it."""
        raise NotImplementedError


class DatasetJudge(Calibrated):
    """A class reader's classes as the levels of one data set.

    An age can be read only with a cut, and nothing can that is refused.
    """

    def __init__(
        self,
        reader: ClassReader,
        attributes: Mapping[str, tuple[str, ...]],
        cuts: Mapping[str, Cut] | None = None,
        confusion: Mapping[str, NDArray[np.int64]] | None = None,
        refused: Mapping[str, str] | None = None,
    ) -> None:
        """Find out which attributes of a data set the reader can tell.

        Args:
            reader: The network.
            attributes: Attribute -> levels, of the data set; those that it can't tell are left
                out.
            cuts: What was found on labelled images, if anything was.
            confusion: Counts on labelled images, if there are any.
            refused: Attribute -> why what is said of it can't be trusted.

        Raises:
            InputError: If the reader can't tell a single one.
        """
        self._reader = reader
        self.cuts = dict(cuts or {})
        self.confusion = MappingProxyType(dict(confusion or {}))
        self.refused = dict(refused or {})
        tables = {
            name: reader.classes[name].table(levels)
            for name, levels in attributes.items()
            if name in reader.classes
        }
        self.uncut = {
            name: attributes[name]
            for name, table in tables.items()
            if table is None and reader.classes[name].starts and len(attributes[name]) == 2
        }
        self.levels = {
            name: attributes[name]
            for name, table in tables.items()
            if table is not None or name in self.uncut
        }
        if not self.levels:
            raise InputError(
                f"judge {reader.name} tells {', '.join(reader.classes)} and none of the data "
                f"set's attributes {', '.join(attributes)} with their levels; choose another judge"
            )
        known = {name: table for name, table in tables.items() if table is not None}
        for name, cut in self.cuts.items():
            known[name] = cut.table(reader.classes[name], attributes[name])
        self._tables = {name: known[name] for name in known if name not in self.refused}
        self.attributes = MappingProxyType(
            {name: levels for name, levels in self.levels.items() if name in self._tables}
        )
        self.outputs = MappingProxyType(dict.fromkeys(self.attributes, np.float32))
        self.name = reader.name
        self.weights_sha256 = reader.weights_sha256
        self.dtype = reader.dtype
        self.batch_size: int = getattr(reader, "batch_size", 1)
        said = [f"{cut.older} from {cut.start} years" for cut in self.cuts.values()]
        self.preprocessing = ", ".join([reader.preprocessing, *said])

    @property
    def reader(self) -> ClassReader:
        """The network."""
        return self._reader

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Probabilities of every attribute's levels; arguments and errors as of every judge."""
        return self.said(self.reader(images))

    def said(self, seen: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """The same of what the reader said already: name -> (N, C)."""
        found = {}
        for name, table in self._tables.items():
            mass = np.asarray(seen[name], np.float64) @ table
            total = mass.sum(axis=1, keepdims=True)
            # Classes that belong to no level leave little or nothing for the others.
            even = np.full_like(mass, 1 / table.shape[1])
            found[name] = np.where(total > 0, mass / np.where(total > 0, total, 1), even).astype(
                np.float32
            )
        return found

    def fitted(
        self, seen: Mapping[str, NDArray[Any]], labels: Mapping[str, NDArray[Any]]
    ) -> DatasetJudge:
        """The judge with the cuts that labelled images ask for; `seen`: name -> (N, C)."""
        cuts = {
            name: best_cut(seen[name], labels[name], self.reader.classes[name], levels)
            for name, levels in self.uncut.items()
        }
        return DatasetJudge(self.reader, self.levels, cuts)

    def measured(
        self,
        cuts: Mapping[str, Cut],
        confusion: Mapping[str, NDArray[np.int64]],
        refused: Mapping[str, str],
    ) -> DatasetJudge:
        """The judge with the cuts and counts that were measured of it."""
        return DatasetJudge(self.reader, self.levels, cuts, confusion, refused)


class FaceCrops:
    """Cuts the face out of every image; of one without a face, the central square.

    Attributes:
        margin: Share of the face's longer side that is added around it.
        weights_sha256: Of the detector.
        preprocessing: Of the detector and of the crop, without the size.
    """

    def __init__(self, detector: FaceDetector, margin: float) -> None:
        if not margin >= 0:
            raise ContractError(f"margin must be 0 or more; seen {margin}")
        self.margin = margin
        self.weights_sha256 = detector.weights_sha256
        self.preprocessing = (
            f"{detector.preprocessing}; square of its largest face with margin {margin:g}, edge "
            "repeated, PIL bicubic uint8; the central square where there is none"
        )
        self._detector = detector

    def __call__(self, images: NDArray[np.uint8], *sides: int) -> tuple[NDArray[np.uint8], ...]:
        """One (N, side, side, 3) uint8 array a side, of (N, H, W, 3) uint8 images."""
        from PIL import Image

        boxes = self._detector(images)["box"]
        found = np.isfinite(boxes).all(axis=1)
        crops = []
        for side in sides:
            cut = np.empty((len(images), side, side, 3), np.uint8)
            if found.any():
                cut[found] = crop_faces(images[found], boxes[found], side=side, margin=self.margin)
            for row in np.flatnonzero(~found):
                cut[row] = to_square(Image.fromarray(images[row]), side)
            crops.append(cut)
        return tuple(crops)
