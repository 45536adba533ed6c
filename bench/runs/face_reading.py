"""The face stage: detector and identity network look at generated, real and training images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairbench.core.keys import run_key
from fairbench.core.progress import Progress
from fairbench.datasets.base import ImageSource
from fairbench.instruments.measuring import Instruments
from fairbench.runs.pixels import pixels_of
from fairbench.scores import faces as rules
from fairbench.scores.parts.evidence import FaceEvidence

__all__ = ["face_reading", "read_faces"]


def face_reading(instruments: Instruments) -> dict[str, str]:
    """Hash, under ``faces``, of what face scores depend on beside weights; empty without any."""
    if instruments.detector is None:
        return {}
    asked = (rules.SCORES, rules.SUBSAMPLE, rules.FALSE_MATCHES, instruments.face_ways)
    return {"faces": run_key({"reading": asked})}


def read_faces(
    images: ImageSource,
    real: ImageSource,
    training: ImageSource | None,
    instruments: Instruments,
    cache: Path,
    progress: Progress,
) -> FaceEvidence | None:
    """What the networks say of faces; 2,000 of the images and of the real ones are looked at.

    Args:
        images: N, generated.
        real: All real images of the reference, each of another person.
        training: All images that the generator was trained on, to look for copies of; none of
            them is among `real`. None if they aren't known.
        instruments: Detector and identity network are used.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.

    Returns:
        What was seen; None if nothing looks for faces.
    """
    from fairbench.instruments.faces import Identities, detect_faces, identities

    detector, network = instruments.detector, instruments.identity
    if detector is None:
        return None
    unknown = rules.UNKNOWN if training is None else ""
    looked = _evenly(len(images))
    some = images.take(looked)
    shown = pixels_of(some)
    found = detect_faces(shown, detector, cache, progress, some.listing)
    evidence = FaceEvidence(looked, found, no_training=unknown)
    if network is None:
        return replace(evidence, no_identity=instruments.no_identity)
    seen = identities(shown, found, network, cache, progress)
    compared = _evenly(len(real))

    def identities_in(source: ImageSource) -> Identities:
        pixels = pixels_of(source)
        there = detect_faces(pixels, detector, cache, progress, source.listing)
        return identities(pixels, there, network, cache, progress)

    known, trained = identities_in(real.take(compared)), None
    # Training images are many: with too few faces on either side nothing is compared with them.
    if training is not None and min(len(seen), len(known)) >= rules.LEAST:
        trained = identities_in(training)
    return replace(evidence, identities=seen, compared=compared, known=known, trained=trained)


def _evenly(count: int) -> NDArray[np.int64]:
    """Places of up to 2,000 of so many images, evenly spread."""
    return np.linspace(0, count - 1, min(rules.SUBSAMPLE, count)).astype(np.int64)
