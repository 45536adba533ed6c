from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from fairbench.core.errors import ContractError, InputError
from fairbench.core.keys import run_key
from fairbench.core.record import SCHEMA, PerImage, Record
from fairbench.core.score import Score
from fairbench.storage import records
from fairbench.storage.records import (
    RecordError,
    find_record,
    read_hashes,
    read_manifest,
    read_per_image,
    read_record,
    read_records,
    record_path,
    sidecar_path,
    write_record,
)

GOLDEN = Path(__file__).parents[1] / "golden"


def refuse(message):
    raise AssertionError(f"unexpected warning: {message}")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# Keys.


def test_key_is_pinned():
    # Every committed record is filed under such a key: another value means another rule.
    assert run_key({"method": "vanilla", "seed": 0, "guidance": 1.5}) == "46e18f614d577e06"


def test_key_ignores_order_and_the_kind_of_sequence():
    assert run_key({"a": 1, "b": (1, 2)}) == run_key({"b": [1, 2], "a": 1})
    assert run_key({"a": frozenset("xyz")}) == run_key({"a": ["x", "y", "z"]})
    assert run_key({"a": np.int64(3), "b": np.float64(0.1)}) == run_key({"a": 3, "b": 0.1})


@pytest.mark.parametrize("other", [{"a": 0.1 + 0.2}, {"a": "0.3"}, {"a": 0.3, "b": None}, {}])
def test_key_sees_every_difference(other):
    assert run_key({"a": 0.3}) != run_key(other)


@pytest.mark.parametrize(
    "config",
    [{"a": float("nan")}, {"a": [float("inf")]}, {"a": object()}, {"a": {1: 2}}, {"a": 1j}],
)
def test_key_refuses_what_json_cannot_hold(config):
    with pytest.raises(ContractError, match=r"config\.a"):
        run_key(config)


# Writing.


def test_record_survives_a_round_trip(tmp_path, make_record):
    scores = (
        Score("fairness_discrepancy", 0.1 + 0.2, 0.1, 0.4, 2000, "lower", "wilson", 0.03),
        Score("kernel_x", -1e-05, None, None, 2000, "lower", source="x"),
    )
    record = make_record(scores=scores, facts={"who": "Zoë “x”", "bad name": "\udc80"})
    path = write_record(tmp_path, record)
    assert path == tmp_path / "cartoonfaces" / "fairgen" / f"{record.key}.json"
    assert read_record(path) == record
    assert read_record(path).score("kernel_x") == scores[1]
    assert read_record(path).score("nothing") is None


def test_a_score_says_its_version_where_it_is_not_the_first_one(tmp_path, make_record):
    scores = (
        Score("a", 0.1, None, None, 10, "lower"),
        Score("b", 0.1, None, None, 10, "lower", version=3),
    )
    path = write_record(tmp_path, make_record(scores=scores))
    written = json.loads(path.read_text(encoding="utf-8"))["scores"]
    assert "version" not in written[0]
    assert written[1]["version"] == 3
    assert read_record(path).scores == scores


def per_image(n=3, requested=True):
    return PerImage(
        sha256=tuple(f"{i:064x}" for i in range(n)),
        prompt_index=np.zeros(n, np.int64),
        image_index=np.arange(n),
        requested=np.arange(n) % 2 if requested else None,
        batch_id=np.arange(n) + 2**40,
        valid=np.arange(n) > 0,
        labels={"primary": {"gender": np.arange(n) % 2, "eye colour": np.arange(n) % 3}},
    )


def test_what_is_known_of_each_image_lies_in_a_sidecar(tmp_path, make_record):
    for requested in (True, False):
        images = per_image(requested=requested)
        path = write_record(tmp_path, make_record(), images)
        assert files(tmp_path) == [f"{path.stem}.images.npz", path.name]
        record = read_record(path)
        assert record.schema == 2
        assert "manifest" not in json.loads(path.read_text())
        found = read_per_image(path, record)
        assert found.sha256 == images.sha256
        for name in ("prompt_index", "image_index", "batch_id", "valid", "requested"):
            np.testing.assert_array_equal(getattr(found, name), getattr(images, name))
        labels = found.labels["primary"]
        assert labels.keys() == {"gender", "eye colour"}
        np.testing.assert_array_equal(labels["eye colour"], [0, 1, 2])
        assert read_manifest(path, record)[2] == (0, 2, images.sha256[2])


