"""Judges that ``fairbench train-judge`` made for a data set: where they lie, and how they read.

Each is a folder of its own, ``<cache>/judges/<data set>/<name>/``, with ``judge.safetensors`` and
its card, ``card.json``. A folder may be copied elsewhere and named by its path.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from fairbench.core.documents import from_json
from fairbench.core.errors import AssetError, InputError
from fairbench.datasets.base import Dataset
from fairbench.inputs.resizing import to_square
from fairbench.instruments.base import BATCH, Runner, channels_first
from fairbench.instruments.class_readers import Calibrated, Cut, FaceCrops
from fairbench.instruments.faces import load_detector
from fairbench.storage.readings import check_images

__all__ = [
    "CARD",
    "DEPTHS",
    "MARGIN",
    "WEIGHTS",
    "Crop",
    "Cropper",
    "TrainedJudge",
    "is_trained_judge",
    "judge_folder",
    "judge_network",
    "labels_sha256",
    "load_trained_judge",
    "trained_judges",
]

CARD, WEIGHTS = "card.json", "judge.safetensors"
DEPTHS = (18, 34)
MARGIN = 0.6
"""Around a face where faces are cut out: hair and glasses must be in view."""

Crop = Literal["centre", "face"]


def judge_folder(dataset: str, cache: Path) -> Path:
    """Where what was trained and measured of a data set's judges lies."""
    return cache / "judges" / dataset


def labels_sha256(dataset: Dataset) -> str:
    """Hash of the labels of a data set's judge split, in order; of no pixel.

    So a judge serves a data set at every size that its images come in.
    """
    split = dataset.split("judge")
    total = hashlib.sha256()
    if split is None:
        return total.hexdigest()
    for name in sorted(dataset.attributes):
        total.update(f"{name} {'/'.join(dataset.attributes[name])}\n".encode())
        total.update(np.asarray(split.labels[name], np.int64).tobytes())
    return total.hexdigest()


def trained_judges(dataset: str, cache: Path) -> dict[str, Path]:
    """Name -> folder of every judge that was trained for a data set, sorted by name."""
    folder = judge_folder(dataset, cache)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path for path in found if is_trained_judge(path)}


def is_trained_judge(path: Path) -> bool:
    """Whether a folder holds one."""
    return (path / CARD).is_file()


def judge_network(depth: int, outputs: int) -> nn.Module:
    """The ResNet of torchvision with one of `DEPTHS` and so many logits, its weights fresh."""
    from torchvision.models import resnet18, resnet34

    make = {18: resnet18, 34: resnet34}
    if depth not in make:
        raise InputError(f"--depth must be {' or '.join(map(str, DEPTHS))}; seen {depth}")
    module: nn.Module = make[depth](num_classes=outputs)
    return module


