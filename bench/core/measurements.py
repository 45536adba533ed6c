"""What instruments said of images, as arrays; those that read it need no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Measurements"]


@dataclass(frozen=True)
class Measurements:
    """What the instruments said about N images.

    Attributes:
        features: Encoder -> (N, D) float32.
        probabilities: Judge -> attribute -> (N, K) float32.
        valid: (N,) bool, whether the image is a proper one; all True where nothing tells.
        logits: Encoder -> (N, C) float32, of those that are classifiers too.
        alignment: Encoder -> (N,) float32, 100 x the cosine of image and prompt, of those that
            read texts too.
        validity_checked: Whether a validity check says which images are proper ones.
    """

    features: Mapping[str, NDArray[np.float32]]
    probabilities: Mapping[str, Mapping[str, NDArray[np.float32]]]
    valid: NDArray[np.bool_]
    logits: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    alignment: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    validity_checked: bool = True

    def __len__(self) -> int:
        return len(self.valid)
