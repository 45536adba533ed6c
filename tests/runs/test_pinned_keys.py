"""Committed records answer the questions that they were asked: the keys never move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fairbench.datasets.cartoonfaces import DATASET
from fairbench.diffusion import devices
from fairbench.instruments.measuring import load_instruments
from fairbench.runs.plan import plan_keys, plan_run
from fairbench.runs.question import command_of, question_of
from fairbench.storage.records import read_records

COMMITTED = Path(__file__).parents[2] / "results"


def test_every_committed_record_has_the_keys_of_its_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instruments = load_instruments("cpu", DATASET.instruments())
    records = read_records(COMMITTED, pytest.fail)
    assert {record.method for record in records} >= {"fairgen", "prompt_append", "vanilla"}
    assert len(records) == len(list(COMMITTED.glob("*/*/*.json")))
    moved = []
    for record in records:
        # What "auto" meant where the record was made is in its key: not every CPU has bfloat16.
        meant = getattr(torch, record.config.get("autocast", "float32"))
        monkeypatch.setattr(devices, "resolve_autocast", lambda asked, device, d=meant: d)
        asked = replace(question_of(record, tmp_path), device="cpu")
        keys = plan_keys(plan_run(asked), instruments)
        if (keys.run, keys.generation) != (record.key, record.generation_key):
            moved.append(record.key)
        assert {**keys.config} == {**record.config}, record.key
    assert not moved


def test_the_command_of_a_record_asks_its_question() -> None:
    records = {record.key: record for record in read_records(COMMITTED, pytest.fail)}
    plain = next(r for r in records.values() if r.method == "vanilla" and r.task == "gender_race")
    assert command_of(plain).startswith(
        "fairbench run --method vanilla --dataset cartoonfaces --task gender_race --backbone "
    )
    assert "--target" not in command_of(plain)
    named = next(record for record in records.values() if record.config["preset"])
    assert f"--param preset={named.config['preset']}" in command_of(named)
