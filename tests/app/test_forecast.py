"""What a dry run says, without doing anything."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairbench.app.cli import app
from fairbench.app.forecast import forecast
from fairbench.core.progress import Reporter
from fairbench.runs.baselines import SHIPPED, shipped_records
from fairbench.runs.config import RunConfig
from fairbench.storage.records import write_record


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))


def test_the_key_is_that_of_the_run_and_nothing_is_made(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["run", "--method", "vanilla", "--num-images", "2000", "--dry-run", "--json"]
    )
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    assert (SHIPPED / f"{told['key']}.json").is_file()  # the committed record's own question
    assert told["images"] == 2000
    assert not told["found"]
    assert told["hours"] > 0
    assert told["memory_mib"] > 0
    assert "another machine" in told["rests_on"]
    assert not (tmp_path / "results").exists()


def test_records_of_the_folder_come_first(tmp_path: Path) -> None:
    record = next(r for r in shipped_records() if r.config["backbone"] == "cartoonfaces-sd")
    slow = dataclasses.replace(
        record,
        schema=2,
        seconds={"prepare": 100.0, "generate": 2000.0, "measure": 0.0},
        peak_memory_mib=777.0,
    )
    write_record(tmp_path / "results", slow)
    told = forecast(RunConfig("vanilla", num_images=1000), Reporter())
    assert told.hours == pytest.approx(1100 / 3600)
    assert told.memory_mib == 777.0
    assert "1 record of this folder" in told.rests_on
    assert "about 18 minutes" in "\n".join(told.lines())


def test_what_is_missing_is_named_and_the_exit_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRBENCH_DATA", str(tmp_path / "nowhere"))
    done = CliRunner().invoke(
        app, ["run", "--method", "vanilla", "--dataset", "celeba", "--dry-run"]
    )
    assert done.exit_code == 2
    missing = [line for line in done.stdout.splitlines() if line.startswith("missing")]
    assert len(missing) == 2
    assert "celeba" in missing[0]
    assert "stable-diffusion" in missing[1]


def test_a_grid_is_a_record_a_value() -> None:
    words = ["run", "--method", "fairgen", "--grid", "strength=0.25,0.5", "--seeds", "0,1"]
    done = CliRunner().invoke(app, [*words, "--dry-run", "--json"])
    told = json.loads(done.stdout)
    assert len({one["key"] for one in told}) == 4
    alone = forecast(RunConfig("fairgen", parameters=("strength=0.5",), seed=1), Reporter())
    assert told[-1]["key"] == alone.key