def test_a_sidecar_is_read_as_numpy_reads_it(tmp_path, make_record):
    images = per_image()
    path = write_record(tmp_path, make_record(), images)
    packed = path.with_suffix(".images.npz").read_bytes()
    with np.load(io.BytesIO(packed)) as stored:
        told = {name: stored[name] for name in stored.files}
    found = records._arrays(packed)
    assert list(found) == list(told)
    for name, array in found.items():
        assert array.dtype == told[name].dtype
        assert (array == told[name]).all()
        assert records._HEADER.match(zipfile.ZipFile(io.BytesIO(packed)).read(f"{name}.npy"))
    hashes = read_hashes(path, read_record(path))
    assert hashes is not None
    assert tuple(bytes(one).hex() for one in hashes) == images.sha256


@pytest.mark.parametrize(
    "number", ["1e309", "-1.5E+400", "1" + "0" * 200 + "e200", "Infinity", "NaN"]
)
def test_a_number_that_is_too_large_anywhere_is_refused_by_name(tmp_path, make_record, number):
    path = write_record(tmp_path, make_record(facts={"training": {"loss": 0.25}}))
    path.write_text(path.read_text().replace("0.25", number))
    with pytest.raises(RecordError, match=r"a number (is|must be finite)"):
        read_record(path)


@pytest.mark.parametrize(
    "number",
    [1e308, -1e-308, 5e-324, 0.1 + 0.2, 2**53 + 1, 2**63 - 1, 2**64, 2**64 + 1, -(2**70), [2**70]],
)
def test_numbers_are_read_to_the_last_digit(tmp_path, make_record, number):
    record = make_record(facts={"training": {"loss": number}})
    assert read_record(write_record(tmp_path, record)).facts == record.facts


def test_what_only_python_takes_for_json_is_read_as_before(tmp_path, make_record):
    path = write_record(tmp_path, make_record(facts={"folder": "caf\udce9"}))
    assert b"\\udce9" in path.read_bytes()
    assert read_record(path).facts == {"folder": "caf\udce9"}


def test_the_same_facts_make_the_same_sidecar(tmp_path, make_record):
    first = read_record(write_record(tmp_path / "a", make_record(), per_image()))
    second = read_record(write_record(tmp_path / "b", make_record(), per_image()))
    assert first.sidecar == second.sidecar
    assert (
        first.sidecar
        != read_record(
            write_record(tmp_path / "c", make_record(), per_image(requested=False))
        ).sidecar
    )


def test_a_sidecar_that_is_missing_or_another_is_named(tmp_path, make_record):
    path = write_record(tmp_path, make_record(), per_image())
    record = read_record(path)
    beside = path.with_suffix(".images.npz")
    beside.write_bytes(beside.read_bytes()[:-1] + b"x")
    with pytest.raises(RecordError, match="expected sha256"):
        read_per_image(path, record)
    beside.unlink()
    with pytest.raises(RecordError, match="expected the sidecar"):
        read_per_image(path, record)
    assert read_record(path) == record  # the record itself still loads


@pytest.mark.parametrize("content", [b"no archive", "hashes of 31 bytes", "no hashes"], ids=str)
def test_a_sidecar_of_another_kind_is_named(tmp_path, make_record, content):
    if isinstance(content, str):
        buffer = io.BytesIO()
        name = "sha256" if "31" in content else "other"
        np.savez_compressed(buffer, **{name: np.zeros((3, 31), np.uint8)})
        content = buffer.getvalue()
    path = write_record(tmp_path, make_record())
    sidecar_path(path).write_bytes(content)
    edit(path, sidecar=hashlib.sha256(content).hexdigest())
    record = read_record(path)
    for read in (read_hashes, read_per_image):
        with pytest.raises(RecordError, match="expected the sidecar of a record, but"):
            read(path, record)


