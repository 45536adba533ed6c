"""The face stage: detector and identity network look at generated, real and training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.keys import run_key
from fairbench.core.progress import Progress
from fairbench.core.score import Score
from fairbench.scores import faces as rules
from fairbench.scores.parts.crossings import Reading
from fairbench.scores.parts.evidence import FaceEvidence

if TYPE_CHECKING:
    from fairbench.instruments.faces import FaceDetector, IdentityEncoder

__all__ = ["FaceInstruments", "face_scores", "load_face_instruments", "read_faces"]


@dataclass(frozen=True)
class FaceInstruments:
    """What looks at faces.

    Attributes:
        detector: Finds them.
        identity: Tells them apart; None if its weights are nowhere.
        missing: Why there is none; empty otherwise.
    """

    detector: FaceDetector
    identity: IdentityEncoder | None
    missing: str

    def hashes(self) -> dict[str, str]:
        """Instrument -> sha256 of its weights."""
        hashes = {"face_detector": self.detector.weights_sha256}
        if self.identity is not None:
            hashes["face_identity"] = self.identity.weights_sha256
        return hashes

    def readings(self) -> dict[str, str]:
        """Instrument -> hash of what else its scores depend on."""
        used = [self.detector, self.identity]
        ways = [(one.preprocessing, one.dtype) for one in used if one is not None]
        asked = (rules.SCORES, rules.SUBSAMPLE, rules.FALSE_MATCHES, ways)
        return {"faces": run_key({"reading": asked})}


def load_face_instruments(device: str, *, allow_download: bool = False) -> FaceInstruments:
    """The detector, which comes with facenet-pytorch, and the identity network if it is there.

    Raises:
        AssetError: If the detector is missing, or a weight file is damaged.
    """
    from fairbench.core.errors import AssetError
    from fairbench.instruments.faces import load_detector, load_identity_encoder
    from fairbench.instruments.weights import find_weights

    detector = load_detector(device)
    try:
        find_weights("facenet-vggface2", allow_download=allow_download)
    except AssetError as error:
        return FaceInstruments(detector, None, str(error))
    return FaceInstruments(detector, load_identity_encoder(device=device), "")


def read_faces(
    images: NDArray[np.uint8],
    real: NDArray[np.uint8],
    training: NDArray[np.uint8] | None,
    instruments: FaceInstruments,
    cache: Path,
    progress: Progress,
) -> FaceEvidence:
    """What the networks say of faces; 2,000 of the images and of the real ones are looked at.

    Args:
        images: (N, H, W, 3) uint8, generated.
        real: (R, H, W, 3) uint8, all real images of the reference, each of another person.
        training: (T, H, W, 3) uint8, all images that the generator was trained on, to look for
            copies of; none of them is among `real`. None if they aren't known.
        instruments: Detector and identity network.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.
    """
    from fairbench.instruments.faces import Identities, detect_faces, identities

    unknown = rules.UNKNOWN if training is None else ""
    looked = _evenly(len(images))
    found = detect_faces(images[looked], instruments.detector, cache, progress)
    evidence = FaceEvidence(looked, found, no_training=unknown)
    network = instruments.identity
    if network is None:
        return replace(evidence, no_identity=instruments.missing)
    seen = identities(images[looked], found, network, cache, progress)
    compared = _evenly(len(real))

    def identities_in(pixels: NDArray[np.uint8]) -> Identities:
        there = detect_faces(pixels, instruments.detector, cache, progress)
        return identities(pixels, there, network, cache, progress)

    known, trained = identities_in(real[compared]), None
    # Training images are many: with too few faces on either side nothing is compared with them.
    if training is not None and min(len(seen), len(known)) >= rules.LEAST:
        trained = identities_in(training)
    return replace(evidence, identities=seen, compared=compared, known=known, trained=trained)


def _evenly(count: int) -> NDArray[np.int64]:
    """Places of up to 2,000 of so many images, evenly spread."""
    return np.linspace(0, count - 1, min(rules.SUBSAMPLE, count)).astype(np.int64)


def face_scores(
    images: NDArray[np.uint8],
    reading: Reading,
    real: NDArray[np.uint8],
    real_groups: NDArray[np.int64],
    sensitive: Sequence[str],
    instruments: FaceInstruments,
    cache: Path,
    progress: Progress,
    training: NDArray[np.uint8] | None = None,
) -> tuple[list[Score], dict[str, Any]]:
    """Read faces and score them at once; see :func:`read_faces` and `score_faces`."""
    found = read_faces(images, real, training, instruments, cache, progress)
    return rules.score_faces(found, reading, sensitive, real_groups)
