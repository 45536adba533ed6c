"""Trained weights and states of trainings in the cache, each with a checksum of its content.

A weight file with one wrong bit is still a readable weight file, and makes other images without a
word. So a file whose checksum isn't right counts as missing and is removed; what it held is made
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from fairbench.storage.files import atomic_write, is_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["load_state", "load_tensors", "save_state", "save_tensors"]

MARK = b"sha256:"
CHUNK = 1 << 20


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and what is known of them to one ``.safetensors``, atomically.

    Args:
        path: Where to.
        tensors: By name, on any device.
        facts: Plain values.
    """
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    told = json.dumps(facts)
    with atomic_write(path) as file:
        file.write(save(plain, {"facts": told, "sha256": _digest(plain, told)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and facts of `save_tensors`; None if they are missing or damaged.

    A damaged file is removed.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    if not is_file(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            told: dict[str, str] = file.metadata() or {}
        tensors = load_file(path)
        if told["sha256"] != _digest(tensors, told["facts"]):
            raise ValueError("another checksum")
        facts: dict[str, Any] = json.loads(told["facts"])
    except FileNotFoundError:
        return None
    except Exception:  # a damaged file can raise almost anything
        path.unlink(missing_ok=True)
        return None
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    import torch

    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # Bytes, since NumPy has no bfloat16; a view of a tensor without elements has no bytes.
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.failed: OSError | None = None
        self._file = file

    def write(self, part: bytes) -> int:
        self.digest.update(part)
        try:
            return self._file.write(part)
        except OSError as error:
            self.failed = error
            raise

    def flush(self) -> None:
        self._file.flush()


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a training, tensors and plain values, atomically.

    The file is one of torch's own with its checksum behind the end, where torch doesn't look.
    """
    import torch

    with atomic_write(path) as file:
        hashing = _Hashing(file)
        try:
            torch.save(dict(state), cast("IO[bytes]", hashing))
        except RuntimeError:  # torch's own, on top of what the disk said
            if hashing.failed is not None:
                raise hashing.failed from None
            raise
        file.write(MARK + hashing.digest.digest())


def load_state(path: Path, device: Any = "cpu") -> dict[str, Any] | None:
    """The state of `save_state`; None if it is missing or damaged, and then it is removed.

    Args:
        path: Where from.
        device: Where tensors go to.
    """
    import torch

    if not is_file(path):
        return None
    try:
        with path.open("rb") as file:
            _check_end(file)
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        return None
    except Exception:  # a damaged file can raise almost anything
        path.unlink(missing_ok=True)
        return None
    return state


def _check_end(file: IO[bytes]) -> None:
    """Raise a ValueError unless a file ends with the checksum of all that is before it."""
    size = file.seek(0, 2)
    left = size - len(MARK) - hashlib.sha256().digest_size
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0:
        part = file.read(min(left, CHUNK))
        digest.update(part)
        left -= len(part)
    if file.read() != MARK + digest.digest():
        raise ValueError("another checksum")