@pytest.mark.parametrize("kind", [b"|u3", b"|b9", b"<i7", b"|u9"])
def test_numbers_of_a_width_that_there_is_not_are_named(tmp_path, make_record, kind):
    path = write_record(tmp_path, make_record(), per_image())
    with zipfile.ZipFile(sidecar_path(path)) as stored:
        held = {name: stored.read(name) for name in stored.namelist()}
    held["sha256.npy"] = held["sha256.npy"].replace(b"|u1", kind)
    with zipfile.ZipFile(sidecar_path(path), "w", zipfile.ZIP_DEFLATED) as stored:
        for name, content in held.items():
            stored.writestr(name, content)
    edit(path, sidecar=hashlib.sha256(sidecar_path(path).read_bytes()).hexdigest())
    record = read_record(path)
    for read in (read_hashes, read_per_image):
        with pytest.raises(RecordError, match="expected the sidecar of a record, but"):
            read(path, record)


def test_hashes_are_read_wherever_they_stand_in_a_sidecar(tmp_path, make_record):
    path = write_record(tmp_path, make_record(), per_image())
    with zipfile.ZipFile(sidecar_path(path)) as stored:
        held = {name: stored.read(name) for name in reversed(stored.namelist())}
    for how in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA):
        for names in (list(held), list(held)[::-1]):
            with zipfile.ZipFile(sidecar_path(path), "w", how) as stored:
                for name in names:
                    stored.writestr(name, held[name])
            edit(path, sidecar=hashlib.sha256(sidecar_path(path).read_bytes()).hexdigest())
            hashes = read_hashes(path, read_record(path))
            assert hashes is not None
            assert tuple(bytes(one).hex() for one in hashes) == per_image().sha256


