"""Public networks that map images to features: Inception-v3, DINOv2, CLIP.

Every network sees batches of one shape, the last filled up with blanks, and its input is prepared
on the CPU, so that an image's features depend on neither its neighbours nor the device beyond
rounding. What was computed once is kept under a key of everything that it depends on.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from fairbench.core.errors import AssetError, ContractError, InputError, unknown_name
from fairbench.core.progress import Progress, silent
from fairbench.diffusion.devices import resolve_device
from fairbench.instruments.weights import find_weights, verify_weights
from fairbench.storage.readings import ImageList, Reader, check_images, load_reading, save_reading

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer, Dinov2Model

__all__ = [
    "BATCH",
    "ENCODERS",
    "ClipEncoder",
    "DinoEncoder",
    "Encoder",
    "EncoderSpec",
    "Features",
    "InceptionEncoder",
    "Runner",
    "clean_resize",
    "features",
    "find_features",
    "load_encoder",
]

BATCH = 32
"""Images a network sees at once, always."""

DTYPES = ("float32", "bfloat16", "float16")
"""Number formats of the networks; features are float32 in any case."""

INCEPTION_SIDE = 299
DINO_SIDE = 224
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Features:
    """What an encoder said about N images.

    Attributes:
        features: (N, D) float32.
        logits: (N, C) float32 of the encoder's classes, without their bias; None if it has none.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.features)


class Encoder(Reader, Protocol):
    """Maps images of any size to features."""

    @property
    def dimension(self) -> int:
        """D, the length of a feature."""

    def __call__(self, images: NDArray[np.uint8], progress: Progress = silent) -> Features:
        """Features of (N, H, W, 3) uint8 images, N >= 1."""


# --- the batch loop ------------------------------------------------------------------------


class Runner:
    """A network in inference mode: the one place that knows its device and its batches."""

    def __init__(
        self, module: nn.Module, *, device: str, dtype: str = "float32", batch_size: int = BATCH
    ) -> None:
        """Move a network to a device.

        Args:
            module: The network.
            device: As ``--device``.
            dtype: One of `DTYPES`; the half formats run under autocast, on CUDA only.
            batch_size: Rows of every batch.

        Raises:
            InputError: If the device isn't there, or can't compute in that format.
        """
        if dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}; seen {dtype!r}")
        self.device = resolve_device(device)
        if dtype != "float32" and self.device.type != "cuda":
            raise InputError(f"dtype {dtype} needs a CUDA device, seen {self.device}; use float32")
        if batch_size < 1:
            raise InputError(f"batch size must be 1 or more; seen {batch_size}")
        self.dtype = dtype
        self.batch_size = batch_size
        self.module = module.to(self.device).eval().requires_grad_(False)

    def run(
        self,
        rows: NDArray[Any],
        prepare: Callable[[NDArray[Any]], Tensor],
        call: Callable[[Tensor], Sequence[Tensor]],
        what: str,
        progress: Progress = silent,
    ) -> list[NDArray[np.float32]]:
        """Feed all rows through the network.

        Args:
            rows: (N, …), N >= 1.
            prepare: (B, …) rows -> the (B, …) CPU tensor that the network takes.
            call: That tensor on the device -> one or more (B, …) tensors.
            what: Named in progress and errors.
            progress: ``progress(what, done, total)``.

        Returns:
            One (N, …) float32 array for each tensor that `call` gives.

        Raises:
            InputError: If a result isn't finite.
        """
        parts: list[list[NDArray[np.float32]]] = []
        for start in range(0, len(rows), self.batch_size):
            chunk = rows[start : start + self.batch_size]
            batch = prepare(chunk)
            if len(chunk) < self.batch_size:
                blanks = batch.new_zeros((self.batch_size - len(chunk), *batch.shape[1:]))
                batch = torch.cat([batch, blanks])
            with torch.inference_mode(), self._autocast():
                results = call(batch.to(self.device))
            parts.append([r[: len(chunk)].float().cpu().numpy() for r in results])
            progress(what, start + len(chunk), len(rows))
        arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
        if not all(np.isfinite(array).all() for array in arrays):
            remedy = "use float32" if self.dtype != "float32" else "check its weight file"
            raise InputError(f"{what}: {self.dtype} results aren't all finite; {remedy}")
        return arrays

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            dtype=torch.float16 if self.dtype == "float16" else torch.bfloat16,
            enabled=self.dtype != "float32",
        )


