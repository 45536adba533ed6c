from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fairbench.core.errors import InputError
from fairbench.core.keys import run_key
from fairbench.core.record import PerImage
from fairbench.core.score import RANKED, Score
from fairbench.leaderboards.validation import records_in, validate
from fairbench.storage.records import write_record


@pytest.fixture
def good(make_record):
    rows = [
        {
            "group": name,
            "count": count,
            "n": 200,
            "share": count / 200,
            "low": 0,
            "high": 1,
            "target": 0.5,
        }
        for name, count in (("female", 80), ("male", 120))
    ]
    record = make_record(
        "vanilla",
        config={"num_images": 200},
        groups={"gender": rows},
        facts={"copies": {"images": 200, "distinct": 200, "evaluation": 0}},
        scores=(Score(RANKED, 0.1, 0.05, 0.15, 200, "lower", "w", version=9),),
        environment={"code": {"commit": "a" * 40, "clean": True}},
    )
    hashed = {k: v for k, v in record.config.items() if k not in ("backbone", "preset")}
    return replace(record, key=run_key(hashed))


@pytest.fixture
def images():
    labels = np.repeat([0, 1], [80, 120])
    return PerImage(
        tuple(f"{i:064x}" for i in range(200)),
        np.zeros(200, dtype=np.int64),
        np.arange(200),
        None,
        np.arange(200),
        np.ones(200, dtype=bool),
        {"primary": {"gender": labels}},
    )


def checks(path):
    return {(one.level, one.check) for one in validate(path)}


def test_a_record_of_today_has_nothing_wrong(good, images, tmp_path):
    assert validate(write_record(tmp_path, good, images)) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"status": "failed"}, ("error", "status")),
        ({"key": "0123456789abcdef"}, ("error", "key")),
        (
            {"facts": {"copies": {"images": 200, "distinct": 200, "evaluation": 3}}},
            ("error", "disjointness"),
        ),
        ({"facts": {}}, ("warning", "disjointness")),
        (
            {
                "facts": {
                    "copies": {"images": 200, "distinct": 200, "evaluation": 0},
                    "fairness": {"quota": {"quota": True, "statistic": 0.0, "degrees": 1}},
                }
            },
            ("warning", "quota"),
        ),
        ({"environment": {"code": {"clean": False}}}, ("unverified", "origin")),
        ({"scores": ()}, ("warning", "scores")),
        ({"scores": (Score("of_old", 1.0, 2.0, 0.0, 9, "lower"),)}, ("error", "scores")),
    ],
)
def test_what_is_wrong_is_said(good, images, tmp_path, change, found):
    assert found in checks(write_record(tmp_path, replace(good, **change), images))


def test_groups_that_lack_images_are_found(good, images, tmp_path):
    (one, *rest) = good.groups["gender"]
    path = write_record(
        tmp_path, replace(good, groups={"gender": [{**one, "count": 0}, *rest]}), images
    )
    assert ("error", "groups") in checks(path)


def test_an_evaluator_that_guided_the_images_is_found(good, images, tmp_path):
    config = {**good.config, "parameters": {"classifier": good.config["hashes"]["judge"]}}
    path = write_record(tmp_path, replace(good, config=config), images)
    assert ("error", "evaluator") in checks(path)


def test_images_that_are_missing_copied_or_counted_wrongly_are_found(good, images, tmp_path):
    path = write_record(tmp_path, good, replace(images, sha256=("0" * 64,) * 200))
    assert ("error", "duplicates") in checks(path)
    other = {"primary": {"gender": np.repeat([0, 1], [90, 110])}}
    path = write_record(tmp_path, good, replace(images, labels=other))
    assert ("error", "groups") in checks(path)
    path.with_suffix(".images.npz").unlink()
    assert ("error", "sidecar") in checks(path)
    config = {**good.config, "num_images": 300}
    path = write_record(tmp_path / "more", replace(good, config=config), images)
    assert ("error", "completeness") in checks(path)


def test_a_damaged_file_says_what_is_wrong(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    (one,) = validate(path)
    assert (one.level, one.check) == ("error", "schema")
    assert "schema number" in one.text


def test_records_are_found_in_folders(good, images, tmp_path):
    path = write_record(tmp_path, good, images)
    assert records_in([tmp_path, path]) == [path]
    with pytest.raises(InputError, match="expected a record"):
        records_in([tmp_path / "nothing"])
