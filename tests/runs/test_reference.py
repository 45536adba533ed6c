"""References are balanced because they are made so, and natural where shares are known."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairbench.core.errors import InputError
from fairbench.core.task import Task
from fairbench.datasets.base import ArrayImages, Dataset, Shares, get_dataset
from fairbench.datasets.cartoonfaces import DATASET, CartoonFaces
from fairbench.instruments.measuring import load_instruments
from fairbench.runs.config import RunConfig
from fairbench.runs.evaluation import Question
from fairbench.runs.generation import training_data
from fairbench.runs.plan import find_backbone, plan_run
from fairbench.runs.reference import balanced_rows, make_reference, real_images
from fairbench.runs.running import foreign_training_set


def task(name: str = "gender", *, conditional: bool = True) -> Task:
    return DATASET.task(name, conditional=conditional)


def quiet(what: str, done: int, total: int) -> None:
    pass


def reference(dataset: Dataset, question: Task, backbone: Any, cache: Path) -> Any:
    return make_reference(
        dataset, question, backbone, load_instruments("cpu", DATASET.instruments()), cache, quiet
    )


@pytest.mark.parametrize(
    ("name", "conditional"), [("gender", True), ("gender", False), ("gender_by_role", True)]
)
def test_the_shipped_reference_is_balanced_and_whole(name: str, conditional: bool) -> None:
    question = task(name, conditional=conditional)
    part, answers = real_images(DATASET, question)
    rows, why = balanced_rows(DATASET, question, part, answers)
    assert why == ""
    # Each cell has as many images as any other, so that the draw takes all, in their order.
    np.testing.assert_array_equal(rows, np.arange(len(part)))


def thinned(keep: dict[int, int]) -> Dataset:
    """CartoonFaces whose evaluation split has only so many women of a race."""

    class Thinned(CartoonFaces):
        def split(self, role: Any) -> ArrayImages:
            split = super().split(role)
            if role != "evaluation":
                return split
            chosen = np.ones(len(split), dtype=bool)
            for race, count in keep.items():
                cell = (split.labels["race"] == race) & (split.labels["gender"] == 0)
                cell &= split.labels["role"] == 0
                chosen[np.flatnonzero(cell)[count:]] = False
            return split.take(chosen)

    return Thinned()


def test_a_reference_is_balanced_by_a_draw_from_the_declared_cells() -> None:
    dataset = thinned({0: 20, 3: 50})
    part, answers = real_images(dataset, task())
    rows, why = balanced_rows(dataset, task(), part, answers)
    assert rows is not None
    assert why == ""
    drawn = part.take(rows).labels
    cells = np.bincount(drawn["gender"].astype(int) * 4 + drawn["race"], minlength=8)
    assert cells.tolist() == [20] * 8
    again, _ = balanced_rows(dataset, task(), part, answers)
    np.testing.assert_array_equal(rows, again)


def test_without_an_image_of_a_declared_group_nothing_is_called_balanced() -> None:
    dataset = thinned({1: 0})
    part, answers = real_images(dataset, task())
    assert balanced_rows(dataset, task(), part, answers) == (
        None,
        "no real image of female/black, so no reference is balanced",
    )


def test_natural_shares_are_those_of_the_backbones_that_were_trained_with_them(
    tmp_path: Path,
) -> None:
    shipped = DATASET.backbone("cartoonfaces-sd")
    shutil.copytree(shipped.folder, tmp_path / "mine")
    foreign = find_backbone(DATASET, str(tmp_path / "mine"))
    assert foreign.name == "mine"
    cache = tmp_path / "cache"
    known = reference(DATASET, task(), shipped, cache)
    assert known.natural.shape == (1, 8)
    np.testing.assert_allclose(known.natural[0, :4].sum(), 0.2)
    assert reference(DATASET, task(), foreign, cache).natural is None
    assert reference(DATASET, task(), None, cache).natural is None
    assert DATASET.trained_on(shipped) is not None
    assert DATASET.trained_on(foreign) is None


def test_shares_given_a_stratum() -> None:
    levels = {"a": ("x", "y"), "b": ("u", "v", "w")}
    shares = Shares(("a", "b"), np.array([[0.1, 0.2, 0.1], [0.3, 0.1, 0.2]]))
    np.testing.assert_allclose(shares.given({}, ("b",), levels), [0.4, 0.3, 0.3])
    np.testing.assert_allclose(shares.given({"a": "x"}, ("b",), levels), [0.25, 0.5, 0.25])
    np.testing.assert_allclose(
        shares.given({}, ("b", "a"), levels), [0.1, 0.3, 0.2, 0.1, 0.1, 0.2]
    )


def test_a_data_set_without_what_a_card_declares_is_refused() -> None:
    from fairbench.methods import get_method

    class Bare(CartoonFaces):
        def split(self, role: Any) -> Any:
            return None

        def training_set(self, composition: Any) -> Any:
            return None

    with pytest.raises(InputError, match="learns from a reference set"):
        training_data(Bare(), get_method("rejection").card)
    with pytest.raises(InputError, match="has no training set"):
        training_data(Bare(), get_method("invdiff").card)
    with pytest.raises(InputError, match="no evaluation images"):
        real_images(Bare(), task())


def test_a_question_needs_no_backbone() -> None:
    assert Question(get_dataset(None), task()).backbone is None
    assert dataclasses.is_dataclass(Question)


def test_training_on_images_that_a_backbone_may_not_know_is_said(tmp_path: Path) -> None:
    shipped = DATASET.backbone("cartoonfaces-sd")
    shutil.copytree(shipped.folder, tmp_path / "mine")

    def said(method: str, backbone: str) -> str | None:
        config = RunConfig(method, backbone=backbone, results=tmp_path / "results")
        return foreign_training_set(plan_run(config))

    assert said("tiw", "cartoonfaces-sd") is None
    assert said("vanilla", str(tmp_path / "mine")) is None
    told = said("tiw", str(tmp_path / "mine"))
    assert told is not None
    assert "what mine was trained on isn't known" in told
