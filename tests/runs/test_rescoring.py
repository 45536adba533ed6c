"""Scores of an older version are computed again from what a record kept."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairbench.core.record import PerImage, Record
from fairbench.datasets.cartoonfaces import DATASET
from fairbench.runs.rescoring import old_scores, rescore, rescore_all
from fairbench.scores import catalogue
from fairbench.scores.known_labels import expanded
from fairbench.storage.records import read_record, rewrite_record, write_record

COMMITTED = Path(__file__).parents[2] / "results"
OLDER = Path(__file__).parent / "schema_1"  # as they were committed before there were sidecars
LATER = 99


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every score's definition is a version that no record has yet."""
    kept = {id(spec): spec.version for spec in catalogue.specs()}
    for spec in catalogue.specs():
        object.__setattr__(spec, "version", LATER)
    yield
    for spec in catalogue.specs():
        object.__setattr__(spec, "version", kept[id(spec)])


def copied(tmp_path: Path, method: str, task: str) -> Path:
    """A record of schema 1 in a folder of its own."""
    for path in sorted(OLDER.glob(f"cartoonfaces/{method}/*.json")):
        found = read_record(path)
        if found.task == task and found.sidecar is None:
            there = tmp_path / "results" / "cartoonfaces" / method / path.name
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there)
            return there
    raise AssertionError(f"no record of {method}, {task}")


def as_schema_2(path: Path) -> tuple[Path, Record]:
    """The record with a sidecar that both judges agree in, and its number of older scores."""
    record = read_record(path)
    counts = np.array([row["count"] for row in record.groups["gender/race"]])
    images = np.array([len(record.manifest)])
    known = expanded(
        {0: counts},
        images,
        ("gender", "race"),
        DATASET.attributes,
        "primary",
        validity_checked=True,
    )
    rest = {
        name: np.zeros(len(known.valid), np.int64)
        for name in DATASET.attributes
        if name not in known.labels["primary"]
    }
    labels = {**known.labels["primary"], **rest}
    sidecar = PerImage(
        tuple(digest for _, _, digest in record.manifest),
        known.prompt_index,
        np.arange(len(known.valid)),
        None,
        known.batch_id,
        known.valid,
        {"primary": labels, "second": labels},
    )
    path.unlink()
    newer = dataclasses.replace(record, schema=2, manifest=())
    return write_record(path.parents[2], newer, sidecar), record


def test_no_level_of_an_attribute_that_isnt_known_is_overwritten(
    tmp_path: Path, later: None
) -> None:
    # The last three of the five roles were once counted as 0, in whatever filled the gaps.
    path = copied(tmp_path, "fairgen", "gender_by_role")
    before = read_record(path)
    rescore(path, before)
    after = read_record(path)
    for name in ("role", "glasses", "facial_hair"):
        assert after.groups[name] == before.groups[name]
        assert sum(row["count"] for row in after.groups[name]) == after.groups[name][0]["n"]


def test_counts_of_every_committed_table_of_one_attribute_add_up() -> None:
    for path in sorted(COMMITTED.glob("*/*/*.json")):
        record = read_record(path)
        for name, rows in record.groups.items():
            assert sum(row["count"] for row in rows) == rows[0]["n"], (path, name)