def test_a_record_exists_when_its_json_does(tmp_path, make_record, monkeypatch):
    replaced = Path.replace

    def stop_at_json(self, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", stop_at_json)
    record = make_record()
    with pytest.raises(KeyboardInterrupt):
        write_record(tmp_path, record, per_image())
    assert files(tmp_path) == [f"{record.key}.images.npz"]
    assert read_records(tmp_path, refuse) == []


def test_record_without_images_can_be_read(tmp_path, make_record):
    record = make_record(manifest=(), generation_key=None, groups={}, scores=())
    assert read_record(write_record(tmp_path, record)) == record


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_crash_while_writing_leaves_the_old_file(tmp_path, make_record, monkeypatch, moment):
    old = make_record()
    write_record(tmp_path, old)
    with monkeypatch.context() as patch:
        patch.setattr(*CRASHES[moment])
        with pytest.raises(KeyboardInterrupt):
            write_record(tmp_path, replace(old, created="later"))
        with pytest.raises(KeyboardInterrupt):
            write_record(tmp_path, make_record(seed=1))
    assert files(tmp_path) == [f"{old.key}.json"]
    assert read_records(tmp_path, refuse) == [old]


def crash(*_):
    raise KeyboardInterrupt


CRASHES = {
    "fsync": ("os.fsync", crash),
    "replace": ("pathlib.Path.replace", crash),
}


def test_a_partial_file_left_by_a_killed_process_is_ignored(tmp_path, make_record):
    path = write_record(tmp_path, make_record())
    path.with_name(f".{path.stem}.0badcafe.tmp").write_text('{"schema": 1')
    assert len(read_records(tmp_path, refuse)) == 1


def test_a_complete_record_is_renewed_by_a_complete_one_only(tmp_path, make_record):
    first = make_record(status="failed", error="out of memory")
    complete = replace(first, status="complete", error=None)
    later = replace(complete, created="later")
    path = write_record(tmp_path, first)
    for written, kept in [(complete, complete), (first, complete), (later, later)]:
        assert write_record(tmp_path, written) == path
        assert read_record(path) == kept
    write_record(tmp_path, replace(first, status="interrupted"))
    assert read_record(path) == later


@pytest.mark.parametrize("content", ["", '{"schema": 1, "key"', '{"schema": 3}', "[]"])
def test_what_cannot_be_read_is_never_overwritten(tmp_path, make_record, content):
    record = make_record()
    path = write_record(tmp_path, record)
    path.write_text(content)
    with pytest.raises(InputError, match=record.key):
        write_record(tmp_path, record)
    assert path.read_text() == content


def test_writing_refuses_other_schemas_infinity_and_names_that_are_paths(tmp_path, make_record):
    with pytest.raises(ContractError, match="schema 2; seen 3"):
        write_record(tmp_path, make_record(schema=SCHEMA + 1))
    with pytest.raises(ContractError, match=r"record\.seconds\.generate must be finite"):
        write_record(tmp_path, make_record(seconds={"generate": float("inf")}))
    for name in ("../elsewhere", ".hidden", "", "a/b"):
        with pytest.raises(InputError, match="folder or file name"):
            write_record(tmp_path, make_record(dataset=name))
    assert files(tmp_path) == []


def test_a_results_folder_that_is_a_file_is_an_input_error(tmp_path, make_record):
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        write_record(tmp_path / "results", make_record())


# Reading.


def test_schema_1_still_loads():
    # This file is never renewed: it stands for every record written with schema 1.
    record = read_record(GOLDEN / "record_v1.json")
    assert (record.schema, record.status, record.method) == (1, "complete", "fairgen")
    assert record.score("fairness_discrepancy") == Score(
        name="fairness_discrepancy",
        value=0.07071067811865482,
        low=0.04,
        high=0.1,
        n=2000,
        better="lower",
        interval="wilson",
        floor=0.031,
        source="cartoonfaces-judge",
    )
    assert record.config["sampling"]["steps"] == 20
    assert record.card["supervision"] == ["classifier", "prompts"]
    assert record.groups["gender|tennis player"][0]["target"] is None
    assert record.manifest[1] == (0, 1, "d" * 64)


def test_a_manifest_row_of_schema_1_is_checked(tmp_path):
    path = tmp_path / "old.json"
    data = json.loads((GOLDEN / "record_v1.json").read_text())
    path.write_text(json.dumps({**data, "manifest": [[0, 0]]}))
    with pytest.raises(RecordError, match=r"manifest row is \[0, 0\]"):
        read_record(path)


def test_schema_2_still_loads():
    # These two files are never renewed: they stand for every record written with schema 2.
    path = GOLDEN / "record_v2.json"
    record = read_record(path)
    assert (record.schema, record.status, record.method) == (2, "complete", "fairgen")
    assert record.manifest == ()
    images = read_per_image(path, record)
    assert len(images) == 3
    assert images.requested.tolist() == [0, 1, 0]
    assert images.valid.tolist() == [False, True, True]
    assert images.labels["primary"]["eye colour"].tolist() == [0, 1, 2]
    assert read_manifest(path, record)[1] == (0, 1, f"{1:064x}")


def test_the_reader_knows_every_field():
    known = {field.name for field in fields(Record)}
    # Only a record that was rescored says so.
    assert set(records._RECORD_V1) == known - {"sidecar", "rescored"}
    assert set(records._RECORD_V2) == known - {"manifest", "rescored"}
    assert set(records._SCORE_V1) == {field.name for field in fields(Score)}


def counted(**changes: object) -> dict[str, object]:
    """A record's facts with what a judge counted of the crossing ``a``, but for some changes."""
    sound = {"counts": [[3, 4]], "target": [0.5, 0.5], "confusion": None, "effect": None}
    told = {"per_prompt": False, "ranked": "a", "images": [7]}
    return {"facts": {"estimate": {**told, "judges": {"primary": {"a": {**sound, **changes}}}}}}


def test_what_a_judge_counted_is_right_as_it_is_written(tmp_path, make_record):
    path = write_record(tmp_path, make_record())
    edit(path, **counted(confusion=[[9, 1], [0, 8]], effect=1.5))
    assert read_record(path).facts["estimate"]["ranked"] == "a"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": 3}, "schema 2 or older, seen 3; update fairbench"),
        ({"schema": "1"}, "no schema number"),
        ({"schema": True}, "no schema number"),
        ({"status": "done"}, "status is 'done'"),
        ({"key": 7}, "'key' of the record is of type int"),
        ({"extra": 7}, "unknown extra"),
        ({"seconds": {"generate": "long"}}, "seconds.generate must be a number, seen 'long'"),
        ({"scores": [{"name": "x"}]}, "a score lacks better, floor"),
        ({"scores": ["x"]}, r"scores\[0\] must be an object"),
        ({"groups": {"gender": [1]}}, r"groups.gender\[0\] must be an object, seen 1"),
        ({"sidecar": 5}, "'sidecar' of the record is of type int"),
        ({"peak_memory_mib": float("nan")}, "a number is NaN"),
        ({"config": {"seed": "x"}}, "config.seed must be a whole number"),
        ({"config": {"seed": 10**400}}, "config.seed must be a whole number"),
        ({"config": {"target": "x"}}, "config.target must be an object"),
        ({"config": {"parameters": [1]}}, "config.parameters must be an object"),
        ({"config": {"hashes": "x"}}, "config.hashes must be an object"),
        ({"config": {"sampling": {"steps": None}}}, "config.sampling.steps must be"),
        ({"card": {"supervision": "prompts"}}, "card.supervision must be a list"),
        ({"facts": {"fair": {"a": {"n": ["x"]}}}}, r"facts.fair.a.n\[0\] must be"),
        ({"facts": {"copies": {"images": -1}}}, "facts.copies.images must be"),
        ({"facts": {"copies": {"images": 5}}}, "facts.copies lacks distinct"),
        ({"facts": {"fair": {"a": {}}}}, "facts.fair.a lacks n"),
        ({"facts": {"fairness": {"quota": {}}}}, "facts.fairness.quota lacks statistic, degrees"),
        ({"facts": {"estimate": "x"}}, "facts.estimate must be an object"),
        ({"facts": {"estimate": {}}}, "estimate lacks per_prompt, ranked, images, judges"),
        (counted(counts=[[1], [2, 3]]), "a.counts must be a table whose rows are equally long"),
        (counted(counts=[[1, 2, 3]]), "a.counts must be columns for 2 groups, as in target"),
        (counted(counts=[[1, -2]]), r"a.counts\[0\]\[1\] must be a whole number"),
        (counted(target=[0.5, 0.6]), "a.target must be shares that sum to 1"),
        (counted(confusion=[[1, 2]]), "a.confusion must be a table of as many rows as columns"),
        (counted(effect=0), "a.effect must be a number above 0, seen 0"),
        (counted(counts=[[10**18, 1]]), "must be a number of images, at most"),
        ({"config": {"target": {"a": 0.9, "b": 0.9}}}, "target must be shares that sum to 1"),
        ({"facts": {"baseline": {"scores": {}}}}, "facts.baseline lacks method"),
        ({"groups": {"a": [{"count": 1.5}]}}, r"groups.a\[0\].count must be"),
        ({"groups": {"a": [{"group": "x"}]}}, r"groups.a\[0\] lacks count, n"),
        ({"extra_parameters": 10**30}, "extra_parameters must be a whole number"),
        ({"peak_memory_mib": 10**20}, "peak_memory_mib must be a number of at most"),
        ({"scores": [{"level": 1}]}, r"scores\[0\].level must be a number above 0 and below 1"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, make_record, changes, problem):
    path = write_record(tmp_path, make_record())
    edit(path, **changes)
    with pytest.raises(RecordError, match=problem) as error:
        read_record(path)
    message = str(error.value)
    assert message.startswith(f"{path}: expected a record of schema 2")
    assert "\n" not in message


@pytest.mark.parametrize("name", sorted(records._RECORD_V2))
def test_a_missing_field_is_damage(tmp_path, make_record, name):
    path = write_record(tmp_path, make_record())
    data = json.loads(path.read_text())
    del data[name]
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match="no schema number" if name == "schema" else name):
        read_record(path)


