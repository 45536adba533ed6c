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


def test_a_tracker_is_given_everything(make_record, tmp_path, monkeypatch):
    from accelerate import tracking

    seen = types.SimpleNamespace(config={}, numbers={}, finished=False)

    class Fake:
        requires_logging_directory = True

        def __init__(self, name, folder):
            self.name, self.folder = name, folder

        def store_init_configuration(self, values):
            seen.config = values

        def log(self, values, step):
            seen.numbers = values

        def finish(self):
            seen.finished = True

    monkeypatch.setattr(tracking, "filter_trackers", lambda names, folder: names)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Fake)
    track("tensorboard", make_record(), tmp_path)
    assert seen.finished
    assert seen.config["num_images"] == 2000
    assert seen.config["parameters"] == '{"strength":1.0}'
    assert seen.numbers["score/validity"] == 0.99
