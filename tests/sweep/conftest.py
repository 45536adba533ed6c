"""Plans on the analytic data set, and what is done with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairbench.core.progress import Reporter
from fairbench.sweep.plan import plan_of
from fairbench.sweep.sweeping import Sweep

SMALL = {
    "dataset": "analytic",
    "methods": ["vanilla", "prompt_append"],
    "tasks": ["tone", "tone_hue"],
    "num_images": 100,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sweep_of() -> Callable[..., Sweep]:
    """The sweep of a small plan with changes, in a place."""

    def make(results: str = "results", report: Reporter | None = None, **changes: object) -> Sweep:
        return Sweep.of(
            plan_of({**SMALL, **changes}, "the test"), results, report or Reporter(), device="cpu"
        )

    return make


OF_THE_MACHINE = ("seconds", "peak_memory_mib", "environment", "created")


def _left(results: Path) -> dict[str, Any]:
    """Records without times, host and device; bytes of what lies beside them."""
    found: dict[str, Any] = {}
    for path in sorted(results.glob("[!.]*/*/*")):
        name = path.relative_to(results).as_posix()
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            found[name] = {k: v for k, v in record.items() if k not in OF_THE_MACHINE}
        elif not path.name.startswith("."):
            found[name] = path.read_bytes()
    return found


@pytest.fixture
def left() -> Callable[[Path], dict[str, Any]]:
    """What of a results folder doesn't depend on who made it, when, where and how often."""
    return _left
