"""Faces to scores: whether photographs show faces, and how many different ones; by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairbench.config import Progress
from fairbench.crossings import Reading
from fairbench.group_tables import validity_by_requested
from fairbench.metrics import duplicate_rate, mean_pairwise_cosine
from fairbench.metrics.jackknife import jackknife_variance, split, student
from fairbench.plain_scores import mean_score, share_score
from fairbench.quality_scores import diversity_score
from fairbench.types import Score

if TYPE_CHECKING:
    from fairbench.faces import FaceDetector, Faces, Identities, IdentityEncoder

__all__ = ["FaceInstruments", "face_scores", "load_face_instruments"]

SUBSAMPLE = 2000
"""Images looked at: both networks are slow without a GPU."""

FALSE_MATCHES = 1e-3
"""Share of pairs of different real faces that may pass for the same one."""

LEAST = 10


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


def load_face_instruments(device: str, *, allow_download: bool = False) -> FaceInstruments:
    """The detector, which comes with facenet-pytorch, and the identity network if it is there.

    Raises:
        AssetError: If the detector is missing, or a weight file is damaged.
    """
    from fairbench.errors import AssetError
    from fairbench.faces import load_detector, load_identity_encoder
    from fairbench.weights import find_weights

    detector = load_detector(device)
    try:
        find_weights("facenet-vggface2", allow_download=allow_download)
    except AssetError as error:
        return FaceInstruments(detector, None, str(error))
    return FaceInstruments(detector, load_identity_encoder(device=device), "")


def face_scores(
    images: NDArray[np.uint8],
    reading: Reading,
    real: NDArray[np.uint8],
    real_groups: NDArray[np.int64],
    sensitive: Sequence[str],
    instruments: FaceInstruments,
    cache: Path,
    progress: Progress,
) -> tuple[list[Score], dict[str, Any]]:
    """Faces found, and how varied they are next to as many real ones of the same group.

    Absolute variety isn't shown: identity networks tell some groups apart worse than others.

    Args:
        images: (N, H, W, 3) uint8, generated; 2,000 of them, evenly spread, are looked at.
        reading: The same images as the primary judge reads them.
        real: (M, H, W, 3) uint8, balanced real images, each of another person.
        real_groups: (M,) cell of each in the crossing of the sensitive attributes.
        sensitive: Attributes whose crossing makes the groups.
        instruments: Detector and identity network.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.

    Returns:
        Scores, and facts: other thresholds, images on which the detector broke off, rows by
        group, what isn't measured and why.
    """
    from fairbench.faces import detect_faces, identities

    chosen = np.linspace(0, len(images) - 1, min(SUBSAMPLE, len(images))).astype(int)
    looked = images[chosen]
    faces = detect_faces(looked, instruments.detector, cache, progress)
    scores, facts = _detection(faces)
    groups = reading.groups(sensitive)
    facts["by_requested_group"] = validity_by_requested(reading, faces.valid(), chosen) or []
    if instruments.identity is None:
        facts["not_measured"] = {"identity": instruments.missing}
        return scores, facts
    seen = identities(looked, faces, instruments.identity, cache, progress)
    compared = np.linspace(0, len(real) - 1, min(SUBSAMPLE, len(real))).astype(int)
    real, real_groups = real[compared], real_groups[compared]
    real_faces = detect_faces(real, instruments.detector, cache, progress)
    known = identities(real, real_faces, instruments.identity, cache, progress)
    mine = reading.index(sensitive)[chosen][seen.index]
    more, missing = _variety(seen, mine, known, real_groups[known.index], groups)
    if missing:
        facts["not_measured"] = missing
    return [*scores, *more], facts


def _detection(faces: Faces) -> tuple[list[Score], dict[str, Any]]:
    n = len(faces)
    source = "MTCNN, probability .9"
    found = int(faces.valid().sum())
    scores = [
        share_score("face_validity", found, n, "higher", source),
        share_score("face_multiple", int(faces.multiple().sum()), n, "neither", source),
    ]
    for name, values in (("face_confidence", faces.confidence), ("face_area", faces.area)):
        told = "MTCNN, surest face; 0 without one"
        scores.append(mean_score(name, values, "neither", told, unit="share", highest=1.0))
    facts = {
        "validity_at": {f"{p:g}": float(faces.valid(p).mean()) for p in (0.7, 0.9, 0.99)},
        "failed": int(faces.failed.sum()),
    }
    return scores, facts


def _variety(
    seen: Identities,
    mine: NDArray[np.int64],
    known: Identities,
    theirs: NDArray[np.int64],
    groups: Sequence[str],
) -> tuple[list[Score], dict[str, str]]:
    """Identity diversity of all, of the least varied group, and the share of duplicates."""
    if min(len(seen), len(known)) < LEAST:
        reason = f"{len(seen)} generated and {len(known)} real faces; {LEAST} of each are needed"
        return [], {"identity": reason}
    source = "facenet-vggface2"
    n = min(len(seen), len(known))
    cosine, half = _jackknife(seen.vectors, mean_pairwise_cosine)
    unit = mean_pairwise_cosine(known.vectors)
    cosines = known.vectors.astype(np.float64) @ known.vectors.T.astype(np.float64)
    limit = float(np.quantile(cosines[np.triu_indices(len(cosines), 1)], 1 - FALSE_MATCHES))
    repeats = duplicate_rate(seen.vectors, min(limit, 1 - 1e-9))
    scores = [
        diversity_score(
            "identity_vendi",
            seen.vectors,
            known.vectors,
            f"{source}, effective number of faces in units of {n} real ones",
            seed=0,
        ),
        Score(
            name="identity_cosine",
            value=cosine - unit,
            low=cosine - unit - half,
            high=cosine - unit + half,
            n=len(seen),
            better="lower",
            interval="jackknife",
            source=f"{source}, mean pairwise cosine less that of real faces",
        ),
        share_score(
            "identity_duplicates",
            round(repeats * len(seen)),
            len(seen),
            "lower",
            f"{source}, cosine above {limit:.3f}, which 1 in 1,000 pairs of different real faces "
            "reach",
        ),
    ]
    by_group = []
    for k, group in enumerate(groups):
        x, y = seen.vectors[mine == k], known.vectors[theirs == k]
        if min(len(x), len(y)) < LEAST:
            reason = f"{group} has {len(x)} generated and {len(y)} real faces; {LEAST} needed"
            return scores, {"identity_vendi_worst_group": reason}
        name = "identity_vendi_worst_group"
        by_group.append(diversity_score(name, x, y, f"{source}: {group}", seed=0))
    worst = min(by_group, key=lambda score: score.value)
    how = f"{worst.interval}, of the group that came out worst"
    scores.append(replace(worst, interval=how))
    return scores, {}


def _jackknife(
    x: NDArray[np.float32], statistic: Callable[[NDArray[np.float32]], float]
) -> tuple[float, float]:
    """A statistic of rows, and half the width of its 95 % interval."""
    blocks = min(20, len(x) // 2)
    parts = split(len(x), blocks, np.random.default_rng(0))
    left = np.array([statistic(np.delete(x, part, axis=0)) for part in parts])
    return statistic(x), student(0.95, blocks - 1) * float(np.sqrt(jackknife_variance(left)))
