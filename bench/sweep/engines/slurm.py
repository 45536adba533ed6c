"""SLURM, by way of submitit: arrays of jobs that are requeued when they are preempted."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairbench.core.errors import InputError
from fairbench.storage.cache import cache_folder
from fairbench.storage.objects import is_address
from fairbench.sweep.engine import Crew, missing_package
from fairbench.sweep.state import ROOT
from fairbench.sweep.steps import Ended, Step
from fairbench.sweep.work import perform

__all__ = ["ENGINE", "Slurm", "Work"]

POLL = 2.0
"""Seconds between looks at the jobs, at least; SLURM itself is asked far less often."""

SHARE = 0.005
"""Of the time, that looking at the jobs may take: with thousands on a slow disk it is seldom."""

LIMIT_MINUTES = 720
"""Time limit of jobs of which nobody knows how long they take."""

LEAST_MINUTES = 30

SPARE = 3.0
"""How much longer than records say a job may take."""

OWN = ("cluster", "timeout_min")
"""Settings that are the engine's; all others are submitit's."""

PLAIN = (
    *("mem_gb", "cpus_per_task", "gpus_per_node", "nodes", "tasks_per_node", "stderr_to_stdout"),
    "name",
)
"""Submitit's parameters that every cluster has; others are SLURM's own."""


@dataclass(frozen=True)
class Work:
    """What a job does: picklable, and handed to the next job when this one is preempted."""

    text: str
    results: str
    holder: str

    def __call__(self) -> tuple[str, str, str, float]:
        """Do the step; what became of it, as plain values."""
        told = perform(Step.of(self.text), self.results, self.holder)
        return told.key, told.outcome, told.line, told.seconds

    def checkpoint(self) -> Any:
        """What submitit submits again: images and states of training are in the cache."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class Slurm:
    """Jobs of a SLURM cluster.

    Args:
        crew: `jobs` is how many of an array run at once. Settings: ``timeout_min`` (else three
            times what records say), ``cluster`` (``slurm``; ``local`` and ``debug`` try a plan
            out without one), and what submitit calls its parameters, with or without ``slurm_``:
            ``partition``, ``gpus_per_node``, ``cpus_per_task``, ``mem_gb``, ``account``, ``qos``
            and so on.

    Raises:
        InputError: If submitit or SLURM is missing, or a setting isn't known.
    """

    def __init__(self, crew: Crew) -> None:
        try:
            import submitit
        except ImportError:
            raise missing_package("slurm", "submitit") from None
        cluster = crew.setting("cluster", str, "slurm")
        if cluster not in ("slurm", "local", "debug"):
            raise InputError(
                f"[engine.slurm]: cluster must be slurm, local or debug; seen {cluster!r}"
            )
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise InputError(
                "--engine slurm needs sbatch, which isn't here; run this on a login node of the "
                'cluster, or try it out with cluster = "local" in [engine.slurm]'
            )
        # As the other engines: one thread a job unless the user says otherwise.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._crew, self._cluster = crew, cluster
        self._limit = crew.setting("timeout_min", int, None)
        self._logs = _logs(crew.results)
        self._executor: Any = submitit.AutoExecutor(folder=str(self._logs), cluster=cluster)
        parameters: dict[str, Any] = {"name": "fairbench"}
        if crew.jobs is not None:
            parameters["slurm_array_parallelism"] = crew.jobs
        for name, value in crew.settings.items():
            if name not in OWN:
                bare = name.removeprefix("slurm_")
                parameters[bare if bare in PLAIN else f"slurm_{bare}"] = value
        self._parameters = parameters
        self._update(LEAST_MINUTES)
        self._waiting: list[Step] = []
        self._jobs: dict[str, tuple[Any, float]] = {}
        self._next = 0.0

    def full(self) -> bool:
        """As `Engine.full`: SLURM queues what it has no place for."""
        places = self._crew.jobs if self._cluster != "slurm" else None
        return places is not None and len(self._jobs) + len(self._waiting) >= places

    def room(self, step: Step) -> bool:
        """As `Engine.room`: SLURM finds it."""
        return True

    def start(self, step: Step) -> None:
        """As `Engine.start`: it becomes a job of the next array."""
        self._waiting.append(step)

    def wait(self, seconds: float) -> Sequence[Ended]:
        """As `Engine.wait`."""
        self._submit()
        until = time.monotonic() + seconds
        while True:
            # Each look at thousands of jobs takes its time, and so is one for several that end.
            time.sleep(max(0.0, min(self._next, until) - time.monotonic()))
            began = time.monotonic()
            ended = [key for key, (job, _) in self._jobs.items() if job.done()]
            now = time.monotonic()
            self._next = now + max(POLL, (now - began) / SHARE)
            if ended or now >= until:
                break
        return [self._told(key) for key in ended]

    def close(self) -> None:
        """As `Engine.close`: jobs that still wait or run are cancelled."""
        for job, _ in self._jobs.values():
            with contextlib.suppress(Exception):  # it may have ended, or SLURM be gone
                job.cancel()
        self._jobs = {}

    def _submit(self) -> None:
        """All steps that were begun, as one array."""
        if not self._waiting:
            return
        steps, self._waiting = self._waiting, []
        self._update(_minutes(steps))
        crew = self._crew
        try:
            with self._executor.batch():
                jobs = [
                    self._executor.submit(
                        Work(step.text(), crew.results, f"{crew.sweep} {step.key}")
                    )
                    for step in steps
                ]
        except Exception as error:  # submitit hands on what sbatch says
            line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise InputError(f"--engine slurm: the jobs can't be submitted: {line}") from error
        for step, job in zip(steps, jobs, strict=True):
            self._jobs[step.key] = (job, time.monotonic())

    def _update(self, minutes: int) -> None:
        try:
            self._executor.update_parameters(
                **self._parameters, timeout_min=self._limit or minutes
            )
        except (NameError, TypeError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise InputError(f"[engine.slurm]: {line}") from None

    def _told(self, key: str) -> Ended:
        job, started = self._jobs.pop(key)
        try:
            told, outcome, line, seconds = job.result()
        except Exception as error:  # whatever ended the job
            line = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
            took = time.monotonic() - started
            return Ended(key, "lost", f"job {job.job_id}: {line} (logs in {self._logs})", took)
        return Ended(told, outcome, line, seconds)


ENGINE = Slurm


def _logs(results: str) -> Path:
    """Where submitit keeps jobs and logs: a folder that the nodes see, too."""
    return cache_folder() / "slurm" if is_address(results) else Path(results) / ROOT / "slurm"


def _minutes(steps: Sequence[Step]) -> int:
    """Time limit of an array: what its longest step may take."""
    hours = [step.hours for step in steps]
    if any(one is None for one in hours):
        return LIMIT_MINUTES
    longest = max(one for one in hours if one is not None)
    return max(LEAST_MINUTES, math.ceil(SPARE * longest * 60))
