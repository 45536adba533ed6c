"""Stores of small files: a folder, memory, and S3 as moto serves it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairbench.core.errors import InputError
from fairbench.storage.objects import Folder, Objects, is_address, objects_at


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Objects]:
    if request.param == "folder":
        yield objects_at(str(tmp_path / "here"))
    elif request.param == "file":
        yield objects_at((tmp_path / "with space").as_uri())
    elif request.param == "s3":
        yield objects_at(f"{request.getfixturevalue('s3')}/{tmp_path.name}")
    else:
        import fsspec

        yield objects_at("memory://here/results")
        fsspec.filesystem("memory").rm("/", recursive=True)


def test_files_are_written_listed_read_and_removed(objects: Objects) -> None:
    assert objects.list() == {}
    assert objects.entry("a/b.json") is None
    objects.write("a/b.json", b"one")
    objects.write("a/c/d.json", b"two")
    objects.write("e.json", b"")
    assert objects.list().keys() == {"a/b.json", "a/c/d.json", "e.json"}
    assert objects.list("a").keys() == {"a/b.json", "a/c/d.json"}
    assert objects.list("nothing") == {}
    assert objects.read(["a/b.json", "none", "a/c/d.json"]) == {
        "a/b.json": b"one",
        "a/c/d.json": b"two",
    }
    objects.remove("a/b.json")
    objects.remove("a/b.json")
    assert objects.list("a").keys() == {"a/c/d.json"}


def test_what_is_there_is_not_created_again(objects: Objects) -> None:
    assert objects.create("a/b.json", b"first")
    assert not objects.create("a/b.json", b"second")
    assert objects.read(["a/b.json"]) == {"a/b.json": b"first"}


def test_a_change_shows_in_the_tag_and_the_clock_is_the_stores(objects: Objects) -> None:
    objects.write("a.json", b"first")
    before = objects.entry("a.json")
    time.sleep(1.1)  # S3 tells seconds
    objects.write("a.json", b"other")
    after, clock = objects.entry("a.json"), objects.clock()
    assert before is not None
    assert after is not None
    assert before.tag != after.tag
    assert before.modified < after.modified <= clock < after.modified + 60
    assert objects.list().keys() == {"a.json"}  # the clock leaves nothing


def test_a_folder_lists_no_parts(tmp_path: Path) -> None:
    (tmp_path / ".a.json.0123abcd.part").write_bytes(b"half")
    assert Folder(tmp_path).list() == {}


def test_addresses_are_told_from_paths() -> None:
    for text in (
        "s3://bucket/results",
        "gs://b",
        "memory://x",
        "file:///data/x",
        "simplecache::s3://b",
    ):
        assert is_address(text)
    for text in ("..://x", "results", "/data/results", r"C:\results", "./s3:/x", "C://results"):
        assert not is_address(text)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("nothing://x", "nothing"),
        ("file://host/x", "three slashes"),
        ("s3://no-such-bucket-here/x", "can't be reached"),
    ],
)
def test_what_cant_be_reached_is_one_line(s3: str, address: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        objects_at(address).write("a.json", b"")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("file://", "names no folder"),
        ("s3://", "names no place"),
        ("memory:///", "names no place"),
        ("ftp://no-such-host.invalid/x", "can't be reached"),
    ],
)
def test_an_address_without_a_place_is_refused_at_once(address: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        objects_at(address)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*args: object, **kept: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(InputError, match=r"pip install 'fairbench-diffusion\[s3\]'"):
        objects_at("s3://bucket/x")
    with pytest.raises(InputError, match="pip install s3fs"):
        objects_at("other://bucket/x")


def test_several_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*args: object, **kept: object) -> None:
        raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(InputError, match="pip install requests aiohttp"):
        objects_at("http://host/x")
