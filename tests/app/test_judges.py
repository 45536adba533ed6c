"""train-judge, calibrate and --judge as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fairbench.app.cli import app
from fairbench.datasets.cartoonfaces import CartoonFaces, load_split
from fairbench.instruments import judge_training, trained

LABELLED = 400  # images of the judge split that these tests train and calibrate on


def answer(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def one_line(*arguments: str) -> str:
    """The only line on stderr of a command that the user got wrong."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("fairbench: ")
    return line


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network and few labelled images: seconds instead of minutes."""

    def network(depth: int, outputs: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 5, 4),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(8),
            torch.nn.Flatten(),
            torch.nn.Linear(1024, outputs),
        )

    for module in (judge_training, trained):
        monkeypatch.setattr(module, "judge_network", network)
    whole = CartoonFaces.split

    def split(self: CartoonFaces, role: str) -> object:
        found = whole(self, role)  # type: ignore[arg-type]
        return found.take(np.arange(LABELLED)) if role == "judge" else found

    monkeypatch.setattr(CartoonFaces, "split", split)


def test_calibrate_says_how_good_the_shipped_judges_are() -> None:
    rows = json.loads(answer("calibrate", "--json"))
    assert {row["judge"] for row in rows} == {"primary", "second"}
    gender = next(row for row in rows if (row["judge"], row["attribute"]) == ("primary", "gender"))
    assert gender["ranks"]
    assert gender["held_out_images"] == 1000
    assert gender["balanced_accuracy"] > 0.99


@pytest.mark.usefixtures("small")
def test_a_trained_judge_is_made_found_listed_and_used(cache: Path, tmp_path: Path) -> None:
    recipe = ("train-judge", "--dataset", "cartoonfaces", "--steps", "500", "--name", "own")
    assert str(cache / "judges" / "cartoonfaces" / "own") in answer(*recipe)
    again = json.loads(answer(*recipe, "--json"))
    assert again["judge"] == "own"
    rows = json.loads(answer("calibrate", "--judge", "own", "--json"))
    assert rows == again["held_out"]
    assert {row["held_out_images"] for row in rows} == {LABELLED // 2}
    # The data set keeps its own judges where none is named.
    assert {row["judge"] for row in json.loads(answer("calibrate", "--json"))} == {
        "primary",
        "second",
    }
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(load_split("evaluation").images[:100]):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    poor = [row for row in rows if row["attribute"] == "gender" and not row["ranks"]]
    question = ("evaluate", str(folder), "--task", "gender", "--judge", "own", "--json")
    if poor:  # as far as so small a network gets
        assert "--accept-judge" in one_line(*question)
    record = json.loads(answer(*question, "--accept-judge"))
    assert record["config"]["judges"] == ["own"]
    assert [name for name in record["config"]["hashes"] if name.startswith("judge_")] == [
        "judge_own"
    ]
    assert ("accepted_judges" in record["facts"]) == bool(poor)


def test_a_wrong_judge_is_one_line(tmp_path: Path) -> None:
    assert "did you mean zero-shot-clip" in one_line("calibrate", "--judge", "zero-shot-clip")
    assert "--depth must be 18 or 34" in one_line("train-judge", "--depth", "50")
    assert "no such file" in one_line("calibrate", "--judge", "absent.pt")
    line = one_line("calibrate", "--judge", "zero-shot-clip-vit-b-32")
    assert "clip-vit-b-32" in line
    assert "hf download" in line
