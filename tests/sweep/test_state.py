"""Claims and notes, in a folder and in a store without folders."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairbench.storage.objects import Folder, Objects, objects_at
from fairbench.sweep.state import State


@pytest.fixture(params=["folder", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Objects]:
    if request.param == "folder":
        yield Folder(tmp_path / "results")
        return
    import fsspec

    yield objects_at("memory://state/results")
    fsspec.filesystem("memory").rm("/", recursive=True)


def test_one_of_many_gets_a_claim(objects: Objects) -> None:
    got: list[bool] = []
    barrier = threading.Barrier(8)

    def claim(number: int) -> None:
        barrier.wait()
        got.append(State(objects).claim("step", f"worker {number}"))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 1


def test_a_claim_is_let_go_and_can_be_had_again(objects: Objects) -> None:
    state = State(objects)
    assert state.claim("step", "a")
    assert state.running() == {"step"}
    assert not state.claim("step", "b")
    with state.alive("step", "a", every=10):
        pass
    assert state.running() == set()
    assert state.claim("step", "b")


def test_the_next_attempt_of_the_same_sweep_need_not_wait(objects: Objects) -> None:
    state = State(objects)
    assert state.claim("step", "a")
    assert state.claim("step", "a")


def test_a_claim_without_a_sign_of_life_is_the_nexts(objects: Objects) -> None:
    state = State(objects, expiry=0.2)
    assert state.claim("step", "dead")
    time.sleep(0.3)
    assert not state.held("step")
    assert state.claim("step", "b")
    state.release("step", "dead")  # the dead one comes back, and takes nothing away
    assert not State(objects).claim("step", "c")


def test_signs_of_life_keep_a_claim(objects: Objects) -> None:
    state = State(objects, expiry=0.5)
    assert state.claim("step", "a")
    with state.alive("step", "a", every=0.1):
        time.sleep(1.0)
        assert state.held("step")
        assert not state.claim("step", "b")


@pytest.mark.parametrize("hours", [-30, 30])
def test_machines_clocks_may_be_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    state = State(Folder(tmp_path))
    assert state.claim("step", "a")
    wrong = time.time() + hours * 3600
    monkeypatch.setattr(time, "time", lambda: wrong)
    assert state.held("step")
    assert not state.claim("step", "b")
    claim = tmp_path / ".sweep" / "claims" / "step.json"
    long_ago = claim.stat().st_mtime - 1000
    os.utime(claim, (long_ago, long_ago))  # by the disk's own clock
    assert state.claim("step", "b")


def test_a_failure_is_kept_in_one_line_until_it_is_forgotten(objects: Objects) -> None:
    state = State(objects)
    assert state.failures() == {}
    state.fail("key", "it didn't work: ünï")
    assert state.failures()["key"].line == "it didn't work: ünï"
    objects.write(".sweep/failed/other.json", b"{nothing")
    assert "damaged" in state.failures()["other"].line
    state.forget("key")
    state.forget("key")
    assert state.failures().keys() == {"other"}
