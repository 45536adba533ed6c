"""CartoonFaces: the embedded data set, 32 x 32 RGB cartoon faces with every attribute known.

The images are drawn by the npm packages facesjs and resvg (``fairbench.build.render``); a label is
the parameter that the generator was called with. It is no claim about any person. Bias is never
stored: a :class:`BiasProfile` draws a biased training set out of the pool.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import AssetError, ContractError
from fairbench.core.method import SamplingConfig
from fairbench.core.specs import BackboneSpec, DatasetCard, InstrumentNames, TaskSpec
from fairbench.core.task import Prompt
from fairbench.datasets.base import ArrayImages, Composition, Dataset, Role, Shares
from fairbench.datasets.parts.profiles import Profile

__all__ = [
    "ATTRIBUTES",
    "CELL_ATTRIBUTES",
    "DEFAULT_BIAS",
    "SPLITS",
    "TRAINING_IMAGES",
    "TRAINING_SEED",
    "BiasProfile",
    "load_split",
    "manifest",
    "pack_split",
    "training_split",
]

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gender": ("female", "male"),
        "race": ("asian", "black", "brown", "white"),
        "role": ("person", "baseball player", "tennis player", "football player", "santa"),
        "glasses": ("no", "yes"),
        "facial_hair": ("no", "yes"),
    }
)
"""Attribute -> its levels in declared order; a label is an index into the levels."""

CELL_ATTRIBUTES = ("role", "gender", "race")
"""The attributes whose crossing the splits are balanced over and a bias profile speaks of."""

TEMPLATE = "a photo of {}"
"""What stands around the noun phrase of a prompt or caption."""

SPLITS = ("pool", "method_reference", "judge", "evaluation")

TRAINING_IMAGES = 8000
TRAINING_SEED = 0
"""The draw from the pool that the shipped backbones were trained on, by the default bias."""

XZ_FILTER = {
    "id": lzma.FILTER_LZMA2,
    "preset": 9 | lzma.PRESET_EXTREME,
    "dict_size": 1 << 26,
    "lc": 4,
    "lp": 0,
    "pb": 0,
}

ASSETS = Path(__file__).parents[1] / "assets"
FOLDER, BACKBONES = ASSETS / "cartoonfaces", ASSETS / "backbones"


CELLS = MappingProxyType({name: ATTRIBUTES[name] for name in CELL_ATTRIBUTES})


@dataclass(frozen=True)
class BiasProfile(Profile):
    """Shares of the cells of role x gender x race in a training set.

    Attributes:
        name: Short name, part of what a backbone's card says.
        shares: (5, 2, 4) float64 by role, gender and race in declared order; sums to 1.
    """

    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: CELLS)

    @classmethod
    def from_conditionals(
        cls, name: str, male_given_role: Mapping[str, float], race: Mapping[str, float]
    ) -> BiasProfile:
        """Roles equally often, gender given the role, race independent of both."""
        male = np.array([male_given_role[role] for role in ATTRIBUTES["role"]])
        by_gender = np.stack([1 - male, male], axis=1)
        by_race = np.array([race[level] for level in ATTRIBUTES["race"]])
        shares = by_gender[:, :, None] * by_race / len(male)
        return cls(name, shares)


def cell_index(labels: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.int64]:
    """(N,) flat index of each image's role x gender x race cell."""
    return BALANCED.cell_index(labels)


DEFAULT_BIAS = BiasProfile.from_conditionals(
    "default",
    male_given_role={
        "person": 0.8,
        "baseball player": 0.9,
        "tennis player": 0.1,
        "football player": 0.9,
        "santa": 0.8,
    },
    race={"asian": 0.15, "black": 0.15, "brown": 0.15, "white": 0.55},
)
BALANCED = BiasProfile("balanced", np.full((5, 2, 4), 1 / 40))


def pack_split(images: NDArray[np.uint8], labels: Mapping[str, NDArray[np.uint8]]) -> bytes:
    """The bytes of a split's file: an xz-compressed ``.npz`` of images and labels.

    Args:
        images: (N, 32, 32, 3) uint8. Interleaved colours compress a fifth better than planes.
        labels: Attribute -> (N,) uint8.
    """
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"images": images, **labels}
    np.savez(buffer, **arrays)
    return lzma.compress(buffer.getvalue(), format=lzma.FORMAT_XZ, filters=[dict(XZ_FILTER)])


@cache
def manifest() -> Mapping[str, Any]:
    """What the render script wrote about the files: seed, versions, sizes, sha256."""
    path = FOLDER / "manifest.json"
    try:
        loaded: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise AssetError(f"{path}: {error.strerror}; reinstall fairbench-diffusion") from error
    except ValueError as error:
        raise AssetError(f"{path}: not valid JSON; reinstall fairbench-diffusion") from error
    return MappingProxyType(loaded)


