"""What reads CartoonFaces images: two attribute judges, a feature encoder, a validity check.

All four were trained by ``fairbench.build.train_judges`` on the first 5,000 images of the judge
split, from scratch and apart from any backbone or method; their cards hold what they do on the
last 1,000. They see images of 32 x 32 pixels; of others the central square is resized to that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn import functional

from fairbench.core.errors import AssetError, unknown_name
from fairbench.core.specs import InstrumentSpec
from fairbench.datasets.cartoonfaces import ATTRIBUTES
from fairbench.inputs.resizing import to_square
from fairbench.instruments.base import Instrument, Kind, Outputs, Runner
from fairbench.storage.readings import check_images

__all__ = [
    "BATCH",
    "ENCODERS",
    "INSTRUMENTS",
    "JOINT",
    "JUDGES",
    "Encoder",
    "Judge",
    "ValidityCheck",
    "load_encoder",
    "load_judge",
    "load_validity",
]

BATCH = 64
"""Images a network sees at once, always: float32 results of other batch sizes differ by 1e-6."""

FOLDER = Path(__file__).parents[1] / "assets" / "judges"
SIDE = 32
LEVELS = tuple(len(levels) for levels in ATTRIBUTES.values())
JOINT = ("gender", "race")
"""The attributes whose crossing has a confusion matrix of its own, ``"gender/race"``."""

Network = TypeVar("Network", bound=nn.Module)


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a skip; the first may halve the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        y = functional.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        skip = functional.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return functional.relu(y + self.skip(skip))


class ResidualTrunk(nn.Sequential):
    """Residual convolutions, (B, 3, 32, 32) -> (B, widths[-1], 4, 4)."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            Residual(widths[0], widths[0], 1),
            Residual(widths[0], widths[1], 2),
            Residual(widths[1], widths[2], 2),
        )


class ResidualJudge(nn.Module):
    """The primary judge: a residual CNN, its last map averaged, one linear head an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = ResidualTrunk((24, 48, 96))
        self.heads = nn.Linear(96, sum(LEVELS))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [-1, 1] -> (B, 15) logits, attribute after attribute."""
        logits: Tensor = self.heads(self.trunk(x).mean((2, 3)))
        return logits


