"""CLIP, an encoder of images and of texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fairbench.core.errors import AssetError, ContractError
from fairbench.core.specs import InstrumentSpec
from fairbench.instruments.base import (
    Kind,
    NetworkFromFile,
    Outputs,
    channels_first,
    normalised,
)
from fairbench.instruments.loading import load_public, load_transformer
from fairbench.storage.readings import check_images

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

__all__ = ["INSTRUMENTS", "ClipEncoder"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ClipEncoder(NetworkFromFile):
    """CLIP: images and texts to unit vectors of one space.

    Images keep their aspect: the shorter side is resized to the network's, antialiased bicubic on
    bytes as in CLIP's own preprocessing, and the centre is cut out.

    Attributes:
        logit_scale: What the model was trained to multiply cosines by, about 100.

    Source: Radford et al. 2021, arXiv 2103.00020.
    """

    kind: Kind = "encoder"
    outputs: Outputs = MappingProxyType({"features": np.float32})

    def network(self, path: Path) -> nn.Module:
        """A whole CLIP with its tokenizer, from a folder in transformers' format."""
        from transformers import CLIPModel, CLIPTokenizer

        model = load_transformer(CLIPModel, path, "clip")
        try:
            self._tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
                path, local_files_only=True
            )
        except Exception as error:
            raise AssetError(
                f"{path}: its tokenizer can't be read ({type(error).__name__}); get "
                "vocab.json and merges.txt anew"
            ) from error
        self.dimension = int(model.config.projection_dim)
        self.side = int(model.config.vision_config.image_size)
        self.preprocessing = (
            f"PIL bicubic uint8 short side {self.side}, centre crop, CLIP normalisation"
        )
        self.logit_scale = float(model.logit_scale.detach().exp())
        self._words = int(model.config.text_config.max_position_embeddings)
        module: nn.Module = model
        return module

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Unit vectors (N, D); arguments and errors as for Inception."""
        check_images(images)
        (vectors,) = self._runner.run(images, self._resized, self._image, self.name)
        return {"features": _unit(vectors)}

    def text_features(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (P, D) of P >= 1 prompts; what is beyond 77 tokens is cut off.

        Raises:
            ContractError: If there are no prompts.
        """
        if not prompts:
            raise ContractError("expected at least one prompt, seen none")
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self._words,
            return_tensors="np",
        )["input_ids"]
        (vectors,) = self._runner.run(
            np.asarray(tokens, np.int64), torch.from_numpy, self._text, f"{self.name} texts"
        )
        return _unit(vectors)

    def clip_score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float32]:
        """100 x the cosine between every image and its prompt; higher is better.

        A negative cosine stays negative. The prompts are the user's: a method that rewrites them
        would otherwise be scored against its own words.

        Args:
            images: (N, H, W, 3) uint8, N >= 1.
            prompts: N, one for each image.

        Returns:
            (N,) float32 in [-100, 100].

        Raises:
            ContractError: If there isn't one prompt for each image.
        """
        return self.alignment(self(images)["features"], prompts)

    def alignment(
        self, features: NDArray[np.float32], prompts: Sequence[str]
    ) -> NDArray[np.float32]:
        """`clip_score` of images whose (N, D) features are there; errors as there."""
        if len(features) != len(prompts):
            raise ContractError(
                f"expected one prompt for each of {len(features)} images, seen {len(prompts)}"
            )
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        rows = self.text_features(list(places))[[places[prompt] for prompt in prompts]]
        return np.asarray(100 * (features * rows).sum(1, dtype=np.float64), np.float32)

    def _resized(self, images: NDArray[np.uint8]) -> Tensor:
        cut = np.stack([_short_side(pixels, self.side) for pixels in images])
        return normalised(channels_first(cut).float(), CLIP_MEAN, CLIP_DEVIATION)

    def _image(self, pixels: Tensor) -> tuple[Tensor]:
        return (self._runner.module.get_image_features(pixel_values=pixels).pooler_output,)  # type: ignore[operator]

    def _text(self, tokens: Tensor) -> tuple[Tensor]:
        # No mask: attention is causal, so what stands behind the end can't be seen from it.
        return (self._runner.module.get_text_features(input_ids=tokens).pooler_output,)  # type: ignore[operator]


def _short_side(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) so that the shorter side is `side`, and cut the centre square out."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in size)
    return np.asarray(image.crop((left, top, left + side, top + side)))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(vectors / norms, np.float32)


def _spec(name: str, title: str, dimension: int, side: int) -> InstrumentSpec:
    load = partial(load_public, name, name, ClipEncoder, dimension, side)
    return InstrumentSpec(name, "encoder", title, load, name)


INSTRUMENTS = (
    _spec("clip-vit-l-14-336", "CLIP L/14 at 336 pixels, for CMMD", 768, 336),
    _spec("clip-vit-b-32", "CLIP B/32, for the CLIP score", 512, 224),
)
