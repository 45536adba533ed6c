"""FairFace's networks as judges of photographs: race, gender and age by a file of the user's.

Nothing is shipped or downloaded: the authors publish the files by hand
(https://github.com/joojs/fairface), and ``--judge PATH`` names the one to use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairbench.core.errors import AssetError
from fairbench.datasets.base import Dataset
from fairbench.instruments.base import BATCH, Kind, Outputs, Runner, channels_first, normalised
from fairbench.instruments.class_readers import Classes, DatasetJudge, FaceCrops
from fairbench.instruments.faces import load_detector
from fairbench.instruments.loading import load_state
from fairbench.storage.readings import check_images

__all__ = ["FairFace", "load_fairface"]

SIDE = 224
MARGIN = 0.25
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OUTPUTS = 18

# In the order of the 18 outputs.
CLASSES: Mapping[str, Classes] = MappingProxyType(
    {
        "race": Classes(
            (
                "white",
                "black",
                "latino_hispanic",
                "east_asian",
                "southeast_asian",
                "indian",
                "middle_eastern",
            ),
            aliases={
                "asian": ("east_asian", "southeast_asian"),
                "latino": ("latino_hispanic",),
                "hispanic": ("latino_hispanic",),
            },
        ),
        "gender": Classes(("male", "female")),
        "age": Classes(
            ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+"),
            (0, 3, 10, 20, 30, 40, 50, 60, 70),
        ),
    }
)


class FairFace:
    """A ResNet-34 with 18 outputs, as FairFace's authors publish it for seven races.

    Source: Kärkkäinen and Joo 2021, arXiv 1908.04913, and their ``predict.py``. Deviation: the
    face is MTCNN's with a margin of a quarter, not turned upright; theirs is dlib's, aligned.
    """

    kind: Kind = "judge"
    classes = CLASSES
    outputs: Outputs = MappingProxyType(dict.fromkeys(CLASSES, np.float32))
    dtype = "float32"

    def __init__(
        self, path: Path, crops: FaceCrops, *, device: str = "cpu", batch_size: int = BATCH
    ) -> None:
        """Load it from a file of the user's, without running code from it.

        Raises:
            AssetError: If the file isn't there or holds other weights.
            InputError: If there is no such device.
        """
        from torchvision.models import resnet34

        if not path.is_file():
            raise AssetError(f"{path}: no such file; give the path of a FairFace checkpoint")
        state = load_state(path)
        shape = tuple(state["fc.weight"].shape) if "fc.weight" in state else ()
        if shape != (OUTPUTS, 512):
            raise AssetError(
                f"{path}: expected FairFace's ResNet-34 with fc.weight of (18, 512), seen "
                f"{shape or 'none'}; give res34_fair_align_multi_7_20190809.pt"
            )
        with torch.device("meta"):
            module = resnet34(num_classes=OUTPUTS)
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise AssetError(
                f"{path}: doesn't hold the weights of torchvision's ResNet-34; give "
                "res34_fair_align_multi_7_20190809.pt"
            ) from error
        self.name = f"fairface-{path.stem}"
        with path.open("rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        digests = f"{own}\n{crops.weights_sha256}"
        self.weights_sha256 = hashlib.sha256(digests.encode()).hexdigest()
        self.preprocessing = f"{crops.preprocessing}; {SIDE} pixels, ImageNet normalisation"
        self.batch_size = batch_size
        self._crops = crops
        self._runner = Runner(module.float(), device=device, batch_size=batch_size)

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Probabilities of race, gender and age.

        Args:
            images: (N, H, W, 3) uint8, N >= 1.

        Returns:
            ``race`` (N, 7), ``gender`` (N, 2) and ``age`` (N, 9), float32, rows sum to 1.

        Raises:
            ContractError: If the images are of another shape or type, or there are none.
        """
        check_images(images)
        (faces,) = self._crops(images, SIDE)
        parts = self._runner.run(faces, _prepared, self._softmax, self.name)
        return dict(zip(self.classes, parts, strict=True))

    def _softmax(self, pixels: Tensor) -> list[Tensor]:
        sizes = [len(one.names) for one in self.classes.values()]
        parts = torch.split(self._runner.module(pixels), sizes, dim=1)
        return [part.softmax(1) for part in parts]


def _prepared(images: NDArray[Any]) -> Tensor:
    return normalised(channels_first(images).float(), IMAGENET_MEAN, IMAGENET_DEVIATION)


def load_fairface(
    path: Path, *, device: str = "cpu", batch_size: int | None = None, dataset: Dataset
) -> DatasetJudge:
    """A FairFace checkpoint as a judge of a data set; it isn't calibrated yet.

    Raises:
        AssetError: If the file, or the detector's, is missing or holds other weights.
        InputError: If the data set has no attribute that it tells, or there is no such device.
    """
    crops = FaceCrops(load_detector(device), MARGIN)
    rows = BATCH if batch_size is None else batch_size
    reader = FairFace(path, crops, device=device, batch_size=rows)
    return DatasetJudge(reader, dataset.attributes)