class Cropper:
    """What is cut out of an image, and resized, before a judge sees it.

    Attributes:
        preprocessing: In words.
        sha256: Of the detector where one is used; empty otherwise.
    """

    def __init__(self, crop: Crop, side: int, device: str) -> None:
        """Set it up.

        Args:
            crop: ``"centre"``: the central square; ``"face"``: MTCNN's face with its hair.
            side: Pixels a side of what comes out.
            device: Where the detector runs.
        """
        self._side = side
        self._faces = FaceCrops(load_detector(device), MARGIN) if crop == "face" else None
        self.sha256 = "" if self._faces is None else self._faces.weights_sha256
        how = "central square, PIL bicubic float to uint8"
        if self._faces is not None:
            how = self._faces.preprocessing
        self.preprocessing = f"{how} {side}, x / 127.5 - 1"

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(N, H, W, 3) uint8 -> (N, side, side, 3) uint8."""
        if self._faces is not None:
            return self._faces(images, self._side)[0]
        return np.stack([to_square(Image.fromarray(image), self._side) for image in images])


class TrainedJudge(Calibrated):
    """A ResNet that was trained on the judge split of one data set.

    Attributes:
        card: Everything that was written down about it, the counts on the held-out half too.
    """

    dtype = "float32"
    batch_size = BATCH

    def __init__(
        self, name: str, module: nn.Module, card: Mapping[str, Any], device: str = "cpu"
    ) -> None:
        self.name = name
        self.card = card
        self.attributes = MappingProxyType(
            {key: tuple(levels) for key, levels in card["attributes"].items()}
        )
        self.levels = self.attributes
        self.outputs = MappingProxyType(dict.fromkeys(self.attributes, np.float32))
        self.refused = dict(card["under_confident"])
        self.confusion = MappingProxyType(
            {
                key: np.array(entry["confusion"], dtype=np.int64)
                for key, entry in card["held_out"].items()
            }
        )
        self._cropper = Cropper(card["crop"], card["side"], device)
        self.preprocessing = self._cropper.preprocessing
        self.weights_sha256 = card["weights"]["sha256"]
        if self._cropper.sha256:
            both = f"{self.weights_sha256}\n{self._cropper.sha256}"
            self.weights_sha256 = hashlib.sha256(both.encode()).hexdigest()
        self._runner = Runner(module, device=device, batch_size=BATCH)

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Probabilities of every attribute's levels.

        Args:
            images: (N, H, W, 3) uint8, N >= 1.

        Returns:
            Attribute -> (N, K) float32 in [0, 1], rows sum to 1.

        Raises:
            ContractError: If the images are of another shape or type, or there are none.
        """
        check_images(images)
        parts = self._runner.run(self._cropper(images), scaled, self._softmax, self.name)
        return dict(zip(self.attributes, parts, strict=True))

    def measured(
        self,
        cuts: Mapping[str, Cut],
        confusion: Mapping[str, NDArray[np.int64]],
        refused: Mapping[str, str],
    ) -> TrainedJudge:
        """The judge with counts on other images than those that its card tells of."""
        other = copy.copy(self)
        other.confusion, other.refused = MappingProxyType(dict(confusion)), dict(refused)
        return other

    def _softmax(self, pixels: Tensor) -> list[Tensor]:
        sizes = [len(levels) for levels in self.attributes.values()]
        parts = torch.split(self._runner.module(pixels), sizes, dim=1)
        return [part.softmax(1) for part in parts]


def scaled(images: NDArray[Any]) -> Tensor:
    """(B, H, W, 3) in [0, 255] -> (B, 3, H, W) in [-1, 1]."""
    return channels_first(images).float() / 127.5 - 1


def load_trained_judge(folder: Path, dataset: Dataset, device: str = "cpu") -> TrainedJudge:
    """Load a judge from its folder.

    Args:
        folder: Holds the card and the weights.
        dataset: Whose images it is to read.
        device: As ``--device``.

    Raises:
        AssetError: If a file is missing or damaged.
        InputError: If it was trained for another data set, or with other labels of this one.

    Where the images are others than those that its card tells of, such as of another size, its
    counts are left out, and must be made anew.
    """
    remedy = f"train it anew: fairbench train-judge --dataset {dataset.name}"
    path = folder / CARD
    try:
        card = from_json(path.read_bytes())
        made_for, data = card["dataset"], card["labels_sha256"]
        name, side, depth = str(card["name"]), int(card["side"]), int(card["depth"])
        levels = {key: tuple(values) for key, values in card["attributes"].items()}
        path = folder / card["weights"]["file"]
        packed = path.read_bytes()
        expected = card["weights"]["sha256"]
    except OSError as error:
        raise AssetError(f"{path}: {error.strerror}; {remedy}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssetError(f"{path}: is no card of a trained judge; {remedy}") from error
    if made_for != dataset.name or data != labels_sha256(dataset) or side < 1:
        raise InputError(
            f"{folder}: was trained on other data than that of {dataset.name} (on {made_for}, "
            f"labels of sha256 {str(data)[:8]}…); delete it, or {remedy}"
        )
    if any(dataset.attributes.get(key) != values for key, values in levels.items()):
        raise InputError(f"{folder}: reads other attributes than {dataset.name} has; {remedy}")
    digest = hashlib.sha256(packed).hexdigest()
    if digest != expected:
        raise AssetError(
            f"{path}: sha256 {digest[:8]}…, expected {str(expected)[:8]}…; it is damaged, {remedy}"
        )
    with torch.device("meta"):
        module = judge_network(depth, sum(map(len, levels.values())))
    try:
        module.load_state_dict(load_safetensors(packed), assign=True)
    except (RuntimeError, SafetensorError) as error:
        raise AssetError(f"{path}: doesn't hold the network of its card; {remedy}") from error
    judge = TrainedJudge(name, module, card, device)
    return judge if card["data_sha256"] == dataset.data_sha256() else judge.measured({}, {}, {})
