"""The one place that knows about devices, number formats and peak memory."""

from __future__ import annotations

import re
import resource
import sys
from typing import TYPE_CHECKING

from fairbench.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["peak_memory_mib", "resolve_device", "resolve_dtype"]


def resolve_device(name: str) -> torch.device:
    """The device that ``--device`` names; ``auto`` takes the first of cuda, mps, cpu.

    Raises:
        InputError: If the name is none of auto, cpu, cuda, cuda:N, mps or isn't there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", name):
        raise InputError(f"--device must be auto, cpu, cuda, cuda:N or mps; seen {name!r}")
    device = torch.device(name)
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            raise InputError(
                f"--device {name} isn't there: {found} CUDA devices found; use --device auto"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps isn't there; use --device auto")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format that ``--dtype`` names; ``auto`` is bfloat16 on CUDA, else float32.

    A CPU without bfloat16 units runs bfloat16 ten times slower than float32, so that ``auto``
    never picks it there.

    Raises:
        InputError: If the name is none of auto, float32, bfloat16 or the device lacks it.
    """
    import torch

    if name not in ("auto", "float32", "bfloat16"):
        raise InputError(f"--dtype must be auto, float32 or bfloat16; seen {name!r}")
    cuda_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if name == "auto":
        return torch.bfloat16 if cuda_bfloat16 else torch.float32
    if name == "bfloat16" and device.type == "cuda" and not cuda_bfloat16:
        raise InputError(f"--dtype bfloat16 isn't supported by {device}; use float32")
    return torch.float32 if name == "float32" else torch.bfloat16


def peak_memory_mib(device: torch.device) -> float:
    """Most memory this process has held so far: of the GPU if there is one, else of the host."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
