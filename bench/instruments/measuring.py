"""Images to arrays: every network sees an image once; what it said is kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError
from fairbench.core.keys import run_key
from fairbench.core.progress import Progress
from fairbench.storage.readings import ImageList, Reader, load_reading, save_reading

if TYPE_CHECKING:
    from fairbench.instruments.cartoonfaces import Encoder, Judge, ValidityCheck
    from fairbench.instruments.encoders import ClipEncoder, DinoEncoder, InceptionEncoder

    PublicEncoder = InceptionEncoder | DinoEncoder | ClipEncoder

__all__ = ["Instruments", "Measurements", "load_instruments", "measure"]

CHUNK = 512


@dataclass(frozen=True)
class Measurements:
    """What the instruments said about N images.

    Attributes:
        features: Encoder -> (N, D) float32.
        probabilities: Judge -> attribute -> (N, K) float32.
        valid: (N,) bool, whether the image is a proper face.
        logits: Encoder -> (N, C) float32, of those that are classifiers too.
        alignment: Encoder -> (N,) float32, 100 x the cosine of image and prompt, of those that
            read texts too.
    """

    features: Mapping[str, NDArray[np.float32]]
    probabilities: Mapping[str, Mapping[str, NDArray[np.float32]]]
    valid: NDArray[np.bool_]
    logits: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    alignment: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.valid)


@dataclass(frozen=True)
class Instruments:
    """The networks that measure a data set's images; no method sees them.

    Attributes:
        judges: The primary one and the second opinion.
        encoder: The data set's own.
        validity: Tells faces from anything else.
        public: Encoders beside the data set's own, as asked for.
    """

    judges: tuple[Judge, Judge]
    encoder: Encoder
    validity: ValidityCheck
    public: tuple[PublicEncoder, ...] = ()

    def hashes(self) -> dict[str, str]:
        """Instrument -> sha256 of its weights."""
        return {
            **{f"judge_{judge.name}": judge.weights_sha256 for judge in self.judges},
            f"encoder_{self.encoder.name}": self.encoder.weights_sha256,
            "validity": self.validity.weights_sha256,
            **{f"encoder_{one.name}": one.weights_sha256 for one in self.public},
        }

    def readings(self) -> dict[str, str]:
        """Instrument -> hash of what else its scores depend on.

        That is: how images are prepared, the number format, and what was measured of it.
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
        known["validity"] = (check.preprocessing, check.dtype, check.threshold)
        for one in (self.encoder, *self.public):
            known[f"encoder_{one.name}"] = (one.preprocessing, one.dtype)
        return {name: run_key({"reading": value}) for name, value in known.items()}


def load_instruments(
    device: str,
    encoders: Sequence[str] = (),
    *,
    allow_download: bool = False,
    batch_size: int | None = None,
) -> Instruments:
    """The instruments of CartoonFaces on a device.

    Args:
        device: As ``--device``.
        encoders: Public ones to use beside, by name.
        allow_download: Get their weights from upstream if they are nowhere.
        batch_size: Images that a public encoder sees at once; None for its default.

    Raises:
        InputError: If there is no such encoder.
        AssetError: If weights are missing or damaged.
    """
    from fairbench.instruments.cartoonfaces import load_encoder, load_judge, load_validity

    public: tuple[PublicEncoder, ...] = ()
    if encoders:
        from fairbench.instruments.encoders import BATCH
        from fairbench.instruments.encoders import load_encoder as load_public

        public = tuple(
            load_public(
                name,
                device=device,
                allow_download=allow_download,
                batch_size=batch_size or BATCH,
            )
            for name in dict.fromkeys(encoders)
        )
    return Instruments(
        (load_judge("primary", device), load_judge("second", device)),
        load_encoder("cartoonfaces", device),
        load_validity(device),
        public,
    )


def measure(
    images: NDArray[np.uint8],
    instruments: Instruments,
    cache: Path,
    progress: Progress,
    prompts: Sequence[str] | None = None,
    listed: ImageList | None = None,
) -> Measurements:
    """Read every image once with every instrument, or take what it said from the store.

    Args:
        images: (N, H, W, 3) uint8, N >= 1.
        instruments: What to measure with.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.
        prompts: N, what the user asked for, image by image; None if there were no prompts.
        listed: Their hashes, where they are known already.

    Raises:
        ContractError: If there are no images.
    """
    if len(images) == 0:
        raise ContractError("expected at least one image to measure, seen none")
    listed = listed or ImageList.of(images)

    def read(
        reader: Reader, names: Sequence[str], call: Callable[[NDArray[np.uint8]], dict[str, Any]]
    ) -> dict[str, NDArray[np.float32]]:
        stored = load_reading(listed, reader, cache, dict.fromkeys(names, np.float32))
        if stored is not None:
            return stored
        parts = []
        for start in range(0, len(images), CHUNK):
            parts.append(call(images[start : start + CHUNK]))
            progress(f"measuring: {reader.name}", min(start + CHUNK, len(images)), len(images))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in names}
        save_reading(listed, reader, cache, arrays)
        return arrays

    encoder, validity = instruments.encoder, instruments.validity
    probabilities = {
        judge.name: read(judge, tuple(judge.attributes), judge) for judge in instruments.judges
    }
    own = read(encoder, ("features",), lambda chunk: {"features": encoder(chunk)})
    faces = read(validity, ("validity",), lambda chunk: {"validity": validity(chunk)})
    features = {encoder.name: own["features"]}
    logits: dict[str, NDArray[np.float32]] = {}
    alignment: dict[str, NDArray[np.float32]] = {}
    if instruments.public:
        from fairbench.instruments.encoders import ClipEncoder
        from fairbench.instruments.encoders import features as features_of

        for public in instruments.public:
            found = features_of(images, public, cache, progress)
            features[public.name] = found.features
            if found.logits is not None:
                logits[public.name] = found.logits
            if prompts is not None and isinstance(public, ClipEncoder):
                alignment[public.name] = public.alignment(found, prompts)
    valid = faces["validity"] >= validity.threshold
    return Measurements(features, probabilities, valid, logits, alignment)