def test_counts_are_enough_for_shares(tmp_path: Path, later: None) -> None:
    path = copied(tmp_path, "vanilla", "gender_race")
    before = read_record(path)
    found = rescore(path, before)
    after = read_record(path)
    assert found.basis == "counts"
    for name in ("fairness_discrepancy", "fairness_discrepancy_gender", "validity"):
        assert name in found.changed
        assert after.score(name).version == LATER
        assert after.score(name).value == pytest.approx(before.score(name).value, abs=1e-12)
    # Nothing of this can be read off a table of one judge's counts.
    for name in ("fairness_discrepancy_soft", "fairness_discrepancy_corrected", "hit_rate"):
        assert name not in found.changed
    assert {score.name for score in after.scores} >= {score.name for score in before.scores}
    kernel = "kernel_cartoonfaces_balanced"
    assert after.score(kernel) == before.score(kernel)
    assert kernel in found.old
    assert found.command.startswith("fairbench run --method vanilla ")
    assert (after.created, after.manifest, after.schema) == (
        before.created,
        before.manifest,
        1,
    )
    lines = path.read_text().splitlines()
    assert f'    [0, 0, "{before.manifest[0][2]}"],' in lines  # a line an image, as before
    assert after.rescored is not None
    assert after.rescored["scores"] == list(found.changed)
    assert after.facts["copies"]["evaluation"] == 0
    # Half an entry would be taken for a whole one: what the second judge counted isn't known.
    assert "estimate" not in after.facts
    assert after.facts["fairness"]["corrected"] == before.facts["fairness"]["corrected"]
    ranked = "fairness_discrepancy_corrected"
    assert after.facts["fair"][ranked] == before.facts["fair"][ranked]


def test_several_prompts_are_told_apart_by_their_tables(tmp_path: Path, later: None) -> None:
    path = copied(tmp_path, "vanilla", "gender_by_role")
    before = read_record(path)
    found = rescore(path, before)
    after = read_record(path)
    name = "fairness_discrepancy_worst_prompt"
    assert name in found.changed
    assert after.score(name).value == pytest.approx(before.score(name).value, abs=1e-12)


def test_labels_of_each_image_are_enough_for_the_ranked_score(tmp_path: Path, later: None) -> None:
    path, before = as_schema_2(copied(tmp_path, "vanilla", "gender_race"))
    found = rescore(path, read_record(path))
    after = read_record(path)
    assert found.basis == "labels of each image"
    assert {"fairness_discrepancy_corrected", "judge_disagreement_gender"} <= {*found.changed}
    assert after.score("judge_disagreement_gender").value == 0  # both judges said the same
    assert "judge_confidence_gender" not in found.changed
    raw = "fairness_discrepancy"
    assert after.score(raw).value == pytest.approx(before.score(raw).value, abs=1e-12)
    judges = after.facts["estimate"]["judges"]
    assert judges["primary"]["gender"]["counts"] == judges["second"]["gender"]["counts"]


def test_what_is_up_to_date_stays_to_the_byte(tmp_path: Path) -> None:
    path = copied(tmp_path, "vanilla", "gender")
    record = read_record(path)
    current = tuple(dataclasses.replace(score, version=LATER) for score in record.scores)
    rewrite_record(path, dataclasses.replace(record, scores=current))
    before = path.read_bytes()
    (found,) = rescore_all(tmp_path / "results")
    assert (found.changed, found.old) == ((), ())
    assert path.read_bytes() == before
    assert read_record(path).manifest == record.manifest


def test_coupled_images_need_more_than_counts(tmp_path: Path, later: None) -> None:
    path = copied(tmp_path, "distribution_guidance", "gender")
    before = path.read_bytes()
    found = rescore(path, read_record(path))
    assert found.changed == ()
    assert "depend on each other" in found.problem
    assert path.read_bytes() == before


def test_other_instruments_change_nothing(tmp_path: Path, later: None) -> None:
    path = copied(tmp_path, "vanilla", "gender")
    document: dict[str, Any] = json.loads(path.read_text())
    document["config"]["hashes"]["judge_primary"] = "0" * 64
    path.write_text(json.dumps(document))
    found = rescore(path, read_record(path))
    assert found.changed == ()
    assert "another judge_primary" in found.problem


def test_a_damaged_sidecar_does_not_stop_the_others(tmp_path: Path, later: None) -> None:
    broken, _ = as_schema_2(copied(tmp_path, "vanilla", "gender_race"))
    broken.with_suffix(".images.npz").write_bytes(b"nothing")
    sound = copied(tmp_path, "fairgen", "gender")
    found = {one.path: one for one in rescore_all(tmp_path / "results")}
    assert "expected sha256" in found[broken].problem
    assert found[sound].changed
    assert old_scores(read_record(broken))
