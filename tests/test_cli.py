"""The command line as a user meets it: exit codes, streams, one clear line for bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fairbench.cli import app

QUICK = ("--steps", "4", "--num-images", "100")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def fairbench(tmp_path: Path) -> Run:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"FAIRBENCH_CACHE": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, "-m", "fairbench", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


def one_line(*arguments: str) -> str:
    """The only line on stderr of a command that the user got wrong; run in this process."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("fairbench: ")
    return line


def test_a_run_prints_one_table_and_is_found_the_second_time(
    fairbench: Run, tmp_path: Path
) -> None:
    first = fairbench("run", "--method", "vanilla", *QUICK)
    second = fairbench("run", "--method", "vanilla", *QUICK)
    third = fairbench("run", "--method", "prompt_append", *QUICK)

    assert first.returncode == second.returncode == third.returncode == 0, first.stderr
    for shown in ("fairness_discrepancy", "floor", "female", "female/asian", "frechet", "record"):
        assert shown in first.stdout
    assert first.stderr == ""
    assert "nothing computed" not in first.stdout
    assert "nothing computed" in second.stdout
    header = next(line for line in third.stdout.splitlines() if "95 % interval" in line)
    assert "vanilla" in header
    (record,) = (tmp_path / "results" / "cartoonfaces" / "vanilla").glob("*.json")
    assert record.with_suffix(".png").is_file()


def test_json_is_one_document_and_nothing_else(fairbench: Run) -> None:
    one = fairbench("run", "--method", "vanilla", *QUICK, "--json")
    two = fairbench("run", "--method", "vanilla", *QUICK, "--seeds", "0,1", "--json")

    assert json.loads(one.stdout)["status"] == "complete"
    assert [record["config"]["seed"] for record in json.loads(two.stdout)] == [0, 1]


def test_the_leaderboard_reads_records_alone(fairbench: Run, tmp_path: Path) -> None:
    fairbench("run", "--method", "vanilla", *QUICK, "--seeds", "0,1")
    (tmp_path / "results" / "cartoonfaces" / "vanilla" / "broken.json").write_text("{")

    table = fairbench("leaderboard", "--format", "csv")
    written = fairbench("leaderboard", "--format", "markdown", "--output", "board.md")

    assert table.returncode == written.returncode == 0
    assert "broken.json" in table.stderr
    (row,) = csv.DictReader(io.StringIO(table.stdout))
    assert row["method"] == "vanilla"
    assert row["seeds"] == "2"
    assert "fairness_discrepancy" in (tmp_path / "board.md").read_text()
    assert fairbench("leaderboard", "--format", "json").returncode == 0
    assert "vanilla" in fairbench("leaderboard").stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--method", "fairgne"), "did you mean fairgen?"),
        (("--method", "vanilla", "--dataset", "cartoonface"), "did you mean cartoonfaces?"),
        (("--method", "vanilla", "--task", "gendr"), "gender"),
        (("--method", "vanilla", "--backbone", "cartoonfaces-sdd"), "cartoonfaces-sd"),
        (("--method", "fairgen", "--param", "iteration=3"), "did you mean iterations?"),
        (("--method", "fairgen", "--param", "iterations=many"), "must be int"),
        (("--method", "fairgen", "--param", "preset=released"), "as_released"),
        (("--method", "vanilla", "--param", "x=1"), "has no parameters"),
        (("--method", "vanilla", "--target", "female=0.7,male=0.7"), "sum to 1.4"),
        (("--method", "vanilla", "--target", "woman=0.5,man=0.5"), "female, male"),
        (("--method", "vanilla", "--num-images", "99"), "at least 100"),
        (("--method", "vanilla", "--device", "cuda:7"), "cuda:7"),
        (("--method", "vanilla", "--device", "gpu"), "auto, cpu, cuda"),
        (("--method", "vanilla", "--dtype", "float16"), "float32"),
        (("--method", "vanilla", "--results", "/proc/nowhere"), "/proc/nowhere"),
        (("--method", "vanilla", "--steps", "0"), "--steps"),
        (("--method", "vanilla", "--eta", "2"), "--eta"),
        (("--method", "vanilla", "--seeds", "1,x"), "--seeds"),
        (("--method", "vanilla", "--seeds", "1,1"), "twice"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in one_line("run", *arguments)


def test_a_missing_folder_of_images_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "nowhere" in one_line("evaluate", "nowhere")
    assert "empty" in one_line("evaluate", "empty")
    assert "mean over prompts" in one_line("evaluate", "empty", "--task", "gender_by_role")


def test_evaluate_takes_a_folder(fairbench: Run, tmp_path: Path) -> None:
    from fairbench.cartoonfaces import load_split

    folder = tmp_path / "real"
    folder.mkdir()
    for i, image in enumerate(load_split("evaluation").images[:150]):
        Image.fromarray(np.asarray(image)).resize((64, 64)).save(folder / f"{i}.png")

    done = fairbench("evaluate", "real", "--task", "race", "--name", "real-faces", "--json")

    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["method"] == "real-faces"
    assert record["config"]["num_images"] == 150
    assert any("64" in note for note in record["facts"]["notes"])


@pytest.mark.parametrize("kind", ["methods", "datasets", "tasks", "backbones", "metrics"])
def test_lists(fairbench: Run, kind: str) -> None:
    plain, as_json = fairbench("list", kind), fairbench("list", kind, "--json")

    assert plain.returncode == as_json.returncode == 0
    rows = json.loads(as_json.stdout)
    assert rows
    assert all(row["name"].split("<")[0] in plain.stdout for row in rows)


def test_listed_methods_say_type_default_and_meaning(fairbench: Run) -> None:
    rows = {row["name"]: row for row in json.loads(fairbench("list", "methods", "--json").stdout)}

    parameter = next(p for p in rows["fairgen"]["parameters"] if p["name"] == "cfg_branch")
    assert parameter["type"] == "cond|both"
    assert parameter["default"] == "cond"
    assert parameter["help"]
    assert rows["fairgen"]["presets"]["as_released"]["neutral"] == "empty"


def test_doctor_finds_everything_that_is_shipped(fairbench: Run) -> None:
    done = fairbench("doctor", "--verify", "--json")
    findings = {row["what"]: row for row in json.loads(done.stdout)}

    assert findings["split pool"]["ok"]
    assert findings["weights judge_primary"]["ok"]
    assert done.returncode == (0 if all(row["ok"] for row in findings.values()) else 2)


def test_an_internal_failure_is_one_line_and_a_log(fairbench: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import fairbench.registry\n"
        "def broken(name, given): raise RuntimeError('broken on purpose')\n"
        "fairbench.registry.make_method = broken\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "fairbench", "run", "--method", "vanilla"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 3
    (line,) = done.stderr.strip().splitlines()
    assert "broken on purpose" in line
    log = Path(line.split("traceback in ")[1].split(",")[0])
    assert "RuntimeError" in log.read_text()
    log.unlink()
