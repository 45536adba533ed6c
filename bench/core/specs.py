"""Plain descriptions that several rooms name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
