"""What every instrument is, the one batch loop that they share, and the one way to read images.

An instrument is a network that says something about each image: a judge its attributes, an
encoder its features, a validity check whether it is a proper one, a face network where a face is
or whose. It takes images of any size and prepares them by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fairbench.core.errors import ContractError, InputError
from fairbench.core.progress import Progress, silent
from fairbench.datasets.base import ImageSource
from fairbench.diffusion.devices import resolve_device
from fairbench.storage.readings import (
    ImageList,
    Reader,
    load_part,
    load_reading,
    remove_parts,
    save_part,
    save_reading,
)

__all__ = [
    "BATCH",
    "DTYPES",
    "AlignsTexts",
    "AttributeJudge",
    "FeatureEncoder",
    "Instrument",
    "Kind",
    "NetworkFromFile",
    "Outputs",
    "Runner",
    "Validity",
    "channels_first",
    "normalised",
    "read",
    "read_part",
    "read_source",
    "torch_resized",
]

BATCH = 32
"""Images a network sees at once, always, unless its file says otherwise."""

CHUNK = 64
"""Images that an instrument is handed at once, rounded up to whole batches of its own."""

HELD = 512
"""Images of a source that are decoded at once, about; fewer where they are large."""

HELD_BYTES = 64 * 2**20
"""Bytes of images that are held at once, and handed to an instrument, about.

An instrument may hold four times as much, as floats, and again as much resized.
"""

DTYPES = ("float32", "bfloat16", "float16")
"""Number formats of the networks; results are float32 in any case."""

Kind = Literal["judge", "encoder", "validity", "faces"]

Outputs = Mapping[str, type[np.generic]]
"""Array that an instrument returns -> its number type."""


# --- what an instrument is -----------------------------------------------------------------


class Instrument(Reader, Protocol):
    """Says something about each image.

    Beside its own members it has those of a `Reader`: ``name``, ``weights_sha256``,
    ``preprocessing`` and ``dtype``, which keep its stored results apart from all others.
    """

    @property
    def kind(self) -> Kind:
        """What it is asked for."""

    @property
    def outputs(self) -> Outputs:
        """Names and number types of the arrays that it returns."""

    def __call__(self, images: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        """Read (N, H, W, 3) uint8 images of any size, N >= 1.

        Returns:
            Every name of `outputs` -> (N, …) array. An image's row doesn't depend on the images
            that came with it.
        """


class AttributeJudge(Instrument, Protocol):
    """An instrument of kind ``"judge"``: one (N, K) float32 array of probabilities an attribute.

    Rows lie in [0, 1] and sum to 1.
    """

    @property
    def attributes(self) -> Mapping[str, tuple[str, ...]]:
        """Attribute -> its K levels, in the data set's order; the same names as `outputs`."""

    @property
    def confusion(self) -> Mapping[str, NDArray[np.int64]]:
        """Attribute, or attributes joined by ``/`` -> (K, K) counts on held-out images.

        Rows are the truth, columns the level of highest probability. The levels of a crossing are
        numbered with the last attribute running fastest.
        """


class FeatureEncoder(Instrument, Protocol):
    """An instrument of kind ``"encoder"``: ``features``, (N, D) float32.

    One that is a classifier too also returns ``logits``, (N, C) float32, without their bias.
    """

    @property
    def dimension(self) -> int:
        """D, the length of a feature."""


class Validity(Instrument, Protocol):
    """An instrument of kind ``"validity"``: ``validity``, (N,) float32 in [0, 1]."""

    @property
    def threshold(self) -> float:
        """An image is a proper one if its probability is at least this."""


@runtime_checkable
class AlignsTexts(Protocol):
    """What an encoder that reads texts too can do."""

    def alignment(
        self, features: NDArray[np.float32], prompts: Sequence[str]
    ) -> NDArray[np.float32]:
        """100 x the cosine, (N,), of each image's (N, D) features and its prompt."""


# --- the batch loop ------------------------------------------------------------------------


