"""A short form of kills.py, which is run by hand."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kills.py")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_killed_commands_leave_nothing_half_written() -> None:
    spec = importlib.util.spec_from_file_location("fairbench_kills", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    kills = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kills)
    kills.rounds(["sampling", "forced", "leaderboard"], times=6, seed=1, dataset="analytic")
