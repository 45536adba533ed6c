"""Committed records answer the questions that they were asked: the keys never move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fairbench.core.record import Record
from fairbench.datasets.cartoonfaces import DATASET
from fairbench.diffusion import devices
from fairbench.instruments.measuring import load_instruments
from fairbench.methods import get_method
from fairbench.runs.config import RunConfig
from fairbench.runs.plan import plan_keys, plan_run
from fairbench.storage.records import read_records

COMMITTED = Path(__file__).parents[2] / "results"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _question(record: Record, results: Path) -> RunConfig:
    """What a user would type today to ask what the record answers."""
    had = record.config
    method = get_method(record.method)
    preset = had["preset"]
    given = dict(method.presets[preset]) if preset else {}
    default = method()
    chosen = {
        name: value
        for name, value in had["parameters"].items()
        if value != given.get(name, getattr(default, name))
    }
    shares = had["target"]
    uniform = len(set(shares.values())) == 1
    return RunConfig(
        record.method,
        dataset=record.dataset,
        task=record.task,
        backbone=had["backbone"],
        target="uniform" if uniform else ",".join(f"{k}={v!r}" for k, v in shares.items()),
        num_images=had["num_images"],
        seed=had["seed"],
        dtype=had["dtype"],
        device="cpu",
        parameters=(
            *([f"preset={preset}"] if preset else []),
            *(f"{name}={_text(value)}" for name, value in chosen.items()),
        ),
        **{name: had["sampling"][name] for name in ("steps", "guidance", "eta")},
        results=results,
    )


def test_every_committed_record_has_the_keys_of_its_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Records were made where the CPU computes bfloat16; what "auto" means there is in the key.
    monkeypatch.setattr(devices, "resolve_autocast", lambda asked, device: torch.bfloat16)
    instruments = load_instruments("cpu", DATASET.instruments())
    records = read_records(COMMITTED, pytest.fail)
    assert {record.method for record in records} >= {"fairgen", "prompt_append", "vanilla"}
    assert len(records) == len(list(COMMITTED.glob("*/*/*.json")))
    moved = []
    for record in records:
        keys = plan_keys(plan_run(_question(record, tmp_path)), instruments)
        if (keys.run, keys.generation) != (record.key, record.generation_key):
            moved.append(record.key)
        assert {**keys.config} == {**record.config}, record.key
    assert not moved
