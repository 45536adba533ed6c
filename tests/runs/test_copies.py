"""Equal images are counted, said, and scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairbench.datasets.base import ArrayImages
from fairbench.runs.copies import count_copies
from fairbench.storage.readings import ImageList


class Splits:
    """A data set of which only splits are asked."""

    def __init__(self, **splits: ArrayImages) -> None:
        self.splits = splits

    def split(self, role: str) -> ArrayImages | None:
        return self.splits.get(role)


def pictures(n: int, side: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_copies_within_and_of_splits_are_counted() -> None:
    made, real = pictures(10), pictures(5, seed=1)
    made[4:7] = made[3]  # three copies of one image
    made[0] = real[2]
    dataset: Any = Splits(evaluation=ArrayImages(real, {}), pool=ArrayImages(made[8:9], {}))
    assert count_copies(ImageList.of(made), dataset) == {
        "images": 10,
        "distinct": 7,
        "evaluation": 1,
        "pool": 1,
    }


def test_equal_bytes_of_another_shape_are_another_image() -> None:
    wide = np.zeros((1, 2, 8, 3), np.uint8)
    dataset: Any = Splits(evaluation=ArrayImages(np.zeros((1, 4, 4, 3), np.uint8), {}))
    assert count_copies(ImageList.of(wide), dataset)["evaluation"] == 0


def test_images_without_a_split_to_compare_with_say_nothing_of_it() -> None:
    dataset: Any = Splits()
    assert count_copies(ImageList.of(pictures(3)), dataset) == {"images": 3, "distinct": 3}


@pytest.mark.slow
def test_two_pictures_many_times_and_the_reference_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairbench import evaluate
    from fairbench.core.progress import Reporter
    from fairbench.datasets.cartoonfaces import load_split

    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    split = load_split("method_reference").images
    np.savez(tmp_path / "two.npz", np.concatenate([split[:1], split[-1:]]).repeat(60, axis=0))
    np.savez(tmp_path / "reference.npz", load_split("evaluation").images[:120])
    told: list[str] = []
    reporter = Reporter(warn=told.append)
    found = {
        name: evaluate(
            tmp_path / f"{name}.npz", name=name, results=tmp_path / "results", reporter=reporter
        ).record
        for name in ("two", "reference")
    }
    two, reference = found["two"], found["reference"]
    assert two.facts["copies"]["distinct"] == 2
    assert two.score("duplicates").value == pytest.approx(118 / 120)
    assert two.facts["copies"]["method_reference"] == 120
    assert reference.score("duplicates").value == 0
    assert reference.score("leaked").value == 1
    assert any("the effective n is 2" in line for line in told)
    assert any("120 of 120 images are real images" in line for line in told)
    stored = json.loads(next((tmp_path / "results").glob("*/two/*.json")).read_text())
    assert {"duplicates", "leaked"} <= {score["name"] for score in stored["scores"]}
