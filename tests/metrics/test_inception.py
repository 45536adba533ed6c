from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import inception_score


def logits(n, classes, seed, scale=2.0):
    return np.random.default_rng(seed).standard_normal((n, classes)) * scale


@pytest.mark.parametrize("classes", [2, 7, 10])
@pytest.mark.parametrize("scale", [100, 1e4])
def test_sure_and_even_predictions_score_the_number_of_classes(classes, scale):
    sure = np.tile(np.eye(classes) * scale, (5, 1))
    found = inception_score(sure, splits=1, seed=0)
    assert found.mean == pytest.approx(classes, rel=1e-6)
    assert found.std == 0


def test_one_prediction_for_all_scores_one():
    found = inception_score(np.tile(logits(1, 10, 0), (50, 1)), splits=5, seed=0)
    assert found.mean == pytest.approx(1, rel=1e-6)
    assert found.mean >= 1


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1.0, 30.0, 1e5])
def test_bounds(scale):
    found = inception_score(logits(200, 6, 0, scale), splits=4, seed=1)
    assert 1 <= found.mean <= 6


@pytest.mark.parametrize(("n", "splits"), [(200, 10), (203, 10), (50, 1)])
@pytest.mark.parametrize("seed", [0, 2020])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_torch_fidelity(n, splits, seed, dtype):
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("torch_fidelity.metric_isc")
    values = logits(n, 30, seed).astype(dtype)
    theirs = reference.isc_features_to_metric(torch.from_numpy(values), splits, True, seed)
    found = inception_score(values, splits=splits, seed=seed)
    assert found.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert found.std == pytest.approx(theirs["inception_score_std"], rel=1e-6, abs=1e-12)
    assert found.splits == splits


def test_one_number_added_to_a_row_changes_nothing():
    values = logits(60, 5, 0)
    shifted = values + np.linspace(-500, 500, 60)[:, None]
    found = inception_score(shifted, splits=3, seed=0)
    assert found.mean == pytest.approx(inception_score(values, splits=3, seed=0).mean)


def test_input_is_left_alone():
    values = logits(20, 5, 0)
    before = values.copy()
    inception_score(values, splits=1, seed=0)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize(
    "bad",
    [
        np.empty((0, 3)),
        np.ones((1, 3)),
        np.ones(9),
        np.ones((9, 0)),
        np.full((9, 3), np.nan),
        np.full((9, 3), np.inf),
    ],
)
def test_bad_logits(bad):
    with pytest.raises(ContractError):
        inception_score(bad, splits=2, seed=0)


def test_bad_splits_and_seed():
    with pytest.raises(ContractError, match="splits"):
        inception_score(logits(9, 3, 0), splits=0, seed=0)
    with pytest.raises(ContractError, match="splits"):
        inception_score(logits(9, 3, 0), splits=1.5, seed=0)
    with pytest.raises(ContractError, match="N >= 10"):
        inception_score(logits(9, 3, 0), splits=10, seed=0)
    with pytest.raises(ContractError, match="seed"):
        inception_score(logits(9, 3, 0), splits=1, seed=-1)
