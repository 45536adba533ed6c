"""Files appear whole or not at all, and what killed programs leave goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairbench.core.errors import InputError
from fairbench.storage.files import (
    atomic_write,
    check_file,
    check_writable,
    sweep,
    working_folder,
)
from fairbench.storage.pruning import clean, prune, usage

KILLED = """
import os, signal, sys
from pathlib import Path
from fairbench.storage.files import atomic_write, working_folder
with atomic_write(Path(sys.argv[1]) / "a" / "file.json") as file:
    file.write(b"half")
    file.flush()
    with working_folder(Path(sys.argv[1])) as work:
        (work / "network").write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_what_a_killed_program_leaves_is_swept(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    left = names(tmp_path)
    assert any(name.endswith(".part") for name in left)
    assert any(name.endswith("network") for name in left)
    assert sweep(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_what_is_being_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with atomic_write(path) as one, working_folder(tmp_path) as work:
        one.write(b"one")
        assert not sweep(tmp_path)
        assert work.is_dir()
        with atomic_write(path) as other:
            other.write(b"other")
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["file.json"]


def test_an_earlier_attempt_at_the_same_file_goes(tmp_path: Path) -> None:
    left = tmp_path / ".board[1].csv.0123abcd.part"
    other = tmp_path / ".board1.csv.0123abcd.part"
    left.write_bytes(b"half")
    other.write_bytes(b"of another file")
    with atomic_write(tmp_path / "board[1].csv") as file:
        file.write(b"whole")
    assert names(tmp_path) == [other.name, "board[1].csv"]


def test_the_user_s_own_files_and_empty_folders_stay(tmp_path: Path) -> None:
    for name in (".hidden.part", "x.part", ".a.0123.part"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty" / "too").mkdir(parents=True)
    before = names(tmp_path)
    assert not sweep(tmp_path)
    assert names(tmp_path) == before


def test_looking_whether_a_folder_can_be_written_to_makes_none(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "--results")
    check_file(tmp_path / "c" / "board.csv", "--output")
    assert names(tmp_path) == []
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "below", tmp_path / ("x" * 300) / "y"):
        with pytest.raises(InputError, match=r"--results .* can't be written to"):
            check_writable(path, "--results")
    for path in (tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"--output .* can't be written"):
            check_file(path, "--output")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    for name, size in (("images/k/all.npz", 3000), ("trained/networks/n", 500), ("own/x", 9)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"0" * size)
    return folder


def test_the_cache_says_how_large_it_is(cache: Path) -> None:
    found = [(one.kind, one.files, one.bytes) for one in usage(cache)]
    assert found == [("images", 1, 3000), ("trained", 1, 500)]


def test_the_cache_is_pruned_by_kind_and_age_and_nothing_else_goes(cache: Path) -> None:
    assert prune(cache, ["images"], dry=True).bytes == 3000
    assert (cache / "images/k/all.npz").is_file()
    assert prune(cache, ["all"], older_than=1).files == 0
    old = cache / "trained/networks/n"
    os.utime(old, (0, 0))
    assert prune(cache, ["all"], older_than=1).files == 1
    assert prune(cache, ["images"]).files == 1
    assert names(cache) == ["own", "own/x"]
    with pytest.raises(InputError, match="did you mean images"):
        prune(cache, ["image"])
    with pytest.raises(InputError, match="--older-than"):
        prune(cache, ["all"], older_than=float("nan"))


def test_a_folder_that_a_killed_run_left_empty_goes_from_the_cache(cache: Path) -> None:
    (cache / "images" / "begun").mkdir()
    (cache / "own" / "empty").mkdir()
    clean(cache)
    assert "images/begun" not in names(cache)
    assert "own/empty" in names(cache)