def test_truncation_anywhere_is_damage(tmp_path, make_record):
    path = write_record(tmp_path, make_record())
    content = path.read_bytes()
    for length in range(0, len(content) - 2, 97):
        path.write_bytes(content[:length])
        with pytest.raises(RecordError):
            read_record(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b'{"schema": 1e999}'])
def test_other_content_is_damage(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"x\.json"):
        read_record(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecordError, match="can't be read"):
        read_record(tmp_path / "x.json")


# Finding.


def test_only_complete_records_are_found(tmp_path, make_record):
    record = make_record()
    path = record_path(tmp_path, "cartoonfaces", "fairgen", record.key)
    assert find_record(path) is None
    for status in ("failed", "interrupted"):
        write_record(tmp_path, replace(record, status=status, error="it stopped"))
        assert find_record(path) is None
    write_record(tmp_path, record)
    assert find_record(path) == record


def test_finding_names_damage_and_a_foreign_key(tmp_path, make_record):
    path = write_record(tmp_path, make_record())
    edit(path, key="0" * 16)
    with pytest.raises(RecordError, match="expected run key"):
        find_record(path)
    path.write_text("{")
    with pytest.raises(RecordError, match=path.name):
        find_record(path)


def test_reading_a_folder_skips_what_is_no_record(tmp_path, make_record):
    made = [make_record(method, seed) for method in ("vanilla", "fairgen") for seed in (0, 1)]
    paths = [write_record(tmp_path, record) for record in made]
    failed = make_record("fairgen", 7, status="failed", error="it stopped")
    write_record(tmp_path, failed)
    for name in ("LEADERBOARD.md", "board.json", "cartoonfaces/plot.png", "cartoonfaces/a.json"):
        (tmp_path / name).write_text("no record")
    hidden = tmp_path / "cartoonfaces" / ".ipynb_checkpoints"
    hidden.mkdir()
    (hidden / "x.json").write_text("no record")
    edit(paths[0], schema=9)
    warnings = []
    read = read_records(tmp_path, warnings.append)
    assert len(warnings) == 1
    assert str(paths[0]) in warnings[0]
    assert {record.key for record in read} == {record.key for record in [*made[1:], failed]}
    assert read == sorted(read, key=lambda record: (record.method, record.key))