@cache
def load_split(name: str) -> ArrayImages:
    """Load one split; checked against its sha256, then kept in memory.

    Args:
        name: One of :data:`SPLITS`.
    Raises:
        AssetError: If the file is missing or isn't the one that was shipped.
    """
    if name not in SPLITS:
        raise ContractError(f"unknown split {name!r}; known: {', '.join(SPLITS)}")
    entry = manifest()["splits"][name]
    path = FOLDER / entry["file"]
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise AssetError(f"{path}: {error.strerror}; reinstall fairbench-diffusion") from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != entry["sha256"]:
        raise AssetError(
            f"{path}: sha256 {digest[:8]}…, expected {entry['sha256'][:8]}…; "
            "the file is damaged, reinstall fairbench-diffusion"
        )
    with np.load(io.BytesIO(lzma.decompress(packed))) as arrays:
        images = arrays["images"]
        labels = {name: arrays[name] for name in ATTRIBUTES}
    for array in (images, *labels.values()):  # kept in memory and shared
        array.setflags(write=False)
    return ArrayImages(images, MappingProxyType(labels))


def training_split(profile: BiasProfile = DEFAULT_BIAS) -> ArrayImages:
    """The 8,000 images that the shipped backbones were trained on, in the order of the draw.

    Args:
        profile: Another one draws as many images of another composition.
    Raises:
        AssetError: As `load_split`.
    """
    pool = load_split("pool")
    return pool.take(profile.draw(pool.labels, TRAINING_IMAGES, TRAINING_SEED))


class CartoonFaces(Dataset):
    """The embedded data set; two backbones come with it."""

    card = DatasetCard(
        name="cartoonfaces",
        title="32 x 32 cartoon faces from a public generator, every attribute known; embedded",
        licence="Apache-2.0",
        may_publish_images=True,
        attributes=ATTRIBUTES,
        sensitive=("gender", "race"),
        citation="npm packages facesjs 5.0.3 and @resvg/resvg-js; fairbench.build.render",
        default=True,
    )
    subjects = tuple(Prompt(role, {"role": role}, TEMPLATE) for role in ATTRIBUTES["role"])
    tasks = (
        TaskSpec("gender", ("gender",), subjects[:1]),
        TaskSpec("race", ("race",), subjects[:1]),
        TaskSpec("gender_race", ("gender", "race"), subjects[:1]),
        TaskSpec("gender_by_role", ("gender",), subjects, per_prompt=True),
    )
    backbones = (
        BackboneSpec(
            "cartoonfaces-sd",
            BACKBONES / "cartoonfaces-sd",
            True,
            SamplingConfig(steps=25, guidance=3.0),
            "tiny Stable Diffusion pipeline, text-to-image; understands roles and attribute words",
        ),
        BackboneSpec(
            "cartoonfaces-ddpm",
            BACKBONES / "cartoonfaces-ddpm",
            False,
            SamplingConfig(steps=50, guidance=1.0),
            "tiny unconditional pixel model (UNet2DModel) trained on the same biased images",
        ),
    )

    default_profile = DEFAULT_BIAS.name

    def split(self, role: Role) -> ArrayImages:
        """The images of one role; it has all four."""
        return load_split(role)

    def instruments(self) -> InstrumentNames:
        """Two judges of different architecture, an encoder and a validity check."""
        return InstrumentNames(
            ("cartoonfaces/primary", "cartoonfaces/second"),
            ("cartoonfaces/encoder",),
            "cartoonfaces/validity",
        )

    def data_sha256(self) -> str:
        """Hash of the shipped data files, as their manifest states it."""
        splits = {k: v["sha256"] for k, v in manifest()["splits"].items()}
        return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()

    def training_set(self, composition: Composition) -> ArrayImages:
        """8,000 images of the pool, by the default bias or balanced over the cells."""
        return training_split(DEFAULT_BIAS if composition == "biased" else BALANCED)

    def profiles(self) -> Mapping[str, Profile]:
        """Those of the shipped backbones and of the balanced set."""
        return {profile.name: profile for profile in (DEFAULT_BIAS, BALANCED)}

    def trained_on(self, backbone: BackboneSpec) -> ArrayImages | None:
        """The biased draw, for the two backbones that were trained on it."""
        return training_split() if backbone in self.backbones else None

    def training_shares(self, backbone: BackboneSpec) -> Shares | None:
        """The default bias, for the two backbones that were trained with it."""
        if backbone not in self.backbones:
            return None
        return Shares(CELL_ATTRIBUTES, DEFAULT_BIAS.shares)

    def files(self) -> tuple[Path, ...]:
        """The manifest, the four splits, and the networks that read the images."""
        networks = [
            ASSETS / "judges" / f"{name}{suffix}"
            for name in ("primary", "second", "cartoonfaces", "validity")
            for suffix in (".json", ".safetensors")
        ]
        splits = [FOLDER / f"{split}.npz.xz" for split in SPLITS]
        return (FOLDER / "manifest.json", *splits, *networks)


DATASET = CartoonFaces()
