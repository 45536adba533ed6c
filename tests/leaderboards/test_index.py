from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairbench.leaderboards import board, index, leaderboard, rows, to_csv
from fairbench.storage.records import read_records, sidecar_path, write_record


def refuse(line):
    raise AssertionError(f"unexpected warning: {line}")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def results(make_counted, tmp_path, per_image):
    made = [
        make_counted(method, (1000 + 100 * seed + more, 1000 - 100 * seed - more), seed)
        for seed in range(3)
        for method, more in (("vanilla", 500), ("fairgen", 20), ("tiw", 40))
    ]
    for record in made:
        images = per_image([0] * 40 + [1] * 60)
        write_record(tmp_path / "results", record, images)
    return tmp_path / "results"


@pytest.fixture
def parsed(monkeypatch):
    """Paths of records that were parsed."""
    seen = []
    real = index.read_record

    def read(path):
        seen.append(path)
        return real(path)

    monkeypatch.setattr(index, "read_record", read)
    return seen


def test_rows_are_those_of_whole_records(results):
    plain = rows(read_records(results, refuse), warn=refuse)
    for _ in range(2):
        found = leaderboard(results, warn=refuse)
        assert {row.place: row.scores for row in found} == {row.place: row.scores for row in plain}


def test_no_record_is_parsed_twice(results, parsed):
    first = to_csv(leaderboard(results, warn=refuse))
    assert len(parsed) == 9
    assert to_csv(leaderboard(results, warn=refuse)) == first
    assert len(parsed) == 9


def test_what_changed_is_read_again_and_what_is_gone_forgotten(results, parsed):
    first = leaderboard(results, warn=refuse)
    path = sorted(results.glob("*/tiw/*.json"))[0]
    text = path.read_text().replace('"created": "', '"created":  "')
    path.write_text(text)
    os.utime(path, ns=(1, 1))
    leaderboard(results, warn=refuse)
    assert parsed[9:] == [path]
    path.unlink()
    sidecar_path(path).unlink()
    (row,) = [row for row in leaderboard(results, warn=refuse) if row.method == "tiw"]
    assert len(row.seeds) == 2
    assert len(first) == 3


def test_a_damaged_index_is_made_anew(results, cache):
    first = to_csv(leaderboard(results, warn=refuse))
    (path,) = (cache / "boards").glob("*.sqlite")
    path.write_bytes(b"no database at all" * 1000)
    assert to_csv(leaderboard(results, warn=refuse)) == first


def test_a_board_is_made_where_no_index_can_be_kept(results, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("FAIRBENCH_CACHE", str(blocked / "cache"))
    assert len(leaderboard(results, warn=refuse)) == 3


def test_damaged_records_are_told_each_time(results):
    path = sorted(results.glob("*/tiw/*.json"))[0]
    path.write_text("{")
    for _ in range(2):
        lines = []
        leaderboard(results, warn=lines.append)
        assert any(str(path) in line for line in lines)


def test_a_file_whose_name_is_no_text_is_a_record_like_others(results):
    first = to_csv(leaderboard(results, warn=refuse))
    for path in sorted(results.glob("*/tiw/*.json")):
        name = os.fsencode(path.parent / "a") + b"\xff" + os.fsencode(path.name)
        sidecar_path(path).rename(sidecar_path(Path(os.fsdecode(name))))
        path.rename(os.fsdecode(name))
    for _ in range(2):
        assert to_csv(leaderboard(results, warn=refuse)) == first


def test_helpers_give_the_same(results, monkeypatch):
    from fairbench.leaderboards import helpers

    first = to_csv(leaderboard(results, warn=refuse))
    monkeypatch.setenv("FAIRBENCH_CACHE", str(results.parent / "other"))
    monkeypatch.setattr(helpers, "_WORTH_IT", 2)
    assert to_csv(leaderboard(results, warn=refuse)) == first


def test_records_of_a_row_come_whole(results):
    opened = board.open_board(results, warn=refuse)
    for row in opened.rows:
        records = opened.records(row)
        assert tuple(record.key for record in records) == row.keys
        assert all(record.scores and record.groups and record.facts for record in records)
