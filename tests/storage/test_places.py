"""Records at an address: published once and whole, mirrored, ranked and made there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fairbench.app.cli import app
from fairbench.core.errors import ContractError, InputError
from fairbench.core.record import PerImage, Record
from fairbench.datasets.base import get_dataset
from fairbench.runs.config import RunConfig
from fairbench.storage.objects import Folder
from fairbench.storage.places import Place, place_of
from fairbench.storage.records import read_record, write_record


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    yield
    import fsspec

    fsspec.filesystem("memory").rm("/", recursive=True)


ADDRESS = "memory://bucket/results"


def images(label: int = 0) -> PerImage:
    return PerImage(
        tuple(hashlib.sha256(bytes([i])).hexdigest() for i in range(4)),
        np.zeros(4, np.int64),
        np.arange(4),
        None,
        np.arange(4),
        np.ones(4, bool),
        {"judge": {"gender": np.full(4, label)}},
    )


def another_machine(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / name))
    return place_of(ADDRESS)


def test_a_record_is_published_whole_and_mirrored(
    tmp_path: Path, make_record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(ADDRESS)
    path = write_record(place.folder, make_record(), images())
    path.with_suffix(".png").write_bytes(b"picture")
    assert not place.published(path)
    place.publish_new()
    assert place.published(path)
    assert len(place.objects.list()) == 3
    other = another_machine(tmp_path, "other", monkeypatch)
    other.update(pictures=True)
    assert read_record(other.folder / path.relative_to(place.folder)) == read_record(path)
    assert len(list(other.folder.glob("*/*/[!.]*"))) == 3
    place.objects.remove(path.relative_to(place.folder).as_posix())
    other.update()
    assert not list(other.folder.glob("*/*/*.json"))


def test_a_complete_record_stays_and_a_failed_one_gives_way(
    tmp_path: Path, make_record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record()
    failed = dataclasses.replace(record, status="failed", error="no luck")
    one = place_of(ADDRESS)
    one.publish(write_record(one.folder, failed))
    two = another_machine(tmp_path, "two", monkeypatch)
    path = write_record(two.folder, record, images())
    two.publish(path)
    three = another_machine(tmp_path, "three", monkeypatch)
    three.publish(write_record(three.folder, failed))
    later = dataclasses.replace(record, created="2027-01-01T00:00:00+00:00")
    three.publish(write_record(three.folder, later, images()))
    name = path.relative_to(two.folder).as_posix()
    there = json.loads(two.objects.read([name])[name])
    assert there["status"] == "complete"
    assert there["created"] == record.created
    # What lies in the mirror is what lies in the store.
    assert read_record(three.folder / name).created == record.created
    three.replace(write_record(three.folder, later, images()))
    assert json.loads(two.objects.read([name])[name])["created"] == later.created


def test_two_that_publish_at_once_leave_a_record_that_fits_its_sidecar(
    tmp_path: Path, make_record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine's GPU read one image otherwise, and is faster by one step."""
    two = another_machine(tmp_path, "two", monkeypatch)
    theirs = write_record(two.folder, make_record(), images(1))
    one = place_of(str(two.address))
    one = dataclasses.replace(one, folder=tmp_path / "one")
    mine = write_record(one.folder, make_record(), images(0))
    create = type(one.objects).create
    raced: list[str] = []

    def slow(self: Any, name: str, content: bytes) -> bool:
        if not raced:
            raced.append(name)
            two.publish(theirs)
        return create(self, name, content)

    monkeypatch.setattr(type(one.objects), "create", slow)
    one.publish(mine)
    names = list(one.objects.list())
    record = next(name for name in names if name.endswith(".json"))
    sidecar = next(name for name in names if name.endswith(".npz"))
    got = one.objects.read([record, sidecar])
    assert json.loads(got[record])["sidecar"] == hashlib.sha256(got[sidecar]).hexdigest()


def test_what_was_never_published_is_not_removed_by_an_update(
    make_record: Callable[..., Record],
) -> None:
    place = place_of(ADDRESS)
    path = write_record(place.folder, make_record(), images())
    place.update()
    assert path.is_file()
    place.publish_new()
    place.update()
    assert path.is_file()