class Mixing(nn.Module):
    """One MLP-mixer layer: an MLP across the patches, then one across the channels."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.patch_norm = nn.LayerNorm(width)
        self.across_patches = nn.Sequential(
            nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches)
        )
        self.channel_norm = nn.LayerNorm(width)
        self.across_channels = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        # In training only; without it 5,000 images are learnt by heart.
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, patches, width) -> the same shape."""
        mixed = self.across_patches(self.patch_norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.dropout(mixed)
        y: Tensor = x + self.dropout(self.across_channels(self.channel_norm(x)))
        return y


class MixerJudge(nn.Module):
    """The second judge: an MLP-mixer over overlapping 8 x 8 patches, without a convolution stack.

    Source: Tolstikhin et al., MLP-Mixer, arXiv:2105.01601. Deviations: both hidden layers are
    twice as wide as their input; patches overlap by half, so that a small feature such as a
    moustache lies whole in one of them.
    """

    def __init__(self) -> None:
        super().__init__()
        width, patches = 80, (SIDE // 4) ** 2
        self.embedding = nn.Linear(8 * 8 * 3, width)
        self.layers = nn.Sequential(*(Mixing(patches, width) for _ in range(4)))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.Linear(width, sum(LEVELS))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [-1, 1] -> (B, 15) logits, attribute after attribute."""
        patches = functional.unfold(x, 8, padding=2, stride=4).transpose(1, 2)
        y = self.norm(self.layers(self.embedding(patches)))
        logits: Tensor = self.heads(y.mean(1))
        return logits


class FaceEncoder(nn.Module):
    """Image -> 64 features, each of mean 0 and deviation 1 over real faces."""

    dimension = 64

    def __init__(self) -> None:
        super().__init__()
        self.trunk = ResidualTrunk((24, 48, 96))
        self.bottleneck = nn.Linear(96 * 16, self.dimension, bias=False)
        self.standardise = nn.BatchNorm1d(self.dimension, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [-1, 1] -> (B, 64)."""
        y: Tensor = self.standardise(self.bottleneck(self.trunk(x).flatten(1)))
        return y


class FaceOrNot(nn.Module):
    """Image -> logit of being a proper cartoon face; sees the whole layout of the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = ResidualTrunk((32, 64, 64))
        self.head = nn.Sequential(nn.Linear(64 * 16, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) in [-1, 1] -> (B, 1)."""
        y: Tensor = self.head(self.trunk(x).flatten(1))
        return y


JUDGES: Mapping[str, type[nn.Module]] = MappingProxyType(
    {"primary": ResidualJudge, "second": MixerJudge}
)
"""Judge -> its architecture."""

ENCODERS: Mapping[str, type[FaceEncoder]] = MappingProxyType({"cartoonfaces": FaceEncoder})
"""Encoder -> its architecture."""


def scale(images: Tensor) -> Tensor:
    """Pixels in [0, 255] -> what the networks see, in [-1, 1]."""
    return images / 127.5 - 1


class _Network:
    """What the four have in common.

    Attributes:
        name: What messages and columns call it.
        preprocessing: What is done to an image of the data set before the network sees it.
        dtype: Number format of the network.
        weights_sha256: Of the weight file; part of a record's key.
        card: Everything that was written down about it.
    """

    # The text is part of the keys of committed records. That an image of another size is resized
    # needn't stand in it: a stored result's key has the size, and so has a record's question.
    preprocessing = f"{SIDE} x {SIDE} as it is, x / 127.5 - 1"
    dtype = "float32"
    batch_size = BATCH

    def __init__(self, name: str, module: nn.Module, card: Mapping[str, Any], device: str) -> None:
        self.name = name
        self.card = card
        self.weights_sha256: str = card["weights"]["sha256"]
        self._runner = Runner(module, device=device, batch_size=BATCH)

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, outputs) of (N, H, W, 3) uint8 images."""
        check_images(images)
        (outputs,) = self._runner.run(images, _squares, self._outputs, self.name)
        return outputs

    def _outputs(self, pixels: Tensor) -> tuple[Tensor]:
        # Channels are moved on the device and stay last in memory: with another layout the
        # convolutions round differently.
        return (self._runner.module(scale(pixels.permute(0, 3, 1, 2).float())),)


def _squares(images: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 32, 32, 3) uint8."""
    if images.shape[1:3] == (SIDE, SIDE):
        return torch.from_numpy(images.copy())
    return torch.from_numpy(np.stack([to_square(Image.fromarray(one), SIDE) for one in images]))


class Judge(_Network):
    """Reads the attributes of an image.

    Attributes:
        attributes: Attribute -> its levels, in declared order.
        confusion: Attribute -> (K, K) counts on the held-out images, rows are the truth;
            ``"gender/race"`` is the (8, 8) one of the crossing.
    """

    kind: Kind = "judge"
    outputs: Outputs = MappingProxyType(dict.fromkeys(ATTRIBUTES, np.float32))

    def __init__(self, name: str, module: nn.Module, card: Mapping[str, Any], device: str) -> None:
        super().__init__(name, module, card, device)
        self.attributes = ATTRIBUTES
        self.confusion: Mapping[str, NDArray[np.int64]] = MappingProxyType(
            {
                key: np.array(entry["confusion"], dtype=np.int64)
                for key, entry in card["held_out"].items()
            }
        )

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Probabilities of every attribute's levels.

        Args:
            images: (N, H, W, 3) uint8, N >= 1.

        Returns:
            Attribute -> (N, K) float32 in [0, 1], rows sum to 1.

        Raises:
            ContractError: If the images are of another shape or type, or there are none.
        """
        parts = torch.split(torch.from_numpy(self._run(images)), list(LEVELS), dim=1)
        return {
            name: part.softmax(1).numpy() for name, part in zip(ATTRIBUTES, parts, strict=True)
        }


class Encoder(_Network):
    """Maps an image to features, for distances between sets of images.

    Attributes:
        dimension: D, the length of a feature.
    """

    kind: Kind = "encoder"
    outputs: Outputs = MappingProxyType({"features": np.float32})

    def __init__(
        self, name: str, module: FaceEncoder, card: Mapping[str, Any], device: str
    ) -> None:
        super().__init__(name, module, card, device)
        self.dimension = module.dimension

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """``features``, (N, D) float32, of (N, H, W, 3) uint8 images; raises like a judge."""
        return {"features": self._run(images)}


class ValidityCheck(_Network):
    """Tells proper cartoon faces from noise, blur, shuffled, averaged and inverted images.

    Attributes:
        threshold: An image is valid if its probability is at least this.
    """

    kind: Kind = "validity"
    outputs: Outputs = MappingProxyType({"validity": np.float32})

    def __init__(self, module: nn.Module, card: Mapping[str, Any], device: str) -> None:
        super().__init__("validity", module, card, device)
        self.threshold = float(card["threshold"])

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """``validity``, (N,) float32 probability of being a proper face; raises like a judge."""
        logits = torch.from_numpy(self._run(images))
        return {"validity": logits[:, 0].sigmoid().numpy()}


def load_judge(name: str, device: str = "cpu") -> Judge:
    """Load an attribute judge.

    Args:
        name: ``"primary"`` or ``"second"``: different architectures, to be used side by side.
        device: Torch device to run on.

    Raises:
        InputError: If there is no such judge.
        AssetError: If its weights or its card are missing or not the shipped ones.
    """
    if name not in JUDGES:
        raise unknown_name("judge", name, JUDGES)
    confusions = (f"held_out.{key}.confusion" for key in (*ATTRIBUTES, "/".join(JOINT)))
    module, card = _load(name, JUDGES[name], *confusions)
    return Judge(name, module, card, device)


def load_encoder(name: str = "cartoonfaces", device: str = "cpu") -> Encoder:
    """Load the feature encoder; arguments and errors as for a judge."""
    if name not in ENCODERS:
        raise unknown_name("encoder", name, ENCODERS)
    module, card = _load(name, ENCODERS[name])
    return Encoder(name, module, card, device)


def load_validity(device: str = "cpu") -> ValidityCheck:
    """Load the validity check; argument and errors as for a judge."""
    module, card = _load("validity", FaceOrNot, "threshold")
    return ValidityCheck(module, card, device)


def _load(
    name: str, architecture: type[Network], *needed: str
) -> tuple[Network, Mapping[str, Any]]:
    """The network of one card, its weights checked against the sha256 written there.

    Args:
        name: The card's file name, without its ending.
        architecture: Takes the weights.
        needed: What else the card must hold, as dotted names.
    """
    path = FOLDER / f"{name}.json"
    try:
        card = json.loads(_read(path))
    except ValueError as error:
        raise AssetError(f"{path}: {error}; reinstall fairbench-diffusion") from error
    file, expected, *_ = (
        _entry(card, path, at) for at in ("weights.file", "weights.sha256", *needed)
    )
    path = FOLDER / file
    packed = _read(path)
    digest = hashlib.sha256(packed).hexdigest()
    if digest != expected:
        raise AssetError(
            f"{path}: sha256 {digest[:8]}…, expected {expected[:8]}…; "
            "the file is damaged, reinstall fairbench-diffusion"
        )
    # On the meta device nothing is initialised: loading must not move torch's global generator.
    with torch.device("meta"):
        module = architecture()
    try:
        module.load_state_dict(load_safetensors(packed), assign=True)
    except (RuntimeError, SafetensorError) as error:
        raise AssetError(
            f"{path}: doesn't hold the weights of {architecture.__name__}, so weights and code "
            "are of different versions; reinstall fairbench-diffusion"
        ) from error
    return module, MappingProxyType(card)


def _entry(card: Any, path: Path, name: str) -> Any:
    """What a card holds under a dotted name; no name of its own has a dot."""
    for part in name.split("."):
        if not isinstance(card, dict) or part not in card:
            raise AssetError(f"{path}: lacks {name}; reinstall fairbench-diffusion")
        card = card[part]
    return card


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AssetError(f"{path}: {error.strerror}; reinstall fairbench-diffusion") from error


# --- by name -------------------------------------------------------------------------------


def _loader(load: Callable[..., Instrument], *name: str) -> Callable[..., Instrument]:
    """Loads one of them for `InstrumentSpec`: batches are of one size and weights come along."""

    def loaded(*, device: str = "cpu", **ignored: Any) -> Instrument:
        return load(*name, device)

    return loaded


INSTRUMENTS = (
    InstrumentSpec(
        "cartoonfaces/primary",
        "judge",
        "attributes of cartoon faces, by a residual CNN",
        _loader(load_judge, "primary"),
    ),
    InstrumentSpec(
        "cartoonfaces/second",
        "judge",
        "attributes of cartoon faces, by an MLP-mixer as a second opinion",
        _loader(load_judge, "second"),
    ),
    InstrumentSpec(
        "cartoonfaces/encoder",
        "encoder",
        "64 features of cartoon faces",
        _loader(load_encoder, "cartoonfaces"),
    ),
    InstrumentSpec(
        "cartoonfaces/validity",
        "validity",
        "proper cartoon faces from noise, blur, shuffled and averaged images",
        _loader(load_validity),
    ),
)
