from __future__ import annotations

import contextlib
import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fairbench.app.cli import app
from fairbench.core.errors import InputError
from fairbench.core.progress import Reporter
from fairbench.gate import reports
from fairbench.gate.baseline import Baseline, config_of, read_baseline, write
from fairbench.gate.checking import check
from fairbench.gate.comparing import compare
from fairbench.storage.records import write_record

BASELINES = Path(__file__).parents[1] / "baselines"


@pytest.fixture
def put(tmp_path, make_run, make_record):
    """Writes a record with the images and scores of a measured run; tells where."""

    def write_one(folder="results", **told):
        run = make_run(**told)
        record = make_record(
            "vanilla",
            run.seed,
            {
                "parameters": {},
                "num_images": run.count,
                "backbone": "cartoonfaces-sd",
                "hashes": dict(run.hashes),
            },
            scores=tuple(run.scores.values()),
        )
        return write_record(tmp_path / folder, record, run.images)

    return write_one


def typed(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_a_baseline_is_made_kept_and_read_back(put, tmp_path):
    record, file = put(), tmp_path / "base.json"
    made = check(file, records=[record], update=True)
    assert made.written
    (run,) = read_baseline(file).runs
    assert run.count == 1000
    assert run.question["method"] == "vanilla"
    assert len(run.images) == 1000
    assert config_of(run.question, tmp_path).num_images == 1000
    again = check(file, records=[record])
    assert (again.verdict.word, again.exit_code) == ("identical", 0)
    assert check(file, tmp_path / "results").verdict.word == "identical"


def test_packing_loses_nothing_that_is_compared(make_run, tmp_path):
    run = make_run(batch=7, n=300)
    places = np.r_[np.arange(200), np.arange(100)]
    images = dataclasses.replace(
        run.images, prompt_index=np.repeat([0, 1], [200, 100]), image_index=places
    )
    run = dataclasses.replace(run, images=images)
    write(tmp_path / "b.json", Baseline((run,)))
    (back,) = read_baseline(tmp_path / "b.json").runs
    for name in ("prompt_index", "image_index", "batch_id", "valid"):
        assert (getattr(back.images, name) == getattr(images, name)).all()
    assert (back.images.labels["first"]["gender"] == images.labels["first"]["gender"]).all()
    assert back.scores.keys() == run.scores.keys()
    assert compare([back], [run]).word == "identical"


def test_a_worse_baseline_is_refused_and_its_reason_kept(put, tmp_path):
    file = tmp_path / "base.json"
    check(file, records=[put()], update=True)
    before = file.read_bytes()
    worse = put("worse", share=0.8, noise=3)
    refused = check(file, records=[worse], update=True)
    assert not refused.written
    assert "--accept-worse" in refused.refused
    assert refused.exit_code == 1
    assert file.read_bytes() == before
    taken = check(file, records=[worse], update=True, accept_worse="new data")
    assert taken.written
    assert taken.exit_code == 0
    (kept,) = read_baseline(file).accepted
    assert kept.reason == "new data"
    assert any(name.endswith("fairness_discrepancy") for name in kept.scores)
    # A better one needs no reason, and the old reason stays.
    assert check(file, records=[put("better", share=0.55, noise=4)], update=True).written
    assert [one.reason for one in read_baseline(file).accepted] == ["new data"]


def test_small_steps_do_not_add_up_unseen(put, tmp_path):
    """Each is within the noise of the one before; together they aren't."""
    file = tmp_path / "base.json"
    check(file, records=[put()], update=True)
    for place, share in enumerate((0.6, 0.62, 0.64, 0.66, 0.68)):
        step = put(f"step {place}", share=share, noise=place + 20)
        found = check(file, records=[step], update=True)
        assert not found.verdict.of("regressed")
        if not found.written:
            break
    assert not found.written
    assert "each too small" in found.refused
    assert found.exit_code == 1
    assert check(file, records=[step], update=True, accept_worse="on purpose").written
    assert read_baseline(file).runs[0].first is None


def test_one_bad_record_does_not_take_the_check_down(put, tmp_path):
    file, good = tmp_path / "base.json", put()
    check(file, records=[good], update=True)
    (good.parent / "0000000000000000.json").write_text("{")
    lone = tmp_path / "lone.json"
    lone.write_text('{"schema": 2}')
    said: list[str] = []
    report = Reporter(warn=said.append)
    found = check(file, tmp_path / "results", [lone, tmp_path / "none.json"], report=report)
    assert found.exit_code == 0
    assert len(said) == 3
    with pytest.raises(InputError, match="no record that can be read"):
        check(file, records=[lone])


def test_the_newest_record_of_a_question_counts(put, tmp_path):
    file = tmp_path / "base.json"
    check(file, records=[put()], update=True)
    old = put("old", share=0.9, noise=8)
    document = json.loads(old.read_text())
    document["created"] = "2020-01-01T00:00:00+00:00"
    old.write_text(json.dumps(document))
    assert check(file, tmp_path / "results", [old]).verdict.word == "identical"


WRONG = [
    ("{", "expected a baseline"),
    ("[]", "must be an object"),
    ('{"schema": 1}', "lacks"),
    ('{"schema": NaN}', "expected a baseline"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_a_damaged_baseline_is_one_line(tmp_path, text, said):
    file = tmp_path / "b.json"
    file.write_text(text)
    done = typed("--baseline", file)
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert said in line


def places(value, path=()):
    """Every place in a document, with at most two of each list."""
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list):
        for i in range(min(2, len(value))):
            yield from places(value[i], (*path, i))


def test_any_wrong_value_anywhere_is_one_line_or_harmless(put, tmp_path):
    file = tmp_path / "base.json"
    record = put()
    check(file, records=[record], update=True)
    whole = file.read_text()
    wrong = tmp_path / "wrong.json"
    for place in places(json.loads(whole)):
        if not place:
            continue
        for value in (None, -1, "\x1b[31m", {}, [[0, 0, 10**12]]):
            document = json.loads(whole)
            inner = document
            for name in place[:-1]:
                inner = inner[name]
            inner[place[-1]] = value
            wrong.write_text(json.dumps(document))
            with contextlib.suppress(InputError):  # and nothing else is raised
                found = check(wrong, records=[record])
                reports.markdown(found.verdict)
                reports.junit(found.verdict)
                json.dumps(reports.document(found), allow_nan=False)


def test_the_command_says_what_it_found(put, tmp_path, monkeypatch):
    file, page = tmp_path / "base.json", tmp_path / "page.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    record = put()
    assert typed("--baseline", file, "--update", record).exit_code == 0
    worse = put("worse", share=0.8, noise=3)
    xml, text = tmp_path / "j.xml", tmp_path / "m.md"
    done = typed("--baseline", file, worse, "--junit", xml, "--markdown", text)
    assert done.exit_code == 1
    assert "fairness_discrepancy" in done.stdout
    assert "verdict  failed" in done.stdout
    suites = ElementTree.parse(xml).getroot()
    assert [
        case.get("name") for case in suites.iter("testcase") if case.find("failure") is not None
    ] == ["fairness_discrepancy"]
    assert "| regressed | fairness_discrepancy |" in text.read_text()
    assert page.read_text().startswith("before\n### fairbench check: failed")
    told = json.loads(typed("--baseline", file, worse, "--json").stdout)
    assert told["exit_code"] == 1
    assert told["counts"]["regressed"] == 1


def test_the_page_never_grows_past_what_is_shown(make_run, tmp_path):
    run = make_run(n=100)
    before = [
        dataclasses.replace(run, question={"method": f"{'m' * 300}{k}"}) for k in range(3000)
    ]
    verdict = compare(before, [])
    text = reports.markdown(verdict)
    assert len(text.encode()) < reports.LARGEST_SUMMARY
    assert "more lines are left out" in text
    page = tmp_path / "page.md"
    page.write_bytes(b"x" * (reports.LARGEST_SUMMARY - 5000))
    reports.append(page, verdict)
    assert page.stat().st_size < reports.LARGEST_SUMMARY
    assert "more lines are left out" in page.read_text()
    page.write_bytes(b"x" * reports.LARGEST_SUMMARY)
    reports.append(page, verdict)
    assert page.stat().st_size == reports.LARGEST_SUMMARY


def test_hostile_names_stay_text(make_run):
    hostile = dataclasses.replace(
        make_run(), question={"method": "<script>|\x1b[31m`", "task": "=cmd()"}
    )
    verdict = compare([hostile], [])
    text = reports.markdown(verdict)
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "\\|" in text
    ElementTree.fromstring(reports.junit(verdict))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on-missing", "fial"], "did you mean fail"),
        (["--on-inconclusive", "x"], "known: fail, warn, ignore"),
        (["--accept-worse", "why"], "goes with --update"),
        (["--update", "--accept-worse", " "], "needs a reason"),
        ([], "no such baseline"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, arguments, said):
    done = typed("--baseline", tmp_path / "none.json", *arguments)
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert said in line


def test_shipped_baselines_can_be_read_and_are_no_worse_than_themselves():
    for path in BASELINES.glob("*.json"):
        runs = read_baseline(path).runs
        assert runs
        assert compare(runs, runs).word == "identical"
        for run in runs:
            config_of(run.question, Path("results"))
            assert run.images.labels


@pytest.mark.slow
def test_the_analytic_gate_passes(own_cache, tmp_path):
    done = typed("--baseline", BASELINES / "analytic.json", "--json")
    assert json.loads(done.stdout)["verdict"] in ("identical", "passed"), done.stdout
    assert done.exit_code == 0
