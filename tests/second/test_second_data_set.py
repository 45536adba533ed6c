"""A data set that fairbench knows nothing of goes through every command and every kind of task."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES

HERE = Path(__file__).parent
GROUPS = """\
[fairbench.datasets]
sheets = second_data_set
[fairbench.instruments]
sheets = second_data_set
"""
SD, DDPM = (str(CARTOONFACES.backbone(f"cartoonfaces-{kind}").folder) for kind in ("sd", "ddpm"))


@pytest.fixture(scope="module")
def fairbench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the command line with the package of the second data set installed."""
    folder = tmp_path_factory.mktemp("sheets")
    installed = folder / "site" / "sheets-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: sheets\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(GROUPS)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(folder / "site"), str(HERE), os.environ.get("PYTHONPATH")])
        ),
        "FAIRBENCH_CACHE": str(folder / "cache"),
    }

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "fairbench", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    run.folder = folder  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def record(fairbench: Any) -> dict[str, Any]:
    """One run of the pooled task with prompts."""
    return ran(fairbench, "mark", SD)


def ran(fairbench: Any, task: str, backbone: str, method: str = "vanilla") -> dict[str, Any]:
    options = ["--num-images", "100", "--steps", "2", "--guidance", "1"]
    if backbone == DDPM:
        options = options[:-2]
    found: dict[str, Any] = json.loads(
        fairbench(
            *("run", "--method", method, "--dataset", "sheets", "--task", task),
            *("--backbone", backbone, *options, "--json"),
        )
    )
    return found


def names(record: dict[str, Any]) -> set[str]:
    return {score["name"] for score in record["scores"]}


def test_it_is_listed(fairbench: Any) -> None:
    rows = {row["name"]: row for row in json.loads(fairbench("list", "datasets", "--json"))}
    assert rows["sheets"]["attributes"]["mark"] == ["disc", "bar", "none"]
    tasks = json.loads(fairbench("list", "tasks", "--json"))
    own = {row["name"]: row for row in tasks if row["dataset"] == "sheets"}
    assert own["ink"]["ranked"] == "mean over prompts"
    assert own["mark"]["prompts"] == ["a white sheet on a desk"]


def test_prompts_say_levels_as_the_data_set_does() -> None:
    sys.path.insert(0, str(HERE))
    try:
        from second_data_set import DATASET
    finally:
        sys.path.remove(str(HERE))
    task = DATASET.task("mark_ink", conditional=True)
    assert task.groups[0] == "disc/pale"
    said = task.prompts[0].naming(task.group_phrases(0))
    assert said == "a faintly printed white sheet with a round spot on a desk"


def test_a_pooled_task_is_run_and_measured(record: dict[str, Any]) -> None:
    assert record["status"] == "complete"
    assert {"fairness_discrepancy", "fairness_discrepancy_corrected"} <= names(record)
    assert "kernel_sheets_balanced" in names(record)
    assert [row["group"] for row in record["groups"]["mark"]] == ["disc", "bar", "none"]
    # One judge: nobody to disagree with. No validity check: nothing says which images are proper.
    assert not {name for name in names(record) if name.startswith("judge_disagreement")}
    assert "validity" not in names(record)
    (corrected,) = (
        score for score in record["scores"] if score["name"] == "fairness_discrepancy_corrected"
    )
    assert "two judges" not in corrected["source"]
    # The shares that the backbone was trained with aren't known to this data set.
    assert not {name for name in names(record) if name.endswith("_natural")}
    assert "face" not in json.dumps([record["scores"], record["facts"], record["groups"]])


def test_a_sidecar_says_what_is_known_of_each_image(
    fairbench: Any, record: dict[str, Any]
) -> None:
    (path,) = fairbench.folder.glob(f"results/sheets/vanilla/{record['key']}.images.npz")
    with np.load(path) as stored:
        assert len(stored["sha256"]) == 100
        assert stored["label only mark"].max() <= 2
        assert stored["valid"].all()


@pytest.mark.parametrize("task", ["mark_ink", "ink"])
def test_every_kind_of_task(fairbench: Any, task: str) -> None:
    found = ran(fairbench, task, SD)
    assert "fairness_discrepancy" in names(found)
    assert ("fairness_discrepancy_worst_prompt" in names(found)) == (task == "ink")


def test_a_backbone_without_prompts(fairbench: Any) -> None:
    assert "fairness_discrepancy" in names(ran(fairbench, "mark", DDPM))
    line = fairbench(
        *("run", "--method", "vanilla", "--dataset", "sheets", "--task", "ink"),
        *("--backbone", DDPM),
        code=2,
    )
    assert "choose one of mark, mark_ink" in line


def test_a_prompting_method_says_the_levels(fairbench: Any) -> None:
    found = ran(fairbench, "mark", SD, "prompt_append")
    assert found["facts"]["hit_matrix"]["groups"] == ["disc", "bar", "none"]


def test_what_the_data_set_lacks_is_one_line(fairbench: Any) -> None:
    line = fairbench("run", "--method", "vanilla", "--dataset", "sheets", code=2)
    assert "brings no backbone" in line
    line = fairbench(
        *("run", "--method", "invdiff", "--dataset", "sheets", "--backbone", SD), code=2
    )
    assert "has no training set" in line


def test_images_from_elsewhere_and_the_leaderboard(
    fairbench: Any, record: dict[str, Any], tmp_path: Path
) -> None:
    sys.path.insert(0, str(HERE))
    try:
        from second_data_set import drawn
    finally:
        sys.path.remove(str(HERE))
    for i, image in enumerate(drawn(7).images[:120]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    found = json.loads(
        fairbench("evaluate", str(tmp_path), "--dataset", "sheets", "--name", "drawn", "--json")
    )
    (score,) = (s for s in found["scores"] if s["name"] == "fairness_discrepancy")
    assert score["value"] < 0.2  # the judge reads what was drawn, whose marks are even
    table = list(csv.DictReader(io.StringIO(fairbench("leaderboard", "--format", "csv"))))
    assert {row["dataset"] for row in table} == {"sheets"}
    assert "sheets" in fairbench("leaderboard", "--format", "markdown")
    assert "vanilla" in fairbench("leaderboard")
