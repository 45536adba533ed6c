"""Images to arrays: every network sees an image once; what it said is kept in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import AssetError, ContractError
from fairbench.core.keys import run_key
from fairbench.core.measurements import Measurements
from fairbench.core.progress import Progress
from fairbench.core.specs import InstrumentNames
from fairbench.datasets.base import ImageSource
from fairbench.instruments.base import (
    AlignsTexts,
    AttributeJudge,
    FeatureEncoder,
    Instrument,
    Validity,
    read,
    read_part,
    read_source,
)
from fairbench.instruments.catalogue import instrument_spec, load_instrument
from fairbench.instruments.faces import (
    DETECTOR,
    IDENTITY_ENCODERS,
    FaceDetector,
    IdentityEncoder,
)
from fairbench.instruments.weights import find_weights
from fairbench.storage.readings import ImageList

__all__ = ["Instruments", "load_instruments", "measure", "measure_features", "measure_part"]


@dataclass(frozen=True)
class Instruments:
    """The networks that measure a data set's images; no method sees them.

    Attributes:
        judges: One or more; the first is the one that scores come from.
        encoders: The data set's own, the one that its columns are named after first.
        validity: Tells proper images from anything else; None if nothing does.
        public: Encoders beside the data set's own, as asked for.
        detector: Finds faces; None if nothing looks for them.
        identity: Tells faces apart; None without a detector, or if its weights are nowhere.
        no_identity: Why there is none although there is a detector; empty otherwise.
    """

    judges: tuple[AttributeJudge, ...]
    encoders: tuple[FeatureEncoder, ...] = ()
    validity: Validity | None = None
    public: tuple[FeatureEncoder, ...] = ()
    detector: FaceDetector | None = None
    identity: IdentityEncoder | None = None
    no_identity: str = ""

    def __post_init__(self) -> None:
        """Refuse instruments whose results would get mixed up.

        Raises:
            ContractError: If there is no judge, or two judges or two encoders share a name.
        """
        if not self.judges:
            raise ContractError("expected one judge or more, seen none; name one for the data set")
        for kind, group in (("judges", self.judges), ("encoders", self.all_encoders)):
            names = [one.name for one in group]
            if len({*names}) < len(names):
                raise ContractError(
                    f"expected {kind} of different names, seen {', '.join(names)}; rename one"
                )

    @property
    def encoder(self) -> FeatureEncoder:
        """The first of the data set's own encoders.

        Raises:
            ContractError: If it has none.
        """
        if not self.encoders:
            raise ContractError("expected an encoder of the data set's own, seen none")
        return self.encoders[0]

    @property
    def all_encoders(self) -> tuple[FeatureEncoder, ...]:
        """The data set's own, then those asked for beside."""
        return (*self.encoders, *self.public)

    @property
    def readers(self) -> list[Instrument]:
        """All that look at every image: judges, encoders, then the validity check."""
        every: list[Instrument] = [*self.judges, *self.all_encoders]
        return every if self.validity is None else [*every, self.validity]

    def read_by_all(self, attributes: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Attribute -> levels, of those that every judge reads."""
        return {
            name: levels
            for name, levels in attributes.items()
            if all(judge.attributes.get(name) == levels for judge in self.judges)
        }

    def hashes(self) -> dict[str, str]:
        """Instrument -> sha256 of its weights."""
        known = {f"judge_{judge.name}": judge.weights_sha256 for judge in self.judges}
        known |= {f"encoder_{one.name}": one.weights_sha256 for one in self.encoders}
        if self.validity is not None:
            known["validity"] = self.validity.weights_sha256
        known |= {f"encoder_{one.name}": one.weights_sha256 for one in self.public}
        if self.detector is not None:
            known["face_detector"] = self.detector.weights_sha256
        if self.identity is not None:
            known["face_identity"] = self.identity.weights_sha256
        return known

    def readings(self) -> dict[str, str]:
        """Instrument -> hash of what else its scores depend on.

        That is: how images are prepared, the number format, and what was measured of it. Of the
        face networks that and the rules of their scores are one reading: see `face_ways`.
        """
        known: dict[str, tuple[Any, ...]] = {
            f"judge_{judge.name}": (
                judge.preprocessing,
                judge.dtype,
                {name: counts.tolist() for name, counts in judge.confusion.items()},
            )
            for judge in self.judges
        }
        check = self.validity
        if check is not None:
            known["validity"] = (check.preprocessing, check.dtype, check.threshold)
        for one in self.all_encoders:
            known[f"encoder_{one.name}"] = (one.preprocessing, one.dtype)
        return {name: run_key({"reading": value}) for name, value in known.items()}

    @property
    def face_ways(self) -> list[tuple[str, str]]:
        """Preprocessing and number format of each face network that is there, detector first."""
        used = (self.detector, self.identity)
        return [(one.preprocessing, one.dtype) for one in used if one is not None]


def load_instruments(
    device: str,
    names: InstrumentNames,
    encoders: Sequence[str] = (),
    *,
    judges: Sequence[AttributeJudge] | None = None,
    faces: bool = False,
    allow_download: bool = False,
    batch_size: int | None = None,
) -> Instruments:
    """Load what measures a data set's images.

    Args:
        device: As ``--device``.
        names: The data set's own instruments.
        encoders: Public ones to use beside, by name; those that the data set uses anyway are
            passed over.
        judges: Judges that are there already; None: those that the data set names, as far as
            they don't depend on it.
        faces: Whether to look for faces although the data set doesn't ask for it.
        allow_download: Get weights from upstream if they are nowhere.
        batch_size: Images that an instrument which leaves that open sees at once; None for its
            own number.

    Raises:
        InputError: If there is no such instrument.
        AssetError: If weights are missing or damaged.
    """
    further = [name for name in dict.fromkeys(encoders) if name not in names.encoders]
    # A wrong name is told before anything is loaded.
    for name in further:
        instrument_spec(name, "encoder")

    def loaded(name: str, kind: Any) -> Any:
        return load_instrument(
            name, kind, device=device, batch_size=batch_size, allow_download=allow_download
        )

    detector = names.detector or (DETECTOR if faces else None)
    identity, no_identity = None, ""
    if detector is not None:
        network = names.identity or IDENTITY_ENCODERS[0]
        weights = instrument_spec(network, "faces").weights
        try:
            if weights:
                find_weights(weights, allow_download=allow_download)
        except AssetError as error:
            no_identity = str(error)
        else:
            identity = loaded(network, "faces")
    if judges is None:
        judges = [loaded(name, "judge") for name in names.judges]
    return Instruments(
        tuple(judges),
        tuple(loaded(name, "encoder") for name in names.encoders),
        None if names.validity is None else loaded(names.validity, "validity"),
        tuple(loaded(name, "encoder") for name in further),
        None if detector is None else loaded(detector, "faces"),
        identity,
        no_identity,
    )


def measure(
    images: NDArray[np.uint8] | ImageSource,
    instruments: Instruments,
    cache: Path,
    progress: Progress,
    prompts: Sequence[str] | None = None,
    listed: ImageList | None = None,
) -> Measurements:
    """Read every image once with every instrument, or take what it said from the store.

    Args:
        images: (N, H, W, 3) uint8 of any size, N >= 1; or a data set's, decoded in batches.
        instruments: What to measure with.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.
        prompts: N, what the user asked for, image by image; None if there were no prompts.
        listed: The hashes of these images if the caller has them; else they are hashed here, once
            for all instruments.

    Raises:
        ContractError: If there are no images.
    """
    if len(images) == 0:
        raise ContractError("expected at least one image to measure, seen none")
    check = instruments.validity
    every = instruments.readers
    if isinstance(images, np.ndarray):
        hashed = ImageList.of(images) if listed is None else listed
        said = [read(images, one, cache, progress, hashed) for one in every]
    else:
        said = read_source(images, every, cache, progress)
    judged = len(instruments.judges)
    probabilities = {j.name: arrays for j, arrays in zip(instruments.judges, said, strict=False)}
    seen = {
        encoder.name: arrays
        for encoder, arrays in zip(instruments.all_encoders, said[judged:], strict=False)
    }
    valid = np.ones(len(images), np.bool_)
    if check is not None:
        valid = np.asarray(said[-1]["validity"] >= check.threshold)
    features = {name: arrays["features"] for name, arrays in seen.items()}
    alignment = {
        encoder.name: encoder.alignment(features[encoder.name], prompts)
        for encoder in instruments.all_encoders
        if prompts is not None and isinstance(encoder, AlignsTexts)
    }
    return Measurements(
        features,
        probabilities,
        valid,
        {name: arrays["logits"] for name, arrays in seen.items() if "logits" in arrays},
        alignment,
        validity_checked=check is not None,
    )


def measure_features(
    images: ImageSource, instruments: Instruments, cache: Path, progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """Encoder -> (N, D) features of real images, from the store or computed.

    Their labels are known and they are proper ones, so neither judges nor a validity check see
    them.

    Args:
        images: A data set's, N >= 1, decoded in batches.
        instruments: Of which the encoders are used; without one no image is opened.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.
    """
    encoders = instruments.all_encoders
    if not encoders:
        return {}
    said = read_source(images, encoders, cache, progress)
    return {one.name: arrays["features"] for one, arrays in zip(encoders, said, strict=True)}


def measure_part(
    source: ImageSource,
    instruments: Sequence[Instrument],
    cache: Path,
    progress: Progress,
    index: int,
    count: int,
) -> None:
    """Read one of `count` parts of the images.

    `measure` puts the parts together that all instruments read, `measure_features` those that
    encoders did.

    Args:
        source: All of the images.
        instruments: What to measure with; nothing is read without one.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.
        index: Which part, from 0.
        count: How many there are.
    """
    if instruments:
        read_part(source, instruments, cache, progress, index=index, count=count)
