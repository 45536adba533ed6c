from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from fairbench.leaderboards import board, helpers, index, leaderboard, rows, to_csv
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


def texts_held(cache):
    (path,) = (cache / "boards").glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as base:
        (count,) = base.execute("SELECT count(*) FROM texts").fetchone()
    return count


def test_what_scores_say_is_held_once_and_forgotten_with_the_last_record(results, cache):
    leaderboard(results, warn=refuse)
    held = texts_held(cache)
    assert held < 9
    other, broken, *_ = sorted(results.glob("*/tiw/*.json"))
    text = other.read_text()
    other.write_text(text.replace('"unit": "share"', '"unit": "part"'))
    broken.write_text("{")
    leaderboard(results, warn=lambda line: None)
    assert texts_held(cache) == held + 1
    assert any(score.unit == "part" for run in records_of("tiw", results) for score in run.scores)
    other.write_text(text)
    leaderboard(results, warn=lambda line: None)
    assert texts_held(cache) == held


def records_of(method, results):
    opened = board.open_board(results, warn=lambda line: None)
    (row,) = [row for row in opened.rows if row.method == method]
    return opened.records(row)


def test_a_damaged_index_is_made_anew(results, cache):
    first = to_csv(leaderboard(results, warn=refuse))
    (path,) = (cache / "boards").glob("*.sqlite")
    path.write_bytes(b"no database at all" * 1000)
    assert to_csv(leaderboard(results, warn=refuse)) == first


@pytest.mark.parametrize(
    "column", ["light", "texts", "numbers", "counts", "confusions", "hashes", "every", "found"]
)
@pytest.mark.parametrize("damage", [b"\x00\xff damaged", b"", "text", None])
def test_damaged_entries_are_made_anew(results, cache, column, damage):
    first = to_csv(leaderboard(results, warn=refuse))
    (path,) = (cache / "boards").glob("*.sqlite")
    table = {"every": "texts", "found": "rows"}.get(column, "records")
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute(f"UPDATE {table} SET {column} = ?", (damage,))
        if table != "rows":
            base.execute("DELETE FROM rows")
        base.commit()
    opened = board.open_board(results, warn=lambda line: None)
    if damage or column not in ("light", "hashes"):  # nothing has a meaning there
        assert to_csv(opened.rows) == first
        for row in opened.rows:
            assert [record.key for record in opened.records(row)] == list(row.keys)


def test_a_number_that_changed_in_the_index_is_noticed(results, cache):
    first = to_csv(leaderboard(results, warn=refuse))
    (path,) = (cache / "boards").glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as base:
        for name, numbers in base.execute("SELECT path, numbers FROM records").fetchall():
            middle = len(numbers) // 2
            other = numbers[:middle] + bytes([numbers[middle] ^ 1]) + numbers[middle + 1 :]
            base.execute("UPDATE records SET numbers = ? WHERE path = ?", (other, name))
        base.execute("DELETE FROM rows")
        base.commit()
    assert to_csv(leaderboard(results, warn=refuse)) == first


@pytest.mark.parametrize("seed", range(12))
def test_damaged_pages_end_nothing(results, cache, seed):
    first = to_csv(leaderboard(results, warn=refuse))
    (path,) = (cache / "boards").glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute("DELETE FROM rows")
        base.commit()
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    draw = random.Random(seed)
    start = 4096 * draw.randrange(1, len(content) // 4096)
    content[start + 64 : start + 3064] = draw.randbytes(3000)
    path.write_bytes(content)
    opened = board.open_board(results, warn=lambda line: None)
    assert to_csv(opened.rows) == first
    assert all(opened.records(row) for row in opened.rows)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_what_a_killed_helper_had_at_hand_is_worked_out(monkeypatch, tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core has no helpers")
    monkeypatch.setattr(helpers, "_PATIENCE", 0.2)
    here, killed = os.getpid(), tmp_path / "killed"

    def work(items):
        if items[0] == 320 and os.getpid() != here and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [item**2 for item in items]

    assert list(helpers.mapped(work, range(2000))) == [item**2 for item in range(2000)]
    assert killed.exists()


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
    first = to_csv(leaderboard(results, warn=refuse))
    monkeypatch.setenv("FAIRBENCH_CACHE", str(results.parent / "other"))
    monkeypatch.setattr(helpers, "_WORTH_IT", 2)
    assert to_csv(leaderboard(results, warn=refuse)) == first


def test_records_of_a_row_come_whole(results):
    opened = board.open_board(results, warn=refuse)
    for row in opened.rows:
        records = opened.records(row)
        assert tuple(record.key for record in records) == row.keys
        whole = {record.key: record for record in read_records(results, refuse)}
        for record in records:
            told = whole[record.key]
            assert (record.scores, record.groups, record.facts) == (
                told.scores,
                told.groups,
                told.facts,
            )


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_helpers_run_ahead_of_what_is_asked_for_by_so_much_only(tmp_path):
    count = min(8, len(os.sched_getaffinity(0)))
    if count < 2:
        pytest.skip("one core has no helpers")

    def work(items):
        (tmp_path / f"{items[0]:05}").touch()
        return [item**2 for item in items]

    found = helpers.mapped(work, range(2000))
    first = [next(found) for _ in range(16)]
    time.sleep(0.5)
    done = len(list(tmp_path.iterdir()))
    assert first == [item**2 for item in range(16)]
    assert done < 2000 / 16
    assert [*first, *found] == [item**2 for item in range(2000)]
    assert len(list(tmp_path.iterdir())) == 2000 / 16
