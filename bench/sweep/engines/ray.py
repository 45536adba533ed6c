"""A Ray cluster: one task a step, begun again elsewhere when its node dies."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

from fairbench.core.errors import InputError
from fairbench.sweep.engine import Crew, missing_package
from fairbench.sweep.steps import Ended, Step
from fairbench.sweep.work import perform

__all__ = ["ENGINE", "OnRay"]

RETRIES = 3
"""How often Ray itself begins a task again whose worker or node dies."""

AHEAD = 2
"""Tasks that are queued for each that runs."""

SETTINGS = ("address", "num_cpus", "num_gpus", "memory_mib", "resources")


def _do(text: str, results: str, holder: str) -> tuple[str, str, str, float]:
    told = perform(Step.of(text), results, holder)
    return told.key, told.outcome, told.line, told.seconds


class OnRay:
    """Tasks of a Ray cluster.

    Args:
        crew: `jobs` is how many run at once. Settings: ``address`` (default ``auto``, the cluster
            that this machine is part of; ``local`` starts one here), and what a task takes:
            ``num_cpus`` (1), ``num_gpus`` (1 where the cluster has GPUs), ``memory_mib`` (what
            records say) and ``resources``, a table of others.

    Raises:
        InputError: If Ray is missing, no cluster is there, or a setting isn't known.
    """

    def __init__(self, crew: Crew) -> None:
        try:
            import ray
        except ImportError:
            raise missing_package("ray", "ray") from None
        for name in crew.settings:
            if name not in SETTINGS:
                raise InputError(f"[engine.ray] knows {', '.join(SETTINGS)}; seen {name}")
        address = crew.setting("address", str, "auto")
        self._crew, self._ray = crew, ray
        self._began = not ray.is_initialized()
        if self._began:
            try:
                ray.init(
                    address=address,
                    log_to_driver=False,
                    include_dashboard=None if address != "local" else False,
                    logging_level="ERROR",
                )
            except (ConnectionError, ValueError) as error:
                line = (str(error).strip().splitlines() or [""])[0]
                raise InputError(
                    f"--engine ray: no cluster at {address} ({line}); ray start --head begins "
                    'one, or say address = "local" in [engine.ray]'
                ) from None
        there = ray.cluster_resources()
        gpus = crew.setting("num_gpus", int, 1 if there.get("GPU") and crew.device != "cpu" else 0)
        cpus = crew.setting("num_cpus", int, 1)
        self._options: dict[str, Any] = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "resources": dict(crew.setting("resources", dict, {})) or None,
            "max_retries": RETRIES,
            "max_calls": 1,  # a process a step: what one leaves in memory is no other's
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": _threads()}},
        }
        self._memory = crew.setting("memory_mib", int, None)
        at_once = int(there.get("CPU", 1) // max(cpus, 1))
        if gpus:
            at_once = int(there.get("GPU", 1) // gpus)
        self._places = crew.jobs or AHEAD * max(1, at_once)
        self._tasks: dict[Any, tuple[Step, float]] = {}

    def full(self) -> bool:
        """As `Engine.full`."""
        return len(self._tasks) >= self._places

    def room(self, step: Step) -> bool:
        """As `Engine.room`: Ray finds it."""
        return True

    def start(self, step: Step) -> None:
        """As `Engine.start`."""
        options = dict(self._options)
        memory = self._memory or step.memory_mib
        if memory and not options["num_gpus"]:  # records of a GPU say what they took of it
            options["memory"] = int(memory * 2**20)
        task = self._ray.remote(**options)(_do)
        crew = self._crew
        reference = task.remote(step.text(), crew.results, f"{crew.sweep} {step.key}")
        self._tasks[reference] = (step, time.monotonic())

    def wait(self, seconds: float) -> Sequence[Ended]:
        """As `Engine.wait`."""
        if not self._tasks:
            time.sleep(max(0.0, seconds))
            return []
        waiting = list(self._tasks)
        ended, _ = self._ray.wait(waiting, num_returns=1, timeout=max(0.0, seconds))
        if ended:  # what ended beside it, too
            ended, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [self._told(reference) for reference in ended]

    def close(self) -> None:
        """As `Engine.close`."""
        for reference in self._tasks:
            with contextlib.suppress(Exception):  # its node may be gone
                self._ray.cancel(reference, force=True)
        self._tasks = {}
        if self._began:
            self._ray.shutdown()

    def _told(self, reference: Any) -> Ended:
        step, started = self._tasks.pop(reference)
        try:
            key, outcome, line, seconds = self._ray.get(reference)
        except Exception as error:  # whatever ended it, as Ray says it
            line = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
            return Ended(step.key, "lost", line, time.monotonic() - started)
        return Ended(key, outcome, line, seconds)


ENGINE = OnRay


def _threads() -> str:
    """As the other engines: one thread a task unless the user says otherwise."""
    return os.environ.get("OMP_NUM_THREADS", "1")
