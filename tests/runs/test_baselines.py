"""The undebiased backbones' records that come with fairbench."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fairbench.core.record import Record
from fairbench.datasets.base import get_dataset
from fairbench.runs.baselines import SHIPPED, find_baseline, shipped_records
from fairbench.runs.config import RunConfig
from fairbench.storage.records import read_record

COMMITTED = Path(__file__).parents[2] / "results" / "cartoonfaces" / "vanilla"


def debiased(record: Record, **config: object) -> Record:
    return dataclasses.replace(
        record, method="fairgen", key="0" * 16, config={**record.config, **config}
    )


def test_shipped_records_are_the_committed_ones() -> None:
    paths = sorted(SHIPPED.glob("*.json"))
    assert paths
    for path in paths:
        own, committed = read_record(path), read_record(COMMITTED / path.name)
        assert dataclasses.replace(committed, manifest=(), sidecar=None) == dataclasses.replace(
            own, manifest=(), sidecar=None
        )


def test_every_default_question_has_one() -> None:
    dataset = get_dataset("cartoonfaces")
    asked = {(record.task, record.config["backbone"]) for record in shipped_records()}
    first = dataset.backbone(None).name
    assert {(task.name, first) for task in dataset.tasks} <= asked
    assert RunConfig("vanilla").target == "uniform"


def test_a_shipped_record_is_compared_with_whatever_the_seed_and_n(tmp_path: Path) -> None:
    record = next(shipped_records())
    found = find_baseline(debiased(record, seed=7, num_images=500), tmp_path, pytest.fail)
    assert found is not None
    assert found.shipped
    assert found.record.key == record.key
    assert found.beside is None


def test_the_user_s_own_record_comes_first(tmp_path: Path) -> None:
    record = next(shipped_records())
    place = tmp_path / record.dataset / "vanilla" / f"{record.key}.json"
    place.parent.mkdir(parents=True)
    place.write_text((SHIPPED / place.name).read_text())
    found = find_baseline(debiased(record), tmp_path, pytest.fail)
    assert found is not None
    assert not found.shipped
    assert found.beside == read_record(place)


@pytest.mark.parametrize(
    "config",
    [
        {"sampling": {"steps": 3}},
        {"target": {"female": 0.9, "male": 0.1}},
        {"hashes": {"judge_cartoonfaces/primary": "x"}},
    ],
)
def test_another_question_has_none(tmp_path: Path, config: dict[str, object]) -> None:
    for record in shipped_records():
        shared = config.get("hashes")
        if shared is not None:
            name = next(iter(record.config["hashes"]))
            config = {"hashes": {name: "x"}}
        assert find_baseline(debiased(record, **config), tmp_path, pytest.fail) is None


def test_vanilla_is_compared_with_nothing(tmp_path: Path) -> None:
    record = next(shipped_records())
    assert find_baseline(record, tmp_path, pytest.fail) is None
    shipped = json.loads((SHIPPED / f"{record.key}.json").read_text())
    assert not shipped.get("manifest")
    assert not shipped.get("sidecar")