class Runner:
    """A network in inference mode: the one place that knows its device and its batches."""

    def __init__(
        self, module: nn.Module, *, device: str, dtype: str = "float32", batch_size: int = BATCH
    ) -> None:
        """Move a network to a device.

        Args:
            module: The network.
            device: As ``--device``.
            dtype: One of `DTYPES`; the half formats run under autocast, on CUDA only.
            batch_size: Rows of every batch.

        Raises:
            InputError: If the device isn't there, or can't compute in that format.
        """
        if dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}; seen {dtype!r}")
        self.device = resolve_device(device)
        if dtype != "float32" and self.device.type != "cuda":
            raise InputError(f"dtype {dtype} needs a CUDA device, seen {self.device}; use float32")
        if batch_size < 1:
            raise InputError(f"batch size must be 1 or more; seen {batch_size}")
        self.dtype = dtype
        self.batch_size = batch_size
        self.module = module.to(self.device).eval().requires_grad_(False)

    def run(
        self,
        rows: NDArray[Any],
        prepare: Callable[[NDArray[Any]], Tensor],
        call: Callable[[Tensor], Sequence[Tensor]],
        what: str,
    ) -> list[NDArray[np.float32]]:
        """Feed all rows through the network, in batches of one shape.

        The last batch is filled up with zeros: results of batches of another size differ in the
        last digits.

        Args:
            rows: (N, …), N >= 1.
            prepare: (B, …) rows -> the (B, …) CPU tensor that the network takes.
            call: That tensor on the device -> one or more (B, …) tensors.
            what: Named in errors.

        Returns:
            One (N, …) float32 array for each tensor that `call` gives.

        Raises:
            InputError: If a result isn't finite.
        """
        parts: list[list[NDArray[np.float32]]] = []
        for start in range(0, len(rows), self.batch_size):
            chunk = rows[start : start + self.batch_size]
            batch = prepare(chunk)
            if len(chunk) < self.batch_size:
                blanks = batch.new_zeros((self.batch_size - len(chunk), *batch.shape[1:]))
                batch = torch.cat([batch, blanks])
            with torch.inference_mode(), self._autocast():
                if self.device.type == "cuda":  # pinned, the copy and the network overlap
                    batch = batch.pin_memory()
                results = call(batch.to(self.device, non_blocking=True))
            parts.append([r[: len(chunk)].float().cpu().numpy() for r in results])
        arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
        if not all(np.isfinite(array).all() for array in arrays):
            remedy = "use float32" if self.dtype != "float32" else "check its weight file"
            raise InputError(f"{what}: {self.dtype} results aren't all finite; {remedy}")
        return arrays

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            dtype=torch.float16 if self.dtype == "float16" else torch.bfloat16,
            enabled=self.dtype != "float32",
        )


