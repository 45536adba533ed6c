"""Analytic: patches of 8 x 8 pixels drawn from a Gaussian mixture, so every right answer is known.

Nothing is trained and nothing is downloaded: images, backbones and instruments are formulas. It is
what the regression gate runs on every change, and the quickest way to try a method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fairbench.core.method import SamplingConfig
from fairbench.core.specs import BackboneSpec, DatasetCard, InstrumentNames, TaskSpec
from fairbench.core.task import Prompt
from fairbench.datasets.base import ArrayImages, Composition, Dataset, Role, Shares

__all__ = ["ATTRIBUTES", "BIAS", "DEVIATION", "SIDE", "draw", "means", "words"]

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"side": ("left", "right"), "tone": ("dark", "light"), "hue": ("red", "green", "blue")}
)
"""Attribute -> its levels; a component of the mixture is a cell of their crossing."""

SIDE = 8
DEVIATION = 0.2
"""Of every pixel around its component's mean, where black is -1 and white is 1."""

BIAS = np.einsum(
    "s,st,h->sth",
    np.array([0.5, 0.5]),
    np.array([[0.2, 0.8], [0.7, 0.3]]),  # dark and light, bright on the left and on the right
    np.array([0.5, 0.3, 0.2]),
)
"""(2, 2, 3) shares of the components in what the backbones make; sums to 1."""

SLOPE, TONE, HUE = 0.2, 0.075, 0.12
"""How far the levels of an attribute lie from the mean, so that judges err in a few per cent."""

FOLDER = Path(__file__).parents[1] / "assets" / "backbones"

_SIZES: Mapping[Role, tuple[int, int]] = MappingProxyType(
    {"pool": (2400, 1), "method_reference": (240, 2), "judge": (2400, 3), "evaluation": (1200, 4)}
)
"""Role -> number of images and seed of their draw."""


def means() -> NDArray[np.float64]:
    """(12, 3, 8, 8) mean of each component, in [-1, 1], in the order of the crossing."""
    left = np.where(np.arange(SIDE) < SIDE // 2, SLOPE, -SLOPE)
    found = np.zeros((2, 2, 3, 3, SIDE, SIDE))
    for side, tone, hue in np.ndindex(2, 2, 3):
        colour = np.full(3, -HUE / 2)
        colour[hue] = HUE
        level = colour + (-TONE, TONE)[tone]
        found[side, tone, hue] = level[:, None, None] + (left if side == 0 else -left)
    return found.reshape(-1, 3, SIDE, SIDE)


def words() -> dict[str, list[int]]:
    """Word of a prompt -> the components that it allows."""
    shape = [len(levels) for levels in ATTRIBUTES.values()]
    places = np.indices(shape).reshape(len(shape), -1)
    return {
        level: np.flatnonzero(places[axis] == i).tolist()
        for axis, levels in enumerate(ATTRIBUTES.values())
        for i, level in enumerate(levels)
    }


def draw(components: NDArray[np.int64], rng: np.random.Generator) -> ArrayImages:
    """One image of each component that is named, (N,), with its labels."""
    noise = rng.standard_normal((len(components), 3, SIDE, SIDE))
    pixels = means()[components] + DEVIATION * noise
    images = np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)
    levels = np.unravel_index(components, [len(one) for one in ATTRIBUTES.values()])
    labels = {name: level.astype(np.uint8) for name, level in zip(ATTRIBUTES, levels, strict=True)}
    return ArrayImages(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels)


@cache
def _split(role: Role) -> ArrayImages:
    size, seed = _SIZES[role]
    rng = np.random.default_rng(seed)
    return draw(rng.permutation(np.arange(size) % BIAS.size), rng)


@cache
def _training(composition: Composition) -> ArrayImages:
    """1,200 images of the pool; balanced ones are its first of each component."""
    pool = _split("pool")
    component = np.ravel_multi_index(
        [pool.labels[name].astype(np.int64) for name in ATTRIBUTES],
        [len(levels) for levels in ATTRIBUTES.values()],
    )
    shares = BIAS.ravel() if composition == "biased" else np.full(BIAS.size, 1 / BIAS.size)
    rng = np.random.default_rng(5)
    wanted = rng.permutation(np.repeat(np.arange(BIAS.size), np.rint(shares * 1200).astype(int)))
    places = {k: np.flatnonzero(component == k) for k in range(BIAS.size)}
    # A component that is wanted more often than the pool has it repeats.
    taken = np.zeros(BIAS.size, dtype=np.int64)
    rows = []
    for one in wanted.tolist():
        rows.append(places[one][taken[one] % len(places[one])])
        taken[one] += 1
    return pool.take(np.array(rows))


@cache
def _sha256() -> str:
    total = hashlib.sha256()
    for role in _SIZES:
        total.update(_split(role).images.tobytes())
    return total.hexdigest()


class Analytic(Dataset):
    """The mixture as a data set, with the same mixture as its backbones."""

    card = DatasetCard(
        name="analytic",
        title="8 x 8 patches of a Gaussian mixture, known exactly; for the gate and quick trials",
        licence="Apache-2.0",
        may_publish_images=True,
        attributes=ATTRIBUTES,
        sensitive=("tone", "hue"),
    )
    subjects = tuple(
        Prompt("patch", {"side": level}, f"{{}} with its bright side {level}")
        for level in ATTRIBUTES["side"]
    )
    tasks = (
        TaskSpec("tone", ("tone",), subjects[:1], crossed=("tone",)),
        TaskSpec("tone_hue", ("tone", "hue"), subjects[:1]),
        TaskSpec("tone_by_side", ("tone",), subjects, per_prompt=True, crossed=("tone",)),
    )
    backbones = (
        BackboneSpec(
            "analytic-text",
            FOLDER / "analytic-text",
            True,
            SamplingConfig(steps=40, guidance=1.0),
            "the mixture's exact denoiser; a prompt's words allow some of its components",
        ),
        BackboneSpec(
            "analytic-plain",
            FOLDER / "analytic-plain",
            False,
            SamplingConfig(steps=40, guidance=1.0),
            "the mixture's exact denoiser, without prompts",
        ),
    )

    def split(self, role: Role) -> ArrayImages:
        """The images of one role, drawn by a fixed seed."""
        return _split(role)

    def instruments(self) -> InstrumentNames:
        """Two judges that see some of the pixels, an encoder and a validity check."""
        return InstrumentNames(
            ("analytic/first", "analytic/second"), ("analytic/encoder",), "analytic/validity"
        )

    def data_sha256(self) -> str:
        """Hash of the pixels of all splits."""
        return _sha256()

    def training_set(self, composition: Composition) -> ArrayImages:
        """About 1,200 images of the pool, in the mixture's shares or balanced."""
        return _training(composition)

    def training_shares(self, backbone: BackboneSpec) -> Shares | None:
        """The mixture's shares, for its own two backbones."""
        return Shares(tuple(ATTRIBUTES), BIAS) if backbone in self.backbones else None


DATASET = Analytic()