def _channels_first(images: NDArray[Any]) -> Tensor:
    """(B, H, W, 3) array -> (B, 3, H, W) contiguous tensor of the same type."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _normalised(pixels: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """(B, 3, H, W) in [0, 255] -> channels of about mean 0 and deviation 1."""
    return (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[
        :, None, None
    ]


# --- Inception-v3 --------------------------------------------------------------------------


def clean_resize(images: NDArray[np.uint8], side: int = INCEPTION_SIDE) -> NDArray[np.float32]:
    """Resize as clean-fid does: each channel by Pillow's antialiased bicubic on floats.

    Source: Parmar et al. 2022, arXiv 2104.11222, ``build_resizer("clean")`` of clean-fid 0.1.35,
    equal to it in every bit. Called directly it warns with some versions of Pillow.

    Args:
        images: (N, H, W, 3) uint8; oblong ones are squeezed, as there.
        side: Pixels a side.

    Returns:
        (N, side, side, 3) float32 in [0, 255], not rounded.
    """
    resized = np.empty((len(images), side, side, 3), np.float32)
    for pixels, target in zip(images, resized, strict=True):
        for channel, plane in enumerate(Image.fromarray(pixels).split()):
            floats = plane.convert("F").resize((side, side), Image.Resampling.BICUBIC)
            target[..., channel] = np.clip(np.asarray(floats), 0, 255)
    return resized


class InceptionEncoder:
    """Inception-v3 of 2015-12-05: pool3 features, and logits from the same pass.

    ``clean`` feeds floats resized as clean-fid does to torch-fidelity's layers; ``tf`` feeds
    bytes to torch-fidelity's own forward, which resizes as TensorFlow 1 did. Numbers of the two
    never share a column.

    Source: torch-fidelity 0.4.0 ``FeatureExtractorInceptionV3``, whose layers and weights both
    modes use.
    """

    dimension = 2048
    side = INCEPTION_SIDE

    def __init__(
        self,
        name: str,
        path: Path,
        weights_sha256: str,
        *,
        clean: bool,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = BATCH,
    ) -> None:
        """Load it from torch-fidelity's weight file.

        Raises:
            AssetError: If the file doesn't hold these weights.
            InputError: As `Runner`.
        """
        self.name = name
        self.weights_sha256 = weights_sha256
        self.dtype = dtype
        self.preprocessing = (
            f"clean-fid PIL bicubic float {INCEPTION_SIDE}, (x-128)/128"
            if clean
            else f"torch-fidelity TF1 bilinear uint8 {INCEPTION_SIDE}, (x-128)/128"
        )
        self._clean = clean
        self._runner = Runner(_inception(path), device=device, dtype=dtype, batch_size=batch_size)
        # The extractor registers its layers in the order in which an image passes them; the last
        # is the classifier. Its own forward takes bytes only, and would round what was resized.
        *trunk, classifier = self._runner.module.children()
        self._trunk = nn.Sequential(*trunk)
        self._classifier = cast(nn.Linear, classifier)

    def __call__(self, images: NDArray[np.uint8], progress: Progress = silent) -> Features:
        """Pool3 features (N, 2048) and unbiased logits (N, 1008).

        Args:
            images: (N, H, W, 3) uint8, N >= 1.
            progress: ``progress(what, done, total)``.

        Raises:
            ContractError: If the images are of another shape or type, or there are none.
        """
        check_images(images)
        if self._clean:
            prepare, call = self._resized, self._layers
        else:
            prepare, call = _channels_first, self._runner.module
        pooled, logits = self._runner.run(images, prepare, call, self.name, progress)
        return Features(pooled, logits)

    def _resized(self, images: NDArray[np.uint8]) -> Tensor:
        return (_channels_first(clean_resize(images)) - 128) / 128

    def _layers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self._trunk(pixels).flatten(1)
        return pooled, functional.linear(pooled, self._classifier.weight)


def _inception(path: Path) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = load_state(path)
    # Upstream unpickles whatever it is given without restraint; so it is given bytes that were
    # written here, from tensors that were loaded with restraint.
    safe = io.BytesIO()
    torch.save(state, safe)
    safe.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):
            module: nn.Module = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=safe,
            )
    except (RuntimeError, AttributeError, TypeError) as error:
        raise AssetError(
            f"{path}: doesn't hold the weights of torch-fidelity's Inception-v3; delete it and "
            "get it anew"
        ) from error
    return module


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch weight file, loaded without running code from it.

    Raises:
        AssetError: If it can't be read or holds anything but tensors by name.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged files make the unpickler raise nearly anything.
    except Exception as error:
        raise AssetError(
            f"{path}: expected PyTorch weights, seen a file that can't be read as such "
            f"({type(error).__name__}); delete it and get it anew"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise AssetError(
            f"{path}: expected tensors by name, seen {type(state).__name__}; delete it and get "
            "it anew"
        )
    return state


# --- DINOv2 --------------------------------------------------------------------------------


class DinoEncoder:
    """DINOv2: the class token after the last norm.

    Images are resized to 224 x 224 in torch, antialiased bicubic on floats, oblong ones
    squeezed. Not clean-fid's resizing: the network was trained with torch-style resizing.

    Source: Stein et al. 2023, arXiv 2306.04675 (dgm-eval). Deviation: positions are interpolated
    as transformers does it, which differs from the DINOv2 repository in the last digits.
    """

    side = DINO_SIDE
    preprocessing = f"torch bicubic antialias float {DINO_SIDE}, ImageNet normalisation"

    def __init__(
        self,
        name: str,
        path: Path,
        weights_sha256: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = BATCH,
    ) -> None:
        """Load it from a folder in transformers' format.

        Raises:
            AssetError: If the folder doesn't hold a whole DINOv2.
            InputError: As `Runner`.
        """
        from transformers import Dinov2Model

        model: Dinov2Model = _from_folder(Dinov2Model, path, "dinov2")
        self.name = name
        self.weights_sha256 = weights_sha256
        self.dtype = dtype
        self.dimension = int(model.config.hidden_size)
        self._runner = Runner(model, device=device, dtype=dtype, batch_size=batch_size)

    def __call__(self, images: NDArray[np.uint8], progress: Progress = silent) -> Features:
        """Class tokens (N, D); arguments and errors as for Inception."""
        check_images(images)
        (tokens,) = self._runner.run(images, self._resized, self._token, self.name, progress)
        return Features(tokens)

    def _resized(self, images: NDArray[np.uint8]) -> Tensor:
        pixels = functional.interpolate(
            _channels_first(images).float(),
            size=(DINO_SIDE, DINO_SIDE),
            mode="bicubic",
            align_corners=False,
            antialias=True,
        )
        return _normalised(pixels.clamp(0, 255), IMAGENET_MEAN, IMAGENET_DEVIATION)

    def _token(self, pixels: Tensor) -> tuple[Tensor]:
        return (self._runner.module(pixel_values=pixels).last_hidden_state[:, 0],)


# --- CLIP ----------------------------------------------------------------------------------


class ClipEncoder:
    """CLIP: images and texts to unit vectors of one space.

    Images keep their aspect: the shorter side is resized to the network's, antialiased bicubic on
    bytes as in CLIP's own preprocessing, and the centre is cut out.

    Source: Radford et al. 2021, arXiv 2103.00020.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        weights_sha256: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = BATCH,
    ) -> None:
        """Load it from a folder in transformers' format, with its tokenizer.

        Raises:
            AssetError: If the folder doesn't hold a whole CLIP.
            InputError: As `Runner`.
        """
        from transformers import CLIPModel, CLIPTokenizer

        model: CLIPModel = _from_folder(CLIPModel, path, "clip")
        try:
            self._tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
                path, local_files_only=True
            )
        except Exception as error:
            raise AssetError(
                f"{path}: its tokenizer can't be read ({type(error).__name__}); get "
                "vocab.json and merges.txt anew"
            ) from error
        self.name = name
        self.weights_sha256 = weights_sha256
        self.dtype = dtype
        self.dimension = int(model.config.projection_dim)
        self.side = int(model.config.vision_config.image_size)
        self.preprocessing = (
            f"PIL bicubic uint8 short side {self.side}, centre crop, CLIP normalisation"
        )
        self._words = int(model.config.text_config.max_position_embeddings)
        self._runner = Runner(model, device=device, dtype=dtype, batch_size=batch_size)

    def __call__(self, images: NDArray[np.uint8], progress: Progress = silent) -> Features:
        """Unit vectors (N, D); arguments and errors as for Inception."""
        check_images(images)
        (vectors,) = self._runner.run(images, self._resized, self._image, self.name, progress)
        return Features(_unit(vectors))

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

    def clip_score(
        self, images: NDArray[np.uint8], prompts: Sequence[str], progress: Progress = silent
    ) -> NDArray[np.float32]:
        """100 x the cosine between every image and its prompt; higher is better.

        A negative cosine stays negative. The prompts are the user's: a method that rewrites them
        would otherwise be scored against its own words.

        Args:
            images: (N, H, W, 3) uint8, N >= 1.
            prompts: N, one for each image.
            progress: ``progress(what, done, total)``.

        Returns:
            (N,) float32 in [-100, 100].

        Raises:
            ContractError: If there isn't one prompt for each image.
        """
        return self.alignment(self(images, progress), prompts)

    def alignment(self, seen: Features, prompts: Sequence[str]) -> NDArray[np.float32]:
        """`clip_score` of images whose features are there; arguments and errors as there."""
        if len(seen) != len(prompts):
            raise ContractError(
                f"expected one prompt for each of {len(seen)} images, seen {len(prompts)}"
            )
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        rows = self.text_features(list(places))[[places[prompt] for prompt in prompts]]
        return np.asarray(100 * (seen.features * rows).sum(1, dtype=np.float64), np.float32)

    def _resized(self, images: NDArray[np.uint8]) -> Tensor:
        cut = np.stack([_short_side(pixels, self.side) for pixels in images])
        return _normalised(_channels_first(cut).float(), CLIP_MEAN, CLIP_DEVIATION)

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


