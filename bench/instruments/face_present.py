"""A validity check of photographs of people: whether MTCNN finds a face that is large enough."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.specs import InstrumentSpec
from fairbench.instruments.base import Kind, Outputs
from fairbench.instruments.faces import FaceDetector, Faces, load_detector

__all__ = ["INSTRUMENTS", "LEAST_AREA", "FacePresent"]

LEAST_AREA = 0.02
"""Share of an image that its largest face covers at least: 72 pixels a side of 512. What MTCNN
takes for a face in textures and clutter is mostly smaller."""


class FacePresent:
    """Says how sure the detector is of a face in each photograph.

    An image is a proper one with one face or more of probability .9, as in ``face_validity``,
    whose largest covers 2 % of the image. Whether there are several isn't asked: judges read the
    largest. It looks for what a face is made of, not whether it looks real: ``docs/real_data.md``
    has what it accepts and what not, as far as that could be measured.
    """

    name = "face_present"
    kind: Kind = "validity"
    outputs: Outputs = MappingProxyType({"validity": np.float32})
    threshold = 0.9
    batch_size = 1

    def __init__(self, detector: FaceDetector) -> None:
        self._detector = detector
        self.weights_sha256 = detector.weights_sha256
        self.dtype = detector.dtype
        self.preprocessing = (
            f"{detector.preprocessing}; probability of the surest face, 0 where the largest of "
            f"at least .9 covers less than {LEAST_AREA:g} of the image"
        )

    def __call__(self, images: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        """Probability of a face.

        Args:
            images: (N, H, W, 3) uint8, N >= 1.

        Returns:
            ``validity``, (N,) float32 in [0, 1].

        Raises:
            ContractError: If the images are of another shape or type, or there are none.
        """
        found = Faces(**self._detector(images))
        large = found.area >= LEAST_AREA
        return {"validity": np.where(large, found.confidence, 0).astype(np.float32)}


def _load(*, device: str = "cpu", **ignored: Any) -> FacePresent:
    """One image at a time, and its weights lie in a wheel: no other option applies."""
    return FacePresent(load_detector(device))


INSTRUMENTS = (
    InstrumentSpec(
        FacePresent.name,
        "validity",
        "whether a photograph shows a face that MTCNN finds",
        _load,
        "mtcnn-pnet",
    ),
)
