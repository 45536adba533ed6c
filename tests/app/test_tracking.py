from __future__ import annotations

import sys
import types

import pytest

from fairbench.app.tracking import check_tracker, numbers_of, track
from fairbench.core.errors import InputError


def test_an_unknown_tracker_and_a_missing_package_are_named():
    with pytest.raises(InputError, match="tensorboard"):
        check_tracker("tensorbord")
    if "trackio" not in sys.modules:
        with pytest.raises(InputError, match="pip install trackio"):
            check_tracker("trackio")


def test_numbers_hold_scores_shares_and_seconds(make_record):
    told = numbers_of(make_record())
    assert told["score/validity"] == 0.99
    assert told["share/gender/female"] == 0.45
    assert told["seconds/generate"] == 100.0


def test_names_hold_nothing_that_a_tracker_refuses(make_record):
    rows = [{"group": "=cmd()|a", "share": 0.5}]
    told = numbers_of(make_record(groups={"gender|a person": rows}))
    assert told["share/gender_a person/_cmd___a"] == 0.5


def test_a_tracker_that_fails_is_told_and_takes_nothing_down(make_record, tmp_path, monkeypatch):
    from accelerate import tracking

    def fail(**arguments):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", fail)
    lines = []
    track("trackio", make_record(), tmp_path, lines.append)
    (line,) = lines
    assert "no network" in line
    assert "the record is written" in line


def test_a_tracker_is_given_everything(make_record, tmp_path, monkeypatch):
    from accelerate import tracking

    seen = types.SimpleNamespace(config={}, numbers={}, made={}, finished=False)

    class Fake:
        def __init__(self, **arguments):
            seen.made = arguments

        def start(self):
            pass

        def store_init_configuration(self, values):
            seen.config = values

        def log(self, values, step):
            seen.numbers = values

        def finish(self):
            seen.finished = True

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    record = make_record()
    track("wandb", record, tmp_path, pytest.fail)
    assert seen.finished
    assert seen.made["run_name"] == "fairbench"
    assert seen.made["name"].endswith(record.key)
    assert seen.config["num_images"] == 2000
    assert seen.config["parameters"] == '{"strength":1.0}'
    assert seen.numbers["score/validity"] == 0.99


def test_tensorboard_files_lie_beside_the_records(make_record, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX isn't installed")
    record = make_record()
    track("tensorboard", record, tmp_path, pytest.fail)
    written = list((tmp_path / ".trackers").rglob("events.out.*"))
    assert written
    assert all(record.key in str(path) for path in written)
