"""Plans on the analytic data set, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
