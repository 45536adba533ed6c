"""A short form of mutations.py, which is run by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutations.py")


def test_odd_values_are_refused_in_one_line_or_coped_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path))  # which the script changes, put back
    spec = importlib.util.spec_from_file_location("fairbench_mutations", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    mutations = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutations)
    counted = mutations.rounds(times=60, seed=1)
    assert counted["failed"] == 0
    assert counted["taken"] > 10
    assert counted["refused"] > 10