class NetworkFromFile:
    """An instrument that is one network, read from one weight file or folder.

    A subclass names its `kind`, `outputs` and `preprocessing`, and reads the network.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        weights_sha256: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = BATCH,
    ) -> None:
        """Read the network and move it to its device.

        Args:
            name: What columns and messages call it.
            path: Where its weights lie.
            weights_sha256: Their hash.
            device: As ``--device``.
            dtype: One of `DTYPES`.
            batch_size: Rows of every batch.

        Raises:
            AssetError: If what lies there doesn't hold these weights.
            InputError: If the device isn't there, or can't compute in that format.
        """
        self.name = name
        self.weights_sha256 = weights_sha256
        self.dtype = dtype
        self.batch_size = batch_size
        module = self.network(path)
        self._runner = Runner(module, device=device, dtype=dtype, batch_size=batch_size)

    def network(self, path: Path) -> nn.Module:
        """The network whose weights lie there, on the CPU.

        Raises:
            AssetError: If what lies there doesn't hold these weights.
        """
        raise NotImplementedError


def channels_first(images: NDArray[Any]) -> Tensor:
    """(B, H, W, 3) array -> (B, 3, H, W) contiguous tensor of the same type."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def torch_resized(images: NDArray[Any], side: int) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, side, side) float32 in [0, 255].

    Resized in torch, antialiased bicubic on floats; oblong images are squeezed.
    """
    pixels = functional.interpolate(
        channels_first(images).float(),
        size=(side, side),
        mode="bicubic",
        align_corners=False,
        antialias=True,
    )
    return pixels.clamp(0, 255)


def normalised(pixels: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """(B, 3, H, W) in [0, 255] -> channels of about mean 0 and deviation 1."""
    return (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[
        :, None, None
    ]


# --- reading images ------------------------------------------------------------------------


def read(
    images: NDArray[np.uint8],
    instrument: Instrument,
    cache: Path,
    progress: Progress = silent,
    listed: ImageList | None = None,
) -> dict[str, NDArray[Any]]:
    """What an instrument says about images: from the store, or computed and stored.

    Args:
        images: (N, H, W, 3) uint8, N >= 1.
        instrument: What to read them with.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.
        listed: The hashes of these images if the caller has them; else they are hashed here.

    Returns:
        Every output of the instrument -> (N, …) array.

    Raises:
        ContractError: If the images are of another shape or type or there are none, if `listed`
            lists others, or if the instrument returns anything but what it declares.
    """
    listed = ImageList.of(images) if listed is None else listed
    if images.shape[:3] != (len(listed), listed.height, listed.width):
        raise ContractError(
            f"expected the list of {images.shape} images, seen one of {len(listed)} images of "
            f"{listed.height}x{listed.width}"
        )
    stored = load_reading(listed, instrument, cache, instrument.outputs)
    if stored is not None:
        return stored
    parts: list[Mapping[str, NDArray[Any]]] = []
    _read_on(parts, instrument, images, progress, len(images))
    return _kept(parts, instrument, listed, cache)


def read_source(
    source: ImageSource,
    instruments: Sequence[Instrument],
    cache: Path,
    progress: Progress = silent,
) -> list[dict[str, NDArray[Any]]]:
    """What instruments say about a data set's images, each image decoded once for all of them.

    Args:
        source: The images, N >= 1; a few hundred are held at once.
        instruments: What to read them with.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.

    Returns:
        As `read`, of each instrument.

    Raises:
        ContractError: If an instrument returns anything but what it declares.
    """
    listed = source.listing
    found = [load_reading(listed, one, cache, one.outputs) for one in instruments]
    missing = [one for one, stored in zip(instruments, found, strict=True) if stored is None]
    chunk = _chunk(missing, listed)
    parts = [_stored_parts(listed, one, cache, chunk) for one in missing]
    lacking = [number for number, part in enumerate(parts) if not part]
    for batch in source.batches(chunk) if lacking else ():
        for number in lacking:
            _read_on(parts[number], missing[number], batch, progress, len(source))
    made = iter(
        [_kept(said, one, listed, cache) for one, said in zip(missing, parts, strict=True)]
    )
    return [next(made) if stored is None else stored for stored in found]


def read_part(
    source: ImageSource,
    instruments: Sequence[Instrument],
    cache: Path,
    progress: Progress = silent,
    *,
    index: int,
    count: int,
) -> None:
    """Read one of several parts of a source; `read_source` puts them together.

    The parts are whole chunks, so that each instrument sees the batches that it would see alone.

    Args:
        source: All of the images.
        instruments: What to read them with.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.
        index: Which part, from 0.
        count: How many there are.
    """
    listed = source.listing
    missing = [one for one in instruments if load_reading(listed, one, cache, one.outputs) is None]
    chunk = _chunk(missing, listed)
    left = {
        number: lacking
        for number in range(index, -(-len(source) // chunk), count)
        if (
            lacking := [
                one for one in missing if load_part(listed, one, cache, chunk, number) is None
            ]
        )
    }
    if not left:
        return
    rows = [np.arange(n * chunk, min((n + 1) * chunk, len(source))) for n in left]
    # In one go: what can only be read from its begin on is read once, and the next ahead of time.
    batches = source.take(np.concatenate(rows)).batches(chunk)
    for (number, lacking), batch in zip(left.items(), batches, strict=True):
        for one in lacking:
            said: list[Mapping[str, NDArray[Any]]] = []
            _read_on(said, one, batch, progress, len(source))
            arrays = {name: np.concatenate([part[name] for part in said]) for name in one.outputs}
            save_part(listed, one, cache, chunk, number, arrays)


def _chunk(instruments: Sequence[Instrument], listed: ImageList) -> int:
    """Images that are decoded at once: whole steps of every instrument.

    Each then sees the batches that one array would give it.
    """
    size = listed.height * listed.width * 3
    together = math.lcm(*(_step(one, size) for one in instruments))
    return together * max(1, min(HELD, HELD_BYTES // size) // together)


def _stored_parts(
    listed: ImageList, instrument: Instrument, cache: Path, chunk: int
) -> list[Mapping[str, NDArray[Any]]]:
    """What several processes said of all images; empty unless it is complete."""
    parts: list[Mapping[str, NDArray[Any]]] = []
    for number in range(-(-len(listed) // chunk)):
        part = load_part(listed, instrument, cache, chunk, number)
        rows = min(chunk, len(listed) - number * chunk)
        if part is None or any(len(part.get(name, ())) != rows for name in instrument.outputs):
            return []
        parts.append(part)
    return parts


def _step(instrument: Instrument, size: int) -> int:
    """Images that an instrument is handed at once: whole batches of its own.

    Args:
        instrument: Which.
        size: Bytes of an image.
    """
    batch: int = getattr(instrument, "batch_size", 1)
    most = max(batch, HELD_BYTES // size // batch * batch)
    return min(-(-CHUNK // batch) * batch, most)


def _read_on(
    parts: list[Mapping[str, NDArray[Any]]],
    instrument: Instrument,
    images: NDArray[np.uint8],
    progress: Progress,
    total: int,
) -> None:
    """Read further images and join what was said to what was said before."""
    done = sum(len(next(iter(part.values()))) for part in parts)
    step = _step(instrument, math.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        chunk = images[start : start + step]
        parts.append(_checked(instrument, instrument(chunk), len(chunk)))
        done += len(chunk)
        progress(f"measuring: {instrument.name}", done, total)


def _kept(
    parts: Sequence[Mapping[str, NDArray[Any]]],
    instrument: Instrument,
    listed: ImageList,
    cache: Path,
) -> dict[str, NDArray[Any]]:
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in instrument.outputs}
    save_reading(listed, instrument, cache, arrays)
    remove_parts(listed, instrument, cache)
    return arrays


def _checked(
    instrument: Instrument, arrays: Mapping[str, NDArray[Any]], n: int
) -> Mapping[str, NDArray[Any]]:
    """What an instrument returned for N images, if it is what it declares."""
    declared = {name: (np.dtype(kind), n) for name, kind in instrument.outputs.items()}
    seen = {name: (array.dtype, len(array)) for name, array in arrays.items()}
    if seen != declared:
        shown = [
            ", ".join(f"{name} {dtype} of {rows} rows" for name, (dtype, rows) in one.items())
            for one in (declared, seen)
        ]
        raise ContractError(
            f"instrument {instrument.name}: expected {shown[0] or 'nothing'}, seen "
            f"{shown[1] or 'nothing'}; mend its outputs or its __call__"
        )
    return arrays
