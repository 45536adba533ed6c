"""Weight files of other projects to networks; no code in them is run, nothing is left random."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fairbench.core.errors import AssetError
from fairbench.instruments.base import BATCH
from fairbench.instruments.weights import find_weights, verify_weights

__all__ = ["load_public", "load_state", "load_transformer"]


class Sized(Protocol):
    """A network whose weights show whether they are the right ones."""

    @property
    def dimension(self) -> int:
        """D, the length of a feature."""

    @property
    def side(self) -> int:
        """Pixels a side that the network sees."""


Network = TypeVar("Network", bound=Sized)


def load_public(
    name: str,
    weights: str,
    architecture: Callable[..., Network],
    dimension: int,
    side: int,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int | None = None,
    allow_download: bool = False,
) -> Network:
    """Load an encoder from a weight file that another project publishes.

    Args:
        name: Name of the encoder.
        weights: Name of its weight file.
        architecture: Loads it, given its name, the file, the file's sha256 and the options.
        dimension: D that the right weights have.
        side: Pixels a side that the network sees with the right weights.
        device: As ``--device``.
        dtype: ``"float32"``, or on CUDA ``"bfloat16"`` or ``"float16"``.
        batch_size: Images the network sees at once; None for the usual number.
        allow_download: Get its weights from upstream if they are nowhere.

    Raises:
        InputError: If there is no such device, or the format isn't possible there.
        AssetError: If its weights are missing, damaged or those of another model.
    """
    path = find_weights(weights, allow_download=allow_download)
    encoder = architecture(
        name,
        path,
        verify_weights(weights, path),
        device=device,
        dtype=dtype,
        batch_size=BATCH if batch_size is None else batch_size,
    )
    if (encoder.dimension, encoder.side) != (dimension, side):
        raise AssetError(
            f"{path}: expected {name} with {dimension} features of {side} pixels a "
            f"side, seen {encoder.dimension} of {encoder.side}; put the right model there"
        )
    return encoder


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


def load_transformer(architecture: Any, path: Path, kind: str) -> Any:
    """Load a transformers model from a local folder; nothing is downloaded.

    Args:
        architecture: The class of transformers that loads it.
        path: The folder.
        kind: The type of model that its configuration must state.

    Raises:
        AssetError: If it holds another model, or not all of its weights.
    """
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
