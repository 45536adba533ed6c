"""Plain descriptions that several rooms name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fairbench.core.errors import AssetError
from fairbench.core.method import SamplingConfig
from fairbench.datasets import cartoonfaces


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone that comes with a data set.

    Attributes:
        name: Its name on the command line.
        folder: diffusers pipeline folder.
        conditional: Whether it takes prompts.
        sampling: How it is sampled unless the user says otherwise.
        title: One line.
        training: Gives the images that it was trained on; None if nobody knows them.
    """

    name: str
    folder: Path
    conditional: bool
    sampling: SamplingConfig
    title: str
    training: Callable[[], cartoonfaces.Split] | None = None

    def image_size(self) -> int:
        """Pixels a side of its images, from its configuration files alone.

        Raises:
            AssetError: If the folder is no diffusers pipeline with a U-Net.
        """
        try:
            unet = json.loads((self.folder / "unet" / "config.json").read_text())
            vae = self.folder / "vae" / "config.json"
            levels = json.loads(vae.read_text())["block_out_channels"] if vae.is_file() else [1]
            size = int(unet["sample_size"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AssetError(
                f"backbone {self.name}: expected a diffusers pipeline with a square U-Net at "
                f"{self.folder}, seen {type(error).__name__}: {error}; give --backbone a folder "
                "made by save_pretrained"
            ) from None
        return size << (len(levels) - 1)

    def expected_sha256(self) -> str | None:
        """Hash that its weights had when they were trained; None for a folder of the user's."""
        path = self.folder / "training.json"
        if not path.is_file():
            return None
        recorded: str | None = json.loads(path.read_text()).get("weights_sha256")
        return recorded


@dataclass(frozen=True)
class InstrumentSpec:
    """A network that measures images, as it is found by name.

    Attributes:
        name: What is asked for, such as ``"clip-vit-b-32"`` or ``"cartoonfaces/primary"``.
        kind: ``"judge"`` for attributes, ``"encoder"`` for features, ``"validity"`` for whether
            an image is a proper one, ``"faces"`` for where faces are and whose.
        title: One line.
        load: ``load(device=..., batch_size=..., allow_download=...)`` gives the
            `fairbench.instruments.base.Instrument`; all three are given by name, a batch size of
            None stands for its own.
        weights: Name of its weight file, as ``fairbench doctor`` lists it; empty if its weights
            come with it.
    """

    name: str
    kind: Literal["judge", "encoder", "validity", "faces"]
    title: str
    load: Callable[..., Any]
    weights: str = ""


@dataclass(frozen=True)
class InstrumentNames:
    """Which instruments measure a data set's images, by the names of their specs.

    Attributes:
        judges: One or more; the first is the one that scores come from.
        encoders: The data set's own first; there may be none.
        validity: Tells proper images from others; None if nothing does.
    """

    judges: tuple[str, ...]
    encoders: tuple[str, ...] = ()
    validity: str | None = None
