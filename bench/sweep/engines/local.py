"""This machine: one process a step, one step a GPU at a time, or as many on the CPU as fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO

import psutil

from fairbench.core.errors import InputError
from fairbench.sweep.engine import Crew
from fairbench.sweep.steps import Ended, Step
from fairbench.sweep.work import SAID

__all__ = ["ENGINE", "Local"]

POLL = 0.2
"""Seconds between looks at the workers."""

PATIENCE = 20.0
"""Seconds that a worker has to end when it is told to."""

USUAL_MIB = 1500.0
"""Memory of a run that nobody knows."""

SPARED_MIB = 500.0
"""Host memory that is left free."""


@dataclass(frozen=True)
class Slot:
    """Where one step runs: a GPU, or a part of the CPU.

    Attributes:
        name: What a reader calls it.
        device: As ``--device`` of the worker.
        visible: What ``CUDA_VISIBLE_DEVICES`` is for it; None: as it is.
    """

    name: str
    device: str
    visible: str | None = None


@dataclass(eq=False)
class _Worker:
    step: Step
    slot: Slot
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    errors: IO[bytes]
    started: float


class Local:
    """Workers on this machine.

    Args:
        crew: `jobs` is how many steps at once: at most one a GPU, and on the CPU by default one a
            core. There each has one thread, unless ``OMP_NUM_THREADS`` says otherwise: how many
            run at once changes no image.

    Raises:
        InputError: If the device isn't there, or a setting isn't known.
    """

    def __init__(self, crew: Crew) -> None:
        for name in crew.settings:
            raise InputError(f"[engine.local] has no settings; seen {name}")
        self._crew = crew
        self._slots = _slots(crew.device, crew.jobs)
        self._workers: list[_Worker] = []

    def full(self) -> bool:
        """As `Engine.full`."""
        return len(self._workers) >= len(self._slots)

    def room(self, step: Step) -> bool:
        """As `Engine.room`: whether its memory is free; where nothing else runs it is tried."""
        return not self._workers or self._slot(step) is not None

    def start(self, step: Step) -> None:
        """As `Engine.start`."""
        slot = self._slot(step) or self._free()[0]
        env = os.environ | {"PYTHONUNBUFFERED": "1"}
        if slot.visible is not None:
            env["CUDA_VISIBLE_DEVICES"] = slot.visible
        else:
            env.setdefault("OMP_NUM_THREADS", "1")
        # Files, since what fills a pipe that nobody reads stops the worker.
        out, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        holder = f"{self._crew.sweep} {step.key}"
        process = subprocess.Popen(
            [sys.executable, "-m", "fairbench.sweep.work", self._crew.results, holder],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=errors,
            env=env,
            start_new_session=os.name != "nt",  # Ctrl-C is handed on in order, by `close`
        )
        with suppress(BrokenPipeError):  # it died at once, which `wait` finds out
            assert process.stdin is not None
            with process.stdin:
                process.stdin.write(_on(step, slot.device).text().encode())
        self._workers.append(_Worker(step, slot, process, out, errors, time.monotonic()))

    def wait(self, seconds: float) -> Sequence[Ended]:
        """As `Engine.wait`."""
        until = time.monotonic() + seconds
        while True:
            ended = [one for one in self._workers if one.process.poll() is not None]
            if ended or time.monotonic() >= until:
                break
            time.sleep(min(POLL, max(0.0, until - time.monotonic())))
        self._workers = [one for one in self._workers if one not in ended]
        return [_told(one) for one in ended]

    def close(self) -> None:
        """As `Engine.close`: workers are asked, and after a while ended."""
        for one in self._workers:
            _send(one.process, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        for one in self._workers:
            try:
                one.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                _send(one.process, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
                one.process.wait()
            one.out.close()
            one.errors.close()
        self._workers = []

    def _free(self) -> list[Slot]:
        taken = [one.slot for one in self._workers]
        return [slot for slot in self._slots if slot not in taken]

    def _slot(self, step: Step) -> Slot | None:
        """A slot with enough memory for a step."""
        needed = step.memory_mib or USUAL_MIB
        free = self._free()
        if free and free[0].visible is not None:
            memory = _gpu_memory()
            return next(
                (one for one in free if memory.get(str(one.visible), needed) >= needed), None
            )
        # What others have been promised and haven't taken yet.
        promised = sum(
            max(0.0, (one.step.memory_mib or USUAL_MIB) - _held(one.process))
            for one in self._workers
        )
        available = psutil.virtual_memory().available / 2**20 - promised - SPARED_MIB
        return free[0] if free and available >= needed else None


ENGINE = Local


def _on(step: Step, device: str) -> Step:
    """The step on a worker's own device."""
    return replace(step, config=replace(step.config, device=device))


def _slots(device: str, jobs: int | None) -> list[Slot]:
    """Where steps run."""
    import torch

    from fairbench.diffusion.devices import resolve_device

    chosen = resolve_device(device)
    if chosen.type == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [one.strip() for one in seen.split(",") if one.strip()]
        count = torch.cuda.device_count()
        names = names if len(names) >= count else [str(place) for place in range(count)]
        places = range(count) if device in ("auto", "cuda") else [chosen.index or 0]
        slots = [Slot(f"cuda:{place}", "cuda", names[place]) for place in places]
        return slots[:jobs]
    if chosen.type == "mps":
        return [Slot("mps", "mps")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [Slot(f"cpu {place}", "cpu") for place in range(jobs or cores or 1)]


def _gpu_memory() -> dict[str, float]:
    """GPU by its number -> MiB that are free; empty where the driver doesn't say."""
    command = ["nvidia-smi", "--query-gpu=index,memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        rows = [line.split(",") for line in told.stdout.splitlines()]
        return {index.strip(): float(free) for index, free in rows}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def _held(process: subprocess.Popen[bytes]) -> float:
    """MiB of host memory that a process holds."""
    try:
        return float(psutil.Process(process.pid).memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(OSError):
        if os.name == "nt":
            process.terminate()
        else:
            os.killpg(process.pid, number)


def _told(worker: _Worker) -> Ended:
    """What a worker said, or that it died without a word."""
    seconds = time.monotonic() - worker.started
    worker.out.seek(0)
    lines = worker.out.read().decode(errors="replace").splitlines()
    worker.errors.seek(0)
    errors = worker.errors.read().decode(errors="replace").strip().splitlines()
    worker.out.close()
    worker.errors.close()
    said = next((line for line in reversed(lines) if line.startswith(SAID)), None)
    if said is not None:
        key, outcome, line, took = json.loads(said.removeprefix(SAID))
        return Ended(key, outcome, line, took)
    code = worker.process.returncode
    reason = f"its worker was killed by signal {-code}" if code < 0 else f"exit code {code}"
    last = f": {errors[-1]}" if errors else ""
    return Ended(worker.step.key, "lost", f"{reason}{last}", seconds)
