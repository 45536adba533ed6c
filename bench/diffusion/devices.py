"""The one place that knows about devices, number formats and peak memory."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fairbench.core.errors import InputError
from fairbench.storage.files import alone

if TYPE_CHECKING:
    import torch

__all__ = [
    "begin_run",
    "is_main_process",
    "made_once",
    "meet",
    "peak_memory_mib",
    "process_count",
    "process_index",
    "resolve_autocast",
    "resolve_device",
    "resolve_dtype",
    "together",
    "training_alone",
    "training_processes",
]

PATIENCE = timedelta(days=7)
"""How long processes wait for each other: one may train, or measure, while the others wait."""

_ALONE: ContextVar[bool] = ContextVar("training alone", default=False)


def process_count() -> int:
    """Processes of this run, as torchrun and ``accelerate launch`` tell; 1 alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def meet(device: torch.device) -> None:
    """Wait until every process of this run has come here; nothing with one process alone.

    Raises:
        InputError: If one of them has ended.
    """
    if process_count() == 1:
        return
    from accelerate import PartialState

    with together():
        PartialState(cpu=device.type == "cpu", timeout=PATIENCE).wait_for_everyone()


@contextmanager
def together() -> Iterator[None]:
    """Within the block processes wait for each other.

    Raises:
        InputError: If another one has ended, whose connection is then closed.
    """
    try:
        yield
    except RuntimeError as error:
        if not re.search("closed by peer|reset by peer|Broken pipe|gloo|NCCL", str(error)):
            raise
        raise InputError(
            "another process of this run has ended; see what it said. The same command goes on "
            "where this stopped"
        ) from error


@contextmanager
def training_alone() -> Iterator[None]:
    """Within the block a process trains by itself, however many share the run."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def training_processes() -> int:
    """Processes that a step of a training is split over, each drawing rows of its own."""
    return 1 if _ALONE.get() else process_count()


def made_once(path: Path) -> AbstractContextManager[None]:
    """A block in which no other run of the same disk makes the same file; see `alone`.

    Nothing for processes that share a training: none of them may wait for another there.
    """
    return alone(path) if training_processes() == 1 else nullcontext()


def resolve_device(name: str) -> torch.device:
    """The device that ``--device`` names; ``auto`` takes the first of cuda, mps, cpu.

    Of several processes on one machine, as torchrun and ``accelerate launch`` start them, each
    has the GPU of its own number for ``auto`` and ``cuda``.

    Raises:
        InputError: If the name is none of auto, cpu, cuda, cuda:N, mps or isn't there.
    """
    import torch

    if name == "auto" and torch.cuda.is_available():
        name = "cuda"
    elif name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?|mps", name):
        raise InputError(f"--device must be auto, cpu, cuda, cuda:N or mps; seen {name!r}")
    place = os.environ.get("LOCAL_RANK", "")
    if name == "cuda" and place.isdecimal():
        name = f"cuda:{place}"
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


def is_main_process() -> bool:
    """Whether this process writes records, the first of those started together."""
    return process_index() == 0


def resolve_dtype(name: str, device: torch.device, *, embedded: bool = True) -> torch.dtype:
    """The number format that ``--dtype`` names.

    ``auto`` is float32 for a backbone that comes with fairbench, so that records of different
    machines can be compared, and on a CPU: one without bfloat16 units runs it ten times slower.
    For others it is bfloat16 on a GPU that has it, else float16.

    Args:
        name: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: Where the backbone runs.
        embedded: Whether the backbone comes with fairbench.
    Raises:
        InputError: If the name is none of these or the device lacks it.
    """
    import torch

    if name not in ("auto", "float32", "bfloat16", "float16"):
        raise InputError(f"--dtype must be auto, float32, bfloat16 or float16; seen {name!r}")
    cuda = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        if embedded or device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if cuda else torch.float16
    if name == "float16" and device.type == "cpu":
        raise InputError("--dtype float16 isn't supported by cpu; use float32 or bfloat16")
    if name == "bfloat16" and device.type != "cpu" and not cuda:
        raise InputError(f"--dtype bfloat16 isn't supported by {device}; use float32 or float16")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def begin_run(device: torch.device) -> None:
    """Start a new count of peak memory, and compute float32 as float32, in a fixed order.

    CUDA's convolutions round to TF32 by default, and another machine would see other numbers.
    """
    if device.type == "cuda":
        import torch

        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held: of the GPU in this run if there is one, else of the process so far."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def resolve_autocast(precision: str, device: torch.device) -> torch.dtype:
    """The number format of autocast while training.

    Args:
        precision: ``auto``, ``float32`` or ``bfloat16``; ``auto`` is bfloat16 where the device
            computes it natively, which the averaged float32 weights lose nothing by.
        device: Where the training runs.
    """
    import torch

    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
            native = device.type == "cpu" and supported is not None and bool(supported())
        precision = "bfloat16" if native else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