def test_a_folder_is_its_own_place(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    for where in (tmp_path / "here", (tmp_path / "here").as_uri()):
        place = place_of(where)
        assert place.folder == tmp_path / "here"
        assert not place.mirrored
    path = write_record(place.folder, make_record())
    place.update()
    place.publish(path)
    assert place.published(path)
    assert isinstance(place.objects, Folder)


def test_an_update_reads_what_changed_alone(
    tmp_path: Path, make_record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(ADDRESS)
    for seed in range(3):
        place.publish(write_record(place.folder, make_record(seed=seed), images()))
    other = another_machine(tmp_path, "other", monkeypatch)
    other.update()
    read: list[str] = []
    plain = type(other.objects).read

    def counted(self: Any, names: Sequence[str]) -> dict[str, bytes]:
        read.extend(names)
        return plain(self, names)

    monkeypatch.setattr(type(other.objects), "read", counted)
    other.update()
    assert read == []
    place.publish(write_record(place.folder, make_record(seed=3), images()))
    read.clear()
    other.update()
    assert len(read) == 2


def test_operations_of_a_record_are_those_that_the_simulator_counts(
    make_record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(ADDRESS)
    path = write_record(place.folder, make_record(), images())
    path.with_suffix(".png").write_bytes(b"picture")
    counted: list[str] = []

    def count(name: str) -> None:
        plain = getattr(type(place.objects), name)

        def method(self: Any, what: Any, *more: Any) -> Any:
            counted.extend([name] * (len(what) if name == "read" else 1))
            return plain(self, what, *more)

        monkeypatch.setattr(type(place.objects), name, method)

    for name in ("read", "entry", "write", "create", "remove"):
        count(name)
    place.fetch(path.relative_to(place.folder).as_posix())
    place.publish(path)
    simulator = Path(__file__).parents[1] / "simulation" / "sweep.py"
    told = re.search(r"^RECORD_OPERATIONS = (\d+)$", simulator.read_text(), re.MULTILINE)
    assert told is not None
    assert len(counted) == int(told[1])


def test_the_python_api_takes_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fairbench

    config = fairbench.RunConfig(
        "vanilla", dataset="analytic", num_images=100, device="cpu", results=ADDRESS
    )
    made = fairbench.run(config)
    assert not made.found
    assert not (tmp_path / "memory:").exists()
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "another machine"))
    again = fairbench.run(config)
    assert again.found
    assert again.record == made.record
    split = get_dataset("analytic", None).split("evaluation")
    assert split is not None
    images_ = np.concatenate([*split.take(np.arange(100)).batches(100)])
    np.savez(tmp_path / "images.npz", images=images_)
    told = fairbench.evaluate(
        tmp_path / "images.npz", name="mine", dataset="analytic", device="cpu", results=ADDRESS
    )
    there = place_of(ADDRESS).objects.list()
    for outcome in (made, told):
        assert sum(outcome.record.key in name for name in there if "images" not in name) >= 1
    rows = {row.method for row in fairbench.leaderboard(ADDRESS)}
    assert rows == {"vanilla", "mine"}


def test_a_run_that_fails_at_an_address_leaves_its_record_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import fairbench
    from fairbench.runs import running

    def fail(*given: object) -> None:
        raise fairbench.InputError("no luck")

    monkeypatch.setattr(running, "_compute", fail)
    config = fairbench.RunConfig(
        "vanilla", dataset="analytic", num_images=100, device="cpu", results=ADDRESS
    )
    with pytest.raises(fairbench.InputError, match="no luck"):
        fairbench.run(config)
    (name,) = place_of(ADDRESS).objects.list()
    assert json.loads(place_of(ADDRESS).objects.read([name])[name])["status"] == "failed"


def test_an_address_that_was_made_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'"s3://bucket/results"'):
        RunConfig("vanilla", results=Path("s3://bucket/results"))
    for wrong in ("", None, 3):
        with pytest.raises(InputError, match="results must be a folder or an address"):
            RunConfig("vanilla", results=wrong)  # type: ignore[arg-type]
    assert RunConfig("vanilla", results="some/where").folder == Path("some/where")
    with pytest.raises(ContractError, match="expected a folder"):
        _ = RunConfig("vanilla", results=ADDRESS).folder


@pytest.fixture
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_runs_and_boards_of_a_bucket(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--dataset", "analytic", "--num-images", "100", "--device", "cpu", "--json"]
    run = ["run", "--method", "vanilla", *words, "--results", bucket]
    first = CliRunner().invoke(app, run)
    assert first.exit_code == 0, first.stderr
    assert not (tmp_path / "results").exists()
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "another machine"))
    again = CliRunner().invoke(app, run)
    assert json.loads(again.stdout) == json.loads(first.stdout)  # found there, not made again
    board = CliRunner().invoke(app, ["leaderboard", "--results", bucket, "--format", "csv"])
    assert board.exit_code == 0, board.stderr
    assert "vanilla" in board.stdout
    where = place_of(bucket)
    shutil.copytree(where.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    local = CliRunner().invoke(
        app, ["leaderboard", "--results", str(tmp_path / "copy"), "--format", "csv"]
    )
    assert board.stdout == local.stdout
    site = tmp_path / "site"
    words = ["--results", bucket, "--format", "html", "--output", str(site)]
    done = CliRunner().invoke(app, ["leaderboard", *words])
    assert done.exit_code == 0, done.stderr
    assert list(site.rglob("*.png"))


@pytest.mark.slow
def test_a_sweep_of_a_bucket_is_done_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sweep", "--methods", "vanilla", "--tasks", "tone,tone_hue", "--dataset", "analytic"]
    words += ["--num-images", "100", "--device", "cpu", "--results", bucket]
    done = CliRunner().invoke(app, [*words, "--jobs", "2"])
    assert done.exit_code == 0, done.stderr
    assert "swept    2 of 2 runs have a record" in done.stdout
    assert not (tmp_path / "results").exists()
    left = place_of(bucket).objects.list()
    assert len(left) == 6  # two records, what lies beside them, and no claim
    assert not any(name.startswith(".sweep") for name in left)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "another machine"))
    status = CliRunner().invoke(app, [*words[:1], "status", *words[1:], "--json"])
    assert json.loads(status.stdout)["done"] == 2
    board = CliRunner().invoke(app, ["leaderboard", "--results", bucket, "--format", "csv"])
    assert board.stdout.count("vanilla") == 2


def test_an_empty_bucket_is_said_to_be_empty(bucket: str) -> None:
    done = CliRunner().invoke(app, ["leaderboard", "--results", bucket])
    assert done.exit_code == 2
    assert "holds no complete record" in done.stderr


def test_commands_that_read_folders_alone_say_so() -> None:
    done = CliRunner().invoke(app, ["rescore", "s3://bucket/results"])
    assert done.exit_code == 2
    assert "expected a path, seen an address" in str(done.stderr) + str(done.exception)
