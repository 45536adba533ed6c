"""Images to arrays: every network that judges an image sees it once; results are cached."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fairbench.cache import load_arrays, save_arrays
from fairbench.config import Progress
from fairbench.errors import ContractError

if TYPE_CHECKING:
    from fairbench.judges import Encoder, Judge, ValidityCheck

__all__ = ["Instruments", "Measurements", "image_sha256", "load_instruments", "measure"]

CHUNK = 512
LAYOUT = 1
"""Raised whenever the stored arrays have other names or meanings."""


@dataclass(frozen=True)
class Measurements:
    """What the instruments said about N images.

    Attributes:
        features: (N, D) float32.
        probabilities: Judge -> attribute -> (N, K) float32.
        valid: (N,) bool, whether the image is a proper face.
    """

    features: NDArray[np.float32]
    probabilities: Mapping[str, Mapping[str, NDArray[np.float32]]]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.valid)


@dataclass(frozen=True)
class Instruments:
    """The networks that measure a data set's images; no method sees them."""

    judges: tuple[Judge, Judge]
    encoder: Encoder
    validity: ValidityCheck

    def hashes(self) -> dict[str, str]:
        """Instrument -> sha256 of its weights."""
        return {
            **{f"judge_{judge.name}": judge.weights_sha256 for judge in self.judges},
            f"encoder_{self.encoder.name}": self.encoder.weights_sha256,
            "validity": self.validity.weights_sha256,
        }


def load_instruments(device: str) -> Instruments:
    """The instruments of CartoonFaces on a device."""
    from fairbench.judges import load_encoder, load_judge, load_validity

    return Instruments(
        (load_judge("primary", device), load_judge("second", device)),
        load_encoder("cartoonfaces", device),
        load_validity(device),
    )


def image_sha256(images: NDArray[np.uint8]) -> list[str]:
    """Hex digest of each image's raw RGB bytes, (N, H, W, 3) uint8."""
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images]


def measure(
    images: NDArray[np.uint8],
    instruments: Instruments,
    cache: Path,
    progress: Progress,
) -> Measurements:
    """Read every image once with every instrument, or take it from the cache.

    The cache key hashes every image in order and every weight, so that no entry can be stale.

    Args:
        images: (N, H, W, 3) uint8, N >= 1.
        instruments: What to measure with.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.
    Raises:
        ContractError: If there are no images.
    """
    if len(images) == 0:
        raise ContractError("expected at least one image to measure, seen none")
    weights = map(str, sorted(instruments.hashes().items()))
    content = "\n".join([f"layout {LAYOUT}", *image_sha256(images), *weights])
    path = cache / "measurements" / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.npz"
    arrays = load_arrays(path)
    if arrays is None:
        arrays = _measured(images, instruments, progress)
        save_arrays(path, arrays)
    probabilities = {
        judge.name: {name: arrays[f"{judge.name}|{name}"] for name in judge.attributes}
        for judge in instruments.judges
    }
    valid = arrays["validity"] >= instruments.validity.threshold
    return Measurements(arrays["features"], probabilities, valid)


def _measured(
    images: NDArray[np.uint8],
    instruments: Instruments,
    progress: Progress,
) -> dict[str, NDArray[np.float32]]:
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        parts.setdefault("features", []).append(instruments.encoder(chunk))
        parts.setdefault("validity", []).append(instruments.validity(chunk))
        for judge in instruments.judges:
            for name, probs in judge(chunk).items():
                parts.setdefault(f"{judge.name}|{name}", []).append(probs)
        progress("measuring images", min(start + CHUNK, len(images)), len(images))
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}
