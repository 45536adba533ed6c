"""A wrong bit, or another file in its place, is noticed; what was lost is made again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fairbench.storage.cache import array_headers, load_arrays, save_arrays
from fairbench.storage.networks import load_state, load_tensors, save_state, save_tensors

TENSORS = {
    "weight": torch.arange(5000, dtype=torch.float32).reshape(50, 100),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "none": torch.empty(0),
    "number": torch.tensor(3),
}


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert load_tensors(path) is None
    save_tensors(path, TENSORS, {"loss": 0.1, "name": "é"})
    stored = load_tensors(path)
    assert stored is not None
    tensors, facts = stored
    assert facts == {"loss": 0.1, "name": "é"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert tensors["half"].dtype == torch.bfloat16


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert load_state(path) is None
    save_state(path, {"step": 3, "best": None, "parameters": [TENSORS["weight"]]})
    state = load_state(path)
    assert state is not None
    assert (state["step"], state["best"]) == (3, None)
    assert torch.equal(state["parameters"][0], TENSORS["weight"])


@pytest.mark.parametrize("place", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_one_wrong_bit_is_noticed_and_the_file_removed(
    tmp_path: Path, place: float, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    loads: dict[str, Callable[[Path], object]] = {
        ".safetensors": load_tensors,
        ".pt": load_state,
        ".npz": load_arrays,
    }
    if suffix == ".npz":
        save_arrays(path, {"weight": TENSORS["weight"].numpy()})
    elif suffix == ".pt":
        save_state(path, {"weight": TENSORS["weight"]})
    else:
        save_tensors(path, {"weight": TENSORS["weight"]}, {})
    assert loads[suffix](path) is not None
    flip(path, place)
    assert loads[suffix](path) is None
    assert not path.exists()


def test_a_state_that_is_cut_off_is_no_state(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_state(path, {"weight": TENSORS["weight"]})
    path.write_bytes(path.read_bytes()[:-1])
    assert load_state(path) is None
    torch.save({"weight": TENSORS["weight"]}, path)  # torch's own has no checksum
    assert load_state(path) is None


def test_arrays_in_the_place_of_others_are_not_taken_for_them(tmp_path: Path) -> None:
    one, other = tmp_path / "heads" / "1.npz", tmp_path / "heads" / "2.npz"
    save_arrays(one, {"weight": np.ones(3)})
    save_arrays(other, {"weight": np.zeros(3)})
    other.write_bytes(one.read_bytes())
    assert array_headers(one) is not None
    assert array_headers(other) is None
    assert not other.exists()
    np.savez(other, weight=np.zeros(3))
    assert load_arrays(other) is None
    moved = tmp_path / "elsewhere" / "heads" / "1.npz"
    moved.parent.mkdir(parents=True)
    moved.write_bytes(one.read_bytes())
    assert load_arrays(moved) is not None  # the whole cache may lie anywhere


@pytest.mark.skipif(os.name == "nt", reason="pipes and links of POSIX")
@pytest.mark.parametrize("load", [load_tensors, load_state, load_arrays, array_headers])
@pytest.mark.parametrize("what", ["folder", "pipe", "dangling", "link to a folder"])
def test_what_is_no_file_is_removed_and_never_waited_for(tmp_path, load, what):
    path, other = tmp_path / "a", tmp_path / "other"
    if what == "folder":
        path.mkdir()
        (path / "x").write_bytes(b"x")
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(other)
        if what != "dangling":
            other.mkdir()
            (other / "x").write_bytes(b"kept")
    assert load(path) is None
    assert not path.is_symlink()
    assert not path.exists()
    if what == "link to a folder":
        assert (other / "x").read_bytes() == b"kept"