def test_reading_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="expected a folder of records"):
        read_records(tmp_path / "nowhere", refuse)


def test_import_is_light():
    code = "import sys, fairbench.storage.records, fairbench.leaderboards as b; b.to_csv([])"
    code += "; print({'torch', 'pandas', 'scipy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# What isn't a record of ours.


def test_a_pipe_is_skipped_with_a_word(tmp_path, make_record):
    path = write_record(tmp_path, make_record())
    os.mkfifo(path.with_name("a.json"))
    told = []
    assert [record.key for record in read_records(tmp_path, told.append)] == [path.stem]
    assert "a.json: expected a record, seen no file" in told[0]


def test_a_score_too_large_to_count_is_damage(tmp_path, make_record):
    score = Score("a", 0.1, None, None, 10, "lower")
    path = write_record(tmp_path, make_record(scores=(score,)))
    data = json.loads(path.read_text())
    for value in (10**400, True, "0.1"):
        data["scores"][0]["value"] = value
        path.write_text(json.dumps(data))
        with pytest.raises(RecordError, match=r"scores\[0\].value must be"):
            read_record(path)


def test_a_score_without_a_direction_is_damage(tmp_path, make_record):
    path = write_record(tmp_path, make_record(scores=(Score("a", 0.1, None, None, 1, "lower"),)))
    data = json.loads(path.read_text())
    data["scores"][0]["better"] = "more"
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match="better must be one of lower, higher, neither"):
        read_record(path)


def test_committed_records_pass_the_check():
    committed = Path(__file__).parents[2] / "results"
    assert len(read_records(committed, refuse)) == len(list(committed.glob("*/*/*.json")))
