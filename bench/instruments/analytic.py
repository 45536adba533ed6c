"""What reads the analytic data set's images: formulas of the mixture that made them.

Each judge knows the mixture but sees a few of the pixels alone, so that it errs as real ones do.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.specs import InstrumentSpec
from fairbench.datasets.analytic import ATTRIBUTES, DATASET, DEVIATION, SIDE, means
from fairbench.inputs.resizing import to_square

if TYPE_CHECKING:
    from fairbench.instruments.base import Kind

__all__ = ["INSTRUMENTS", "Encoder", "Judge", "ValidityCheck"]

SEEN: Mapping[str, tuple[int, int]] = MappingProxyType({"first": (1, 4), "second": (3, 8)})
"""Judge -> (a, m): it sees the pixels whose a x row + column is divisible by m."""

SCATTER = (0.12, 0.235)
"""Between which the deviation of a proper image's pixels from the nearest component lies.

Of the mixture's own images it is 0.2 within 0.01; a sampler of few steps makes smoother ones.
"""

BLOCK = 4
"""Pixels a side of the blocks whose mean colours are an image's features."""

_SHAPE = tuple(len(levels) for levels in ATTRIBUTES.values())


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 3, 8, 8) in [-1, 1] of images of any size."""
    if images.shape[1:3] != (SIDE, SIDE):
        from PIL import Image

        images = np.stack(
            [np.asarray(to_square(Image.fromarray(image), SIDE)) for image in images]
        )
    return images.transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1


def _sha256(what: str) -> str:
    """Hash of all that a formula rests on."""
    return hashlib.sha256(f"{what} {DEVIATION} {means().tolist()}".encode()).hexdigest()


class Judge:
    """The posterior of each attribute, given some of the pixels and a mixture in even shares."""

    kind: Kind = "judge"
    dtype = "float32"
    attributes = ATTRIBUTES
    outputs = MappingProxyType(dict.fromkeys(ATTRIBUTES, np.float32))

    def __init__(self, name: str) -> None:
        self.name = name
        factor, divisor = SEEN[name]
        rows, columns = np.mgrid[:SIDE, :SIDE]
        self._seen = (factor * rows + columns) % divisor == 0
        self.preprocessing = f"{int(self._seen.sum())} of the {SIDE}x{SIDE} pixels, in [-1, 1]"
        self.weights_sha256 = _sha256(f"judge {factor} {divisor}")

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Attribute -> (N, K) probabilities."""
        pixels = _pixels(images)[:, :, self._seen].reshape(len(images), -1)
        known = means()[:, :, self._seen].reshape(len(means()), -1)
        away = ((pixels[:, None] - known) ** 2).sum(axis=2) / (2 * DEVIATION**2)
        likely = np.exp(away.min(axis=1, keepdims=True) - away).reshape(-1, *_SHAPE)
        likely /= likely.sum(axis=(1, 2, 3), keepdims=True)
        return {
            name: likely.sum(axis=tuple(1 + a for a in range(3) if a != axis)).astype(np.float32)
            for axis, name in enumerate(ATTRIBUTES)
        }

    @functools.cached_property
    def confusion(self) -> Mapping[str, NDArray[np.int64]]:
        """Counts on the judge split, of the attributes and the crossing of the sensitive ones."""
        split = DATASET.split("judge")
        said = {name: table.argmax(axis=1) for name, table in self(split.images).items()}
        names = [*ATTRIBUTES, *(n for n in itertools.combinations(DATASET.sensitive, 2))]
        counted = {}
        for name in names:
            chosen = (name,) if isinstance(name, str) else name
            sizes = [len(ATTRIBUTES[one]) for one in chosen]
            true, judged = (
                np.ravel_multi_index([labels[one].astype(np.int64) for one in chosen], sizes)
                for labels in (split.labels, said)
            )
            table = np.zeros((int(np.prod(sizes)),) * 2, dtype=np.int64)
            np.add.at(table, (true, judged), 1)
            counted["/".join(chosen)] = table
        return MappingProxyType(counted)


class Encoder:
    """Mean colours of the four quarters of a patch."""

    name, dtype = "analytic", "float32"
    kind: Kind = "encoder"
    dimension = 3 * (SIDE // BLOCK) ** 2
    outputs = MappingProxyType({"features": np.float32})
    preprocessing = f"mean colours of blocks of {BLOCK}x{BLOCK} pixels, over their deviation"
    weights_sha256 = _sha256("encoder")

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """(N, 12) features."""
        blocks = _pixels(images).reshape(len(images), 3, SIDE // BLOCK, BLOCK, -1, BLOCK)
        features = blocks.mean(axis=(3, 5)).reshape(len(images), -1) * BLOCK / DEVIATION
        return {"features": features.astype(np.float32)}


class ValidityCheck:
    """Whether an image scatters around its nearest component as the mixture does."""

    name, dtype = "validity", "float32"
    kind: Kind = "validity"
    outputs = MappingProxyType({"validity": np.float32})
    preprocessing = f"deviation from the nearest component, within {SCATTER}"
    weights_sha256 = _sha256("validity")
    threshold = 0.5

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """(N,) in [0, 1], 0.5 at the edge of what is proper."""
        pixels = _pixels(images).reshape(len(images), 1, -1)
        away = np.sqrt(((pixels - means().reshape(len(means()), -1)) ** 2).mean(axis=2)).min(1)
        apart = (away - np.mean(SCATTER)) / (np.ptp(SCATTER) / 2)
        return {"validity": (1 / (1 + apart**2)).astype(np.float32)}


def _made(kind: Callable[..., Any], *name: str) -> Callable[..., Any]:
    """Makes one for `InstrumentSpec`: a formula has no weights, device or batches."""
    return lambda **options: kind(*name)


INSTRUMENTS = (
    *(
        InstrumentSpec(
            f"analytic/{name}",
            "judge",
            f"attributes of analytic patches, from some of their pixels ({name})",
            _made(Judge, name),
        )
        for name in SEEN
    ),
    InstrumentSpec(
        "analytic/encoder", "encoder", "12 features of analytic patches", _made(Encoder)
    ),
    InstrumentSpec(
        "analytic/validity",
        "validity",
        "proper analytic patches from others",
        _made(ValidityCheck),
    ),
)