def _from_folder(architecture: Any, path: Path, kind: str) -> Any:
    """A transformers model of a local folder; nothing is downloaded and nothing left random."""
    from transformers import AutoConfig
    from transformers.utils import logging

    # Its bars and notices would mix with this program's own.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            if config.model_type != kind:
                raise AssetError(
                    f"{path}: expected a {kind} model, seen {config.model_type}; put the right "
                    "model there"
                )
            model, told = architecture.from_pretrained(
                path,
                config=config,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                trust_remote_code=False,
            )
    except AssetError:
        raise
    # A damaged file may raise anything, from the JSON reader to safetensors' own errors.
    except Exception as error:
        # PyTorch's own text about a file that holds code recommends to run it.
        unsafe = isinstance(error, pickle.UnpicklingError)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = "it holds more than tensors" if unsafe else lines[0][:200]
        raise AssetError(
            f"{path}: can't be loaded as a {kind} model ({reason}); delete it and get it anew"
        ) from error
    # transformers fills what is missing with random numbers and only prints a warning.
    lacking = sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]]))
    if lacking:
        raise AssetError(
            f"{path}: {len(lacking)} weights of the {kind} model are missing or of another shape, "
            f"such as {lacking[0]}; delete it and get it anew"
        )
    return model


# --- by name -------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder that can be asked for.

    Attributes:
        weights: Name of its weight file.
        architecture: Loads it.
        dimension: D that the right weights have.
        side: Pixels a side that the network sees with the right weights.
    """

    weights: str
    architecture: Callable[..., InceptionEncoder | DinoEncoder | ClipEncoder]
    dimension: int
    side: int


def _inception_spec(*, clean: bool) -> EncoderSpec:
    load = partial(InceptionEncoder, clean=clean)
    return EncoderSpec("inception-torch-fidelity", load, 2048, INCEPTION_SIDE)


ENCODERS: Mapping[str, EncoderSpec] = MappingProxyType(
    {
        "inception@clean": _inception_spec(clean=True),
        "inception@tf": _inception_spec(clean=False),
        "dinov2-vit-b-14": EncoderSpec("dinov2-vit-b-14", DinoEncoder, 768, DINO_SIDE),
        "dinov2-vit-l-14": EncoderSpec("dinov2-vit-l-14", DinoEncoder, 1024, DINO_SIDE),
        "clip-vit-l-14-336": EncoderSpec("clip-vit-l-14-336", ClipEncoder, 768, 336),
        "clip-vit-b-32": EncoderSpec("clip-vit-b-32", ClipEncoder, 512, 224),
    }
)
"""Encoder -> how it is loaded."""


def load_encoder(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = BATCH,
    allow_download: bool = False,
) -> InceptionEncoder | DinoEncoder | ClipEncoder:
    """Load an encoder.

    Args:
        name: One of `ENCODERS`.
        device: As ``--device``.
        dtype: ``"float32"``, or on CUDA ``"bfloat16"`` or ``"float16"``.
        batch_size: Images the network sees at once.
        allow_download: Get its weights from upstream if they are nowhere.

    Raises:
        InputError: If there is no such encoder or device, or the format isn't possible there.
        AssetError: If its weights are missing, damaged or those of another model.
    """
    if name not in ENCODERS:
        raise unknown_name("encoder", name, ENCODERS)
    spec = ENCODERS[name]
    path = find_weights(spec.weights, allow_download=allow_download)
    encoder = spec.architecture(
        name,
        path,
        verify_weights(spec.weights, path),
        device=device,
        dtype=dtype,
        batch_size=batch_size,
    )
    if (encoder.dimension, encoder.side) != (spec.dimension, spec.side):
        raise AssetError(
            f"{path}: expected {name} with {spec.dimension} features of {spec.side} pixels a "
            f"side, seen {encoder.dimension} of {encoder.side}; put the right model there"
        )
    return encoder


# --- the store of features ---------------------------------------------------------------


def find_features(images: ImageList, encoder: Encoder, cache: Path) -> Features | None:
    """The stored features of images that needn't be at hand; None if there are none."""
    types: dict[str, type[np.generic]] = {"features": np.float32, "logits": np.float32}
    arrays = load_reading(images, encoder, cache, types)
    if arrays is None or arrays["features"].shape[1:] != (encoder.dimension,):
        return None
    logits = arrays["logits"]
    return Features(arrays["features"], logits if logits.shape[1] else None)


def features(
    images: NDArray[np.uint8], encoder: Encoder, cache: Path, progress: Progress = silent
) -> Features:
    """The features of images: from the store, or computed and stored.

    Args:
        images: (N, H, W, 3) uint8, N >= 1.
        encoder: What to read them with.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.

    Raises:
        ContractError: If the images are of another shape or type, or there are none.
    """
    listed = ImageList.of(images)
    found = find_features(listed, encoder, cache)
    if found is None:
        found = encoder(images, progress)
        # No classes at all stand for no logits.
        logits = found.logits if found.logits is not None else np.empty((len(listed), 0), "f4")
        arrays = {"features": found.features, "logits": logits}
        save_reading(listed, encoder, cache, arrays)
    return found
