"""Which judges a run uses: what they must read, and how well."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fairbench.core.errors import InputError
from fairbench.core.progress import Reporter
from fairbench.core.specs import InstrumentNames
from fairbench.core.task import Control
from fairbench.instruments.class_readers import DatasetJudge
from fairbench.runs import judging
from fairbench.runs.judging import choose_judges, judge_report, needed_attributes

_path = Path(__file__).parents[1] / "instruments" / "labelled.py"
_spec = importlib.util.spec_from_file_location("labelled", _path)
labelled = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(labelled)
Labelled, Reader = labelled.Labelled, labelled.Reader


@pytest.fixture
def judges(monkeypatch):
    """Name -> judge; what `load_judge` finds."""
    known = {}
    monkeypatch.setattr(judging, "load_judge", lambda name, *ignored, **options: known[name])
    return known


def trained(name, right):
    """One that reads all three attributes, each level right so often."""
    counts = np.array([[right, 100 - right], [100 - right, right]])
    return SimpleNamespace(
        name=name,
        kind="judge",
        attributes=labelled.LEVELS,
        confusion={**dict.fromkeys(labelled.LEVELS, counts), "gender/age": np.eye(4, dtype=int)},
    )


def reader(name="small", right=1.0, sure=0.98):
    return DatasetJudge(Reader(name, right, sure), labelled.LEVELS)


def chosen(dataset, cache, task="gender", **options):
    said = []
    report = Reporter(note=said.append, warn=said.append)
    asked = dataset.task(task, conditional=True)
    return choose_judges(dataset, asked, cache, report, **options), said


def test_a_judge_is_calibrated_and_used(judges, tmp_path):
    judges["small"] = reader()
    dataset = Labelled(names=InstrumentNames(("small",)))
    found, said = chosen(dataset, tmp_path, "gender_age")
    (judge,) = found.judges
    assert judge.confusion["gender/age"].shape == (4, 4)
    assert not said
    assert found.facts() == {}


def test_a_task_that_no_judge_reads_is_refused(judges, tmp_path):
    judges["small"] = reader()
    dataset = Labelled(names=InstrumentNames(("small",)))
    with pytest.raises(InputError) as caught:
        chosen(dataset, tmp_path, "hat")
    message = str(caught.value)
    assert "small doesn't read hat" in message
    assert "fairbench train-judge --dataset labelled" in message
    assert "--accept-judge" not in message  # it couldn't help
    assert not dataset.reads  # refused before anything was measured


def test_a_judge_below_the_bar_is_used_only_if_the_user_says_so(judges, tmp_path):
    judges["small"] = reader(right=0.8)
    dataset = Labelled(names=InstrumentNames(("small",)))
    with pytest.raises(InputError) as caught:
        chosen(dataset, tmp_path)
    assert "balanced accuracy of" in str(caught.value)
    assert "--accept-judge" in str(caught.value)
    found, said = chosen(dataset, tmp_path, accept=True)
    assert [judge.name for judge in found.judges] == ["small"]
    assert "small" in found.facts()["accepted_judges"]
    assert any("--accept-judge" in line for line in said)


def test_the_bar_is_ninety_percent_of_each_level_on_average(judges, tmp_path):
    dataset = Labelled(names=InstrumentNames(("one", "other")))
    judges |= {"one": trained("one", 90), "other": trained("other", 89)}
    found, said = chosen(dataset, tmp_path)
    assert [judge.name for judge in found.judges] == ["one"]
    assert any("other reads gender with a balanced accuracy of 89.0%" in line for line in said)


def test_a_good_judge_of_all_is_used_where_another_can_t_answer(judges, tmp_path):
    dataset = Labelled(names=InstrumentNames(("small", "own")))
    judges |= {"small": reader(), "own": trained("own", 97)}
    both, _ = chosen(dataset, tmp_path, "gender")
    assert [judge.name for judge in both.judges] == ["small", "own"]
    one, said = chosen(dataset, tmp_path, "hat")
    assert [judge.name for judge in one.judges] == ["own"]
    assert any("small doesn't read hat" in line for line in said)


def test_probabilities_that_hide_a_collapse_are_refused_even_if_accepted(judges, tmp_path):
    judges["flat"] = reader("flat", sure=0.525)
    dataset = Labelled(names=InstrumentNames(("flat",)))
    with pytest.raises(InputError) as caught:
        chosen(dataset, tmp_path, accept=True)
    assert "logit scale" in str(caught.value)


def test_without_labelled_images_an_accuracy_isn_t_known(judges, tmp_path):
    judges["small"] = reader()
    dataset = Labelled(None, InstrumentNames(("small",)))
    with pytest.raises(InputError, match="no judge split"):
        chosen(dataset, tmp_path)
    found, _ = chosen(dataset, tmp_path, accept=True)
    assert "isn't known" in found.facts()["accepted_judges"]["small"]
    with pytest.raises(InputError, match="doesn't read age"):  # there is no cut
        chosen(dataset, tmp_path, "age", accept=True)


def test_subjects_and_controls_must_be_read_too():
    task = Labelled().task("gender", conditional=True)
    given = Control("band", ("a", "b"), np.zeros(3, int))
    assert needed_attributes(task, (Control("hat", ("yes", "no")), given)) == ("gender", "hat")


def test_the_report_says_what_each_judge_can_be_used_for(judges, tmp_path):
    judges["small"] = reader()
    dataset = Labelled(names=InstrumentNames(("small",)))
    rows = {row["attribute"]: row for row in judge_report(dataset, tmp_path, Reporter())}
    assert rows["gender"]["ranks"]
    assert rows["gender"]["held_out_images"] == 60
    assert rows["gender"]["recall"] == {"female": 1.0, "male": 1.0}
    assert rows["age"]["remark"].startswith("old from")
    assert (rows["hat"]["ranks"], rows["hat"]["remark"]) == (False, "doesn't read it")
    judges["small"] = reader("poor", right=0.7)
    rows = judge_report(dataset, tmp_path, Reporter())
    assert rows[0]["remark"] == "below 90%: only with --accept-judge"
