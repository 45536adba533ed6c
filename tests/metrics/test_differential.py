from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import differential_fairness, representation_epsilon


def uniform(num_groups):
    return np.full(num_groups, 1 / num_groups)


class TestConditional:
    @pytest.mark.parametrize(("alpha", "expected"), [(1, 3.931826), (0.5, 4.615121)])
    def test_card_values(self, alpha, expected):
        found = differential_fairness([[50, 0], [0, 50]], alpha=alpha)
        assert found.epsilon == pytest.approx(expected, abs=1e-6)
        assert found.ratio == pytest.approx(np.exp(-expected), abs=1e-6)
        assert found.alpha == alpha
        assert found.low <= found.epsilon <= found.high

    def test_empty_cell_without_smoothing_is_infinite(self):
        found = differential_fairness([[50, 0], [0, 50]], alpha=0)
        assert found.epsilon == found.low == found.high == np.inf
        assert found.ratio == 0
        assert found.reason is None

    def test_pairs_in_order(self):
        found = differential_fairness([[40, 60], [50, 50], [80, 20]], alpha=0, top=10)
        assert len(found.top) == 6
        assert found.top[0] == found.worst
        assert (found.worst.first, found.worst.second, found.worst.outcome) == (0, 2, 1)
        assert found.epsilon == pytest.approx(np.log(3))
        sizes = [pair.log_ratio for pair in found.top]
        assert sizes == sorted(sizes, reverse=True)
        assert len(differential_fairness([[4, 6], [5, 5]], top=1).top) == 1

    def test_equal_groups_are_fair(self):
        found = differential_fairness([[30, 70], [30, 70]])
        assert found.epsilon == pytest.approx(0)
        assert found.low == 0
        assert found.ratio == pytest.approx(1)

    def test_outcome_that_no_group_gets_is_fair(self):
        assert differential_fairness([[5, 5, 0], [5, 5, 0]], alpha=0).epsilon == 0

    def test_a_marginal_is_never_less_fair_than_the_joint(self):
        rng = np.random.default_rng(0)
        for _ in range(100):
            joint = rng.integers(1, 50, size=(2, 3, 2))
            crossed = differential_fairness(joint.reshape(6, 2), alpha=0).epsilon
            for axis in (0, 1):
                merged = differential_fairness(joint.sum(axis=axis), alpha=0).epsilon
                assert merged <= crossed + 1e-9

    def test_a_group_without_images_is_not_called_fair(self):
        # Smoothing alone would give it even odds and improve epsilon from ln 101 to ln 51.
        before = differential_fairness([[50, 0], [0, 50]])
        after = differential_fairness([[50, 0], [0, 0]])
        assert after.reason == "empty_group"
        assert after.epsilon == np.inf > before.epsilon
        assert after.worst.second == 1

    @pytest.mark.parametrize(
        ("counts", "options"),
        [
            ([[1, 2]], {}),
            ([[1], [2]], {}),
            ([1, 2], {}),
            ([[0, 0], [0, 0]], {}),
            ([[1.5, 2], [1, 2]], {}),
            ([[1, 2], [3, 4]], {"alpha": -1}),
            ([[1, 2], [3, 4]], {"alpha": np.inf}),
            ([[1, 2], [3, 4]], {"top": 0}),
            ([[1, 2], [3, 4]], {"level": 1}),
        ],
    )
    def test_bad_input(self, counts, options):
        with pytest.raises(ContractError):
            differential_fairness(counts, **options)


class TestRepresentation:
    def test_card_value(self):
        found = representation_epsilon([40, 30, 20, 10], uniform(4), alpha=0)
        assert found.epsilon == pytest.approx(np.log(4))
        assert (found.worst.first, found.worst.second, found.worst.outcome) == (0, 3, None)

    def test_is_relative_to_the_target(self):
        assert representation_epsilon([40, 40, 20], [0.4, 0.4, 0.2], alpha=0).epsilon < 1e-12

    def test_smoothing(self):
        found = representation_epsilon([50, 0], uniform(2), alpha=0.5)
        assert found.epsilon == pytest.approx(np.log(101))
        assert representation_epsilon([50, 0], uniform(2), alpha=0).epsilon == np.inf

    def test_unwanted_groups_have_no_ratio(self):
        with pytest.raises(ContractError, match="target 0"):
            representation_epsilon([5, 5], [1.0, 0.0])


class TestCoverage:
    def covered(self, table, n, trials):
        table = np.array(table)
        truth = np.abs(np.log(table[:, None]) - np.log(table[None])).max()
        rng, hits = np.random.default_rng(0), 0.0
        for trial in range(trials):
            counts = np.stack([rng.multinomial(n, row) for row in table])
            found = differential_fairness(counts, seed=trial)
            hits += found.low - 1e-9 <= truth <= found.high + 1e-9
        print(table.tolist(), n, hits / trials)
        return hits / trials

    def test_ties_for_the_largest(self):
        # A percentile bootstrap covers 73 % here: three of five groups tie.
        table = [[0.8, 0.2], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.8, 0.2]]
        assert self.covered(table, 400, trials=60) >= 0.88

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("table", "n"),
        [
            ([[0.5, 0.5]] * 5, 400),
            ([[0.8, 0.2], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.8, 0.2]], 400),
            ([[0.55, 0.45], [0.5, 0.5]], 400),
            ([[0.25] * 4] * 5, 400),
            ([[0.98, 0.02], [0.5, 0.5]], 200),
            ([[0.7, 0.1, 0.1, 0.1], [0.1, 0.3, 0.3, 0.3]], 500),
        ],
    )
    def test_at_length(self, table, n):
        assert self.covered(table, n, trials=400) >= 0.9

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("probs", "n"),
        [
            ([0.125] * 8, 1000),
            ([0.4, 0.3, 0.2, 0.1], 1000),
            ([0.5, 0.5], 100),
            ([0.9, 0.05, 0.03, 0.02], 300),
        ],
    )
    def test_representation_at_length(self, probs, n):
        rng, hits, truth = np.random.default_rng(0), 0.0, np.log(max(probs) / min(probs))
        for trial in range(400):
            counts = rng.multinomial(n, probs)
            found = representation_epsilon(counts, uniform(len(probs)), seed=trial)
            hits += found.low - 1e-9 <= truth <= found.high + 1e-9
        print(probs, n, hits / 400)
        assert hits / 400 >= 0.9
