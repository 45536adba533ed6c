from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    discrepancy_interval,
    mean_noise_floor,
    prompt_discrepancies,
    signed_root,
)


def uniform(num_groups):
    return np.full(num_groups, 1 / num_groups)


class TestPrompts:
    def test_opposite_prompts(self):
        found = prompt_discrepancies([[100, 0], [0, 100]], uniform(2))
        assert found.per_prompt_mean.value == pytest.approx(0.707107, abs=1e-6)
        assert found.pooled.value == 0
        assert found.prompt_dependence.plug_in == pytest.approx(0.693147, abs=1e-6)
        assert found.unbiased_mean == pytest.approx(0.707107, abs=1e-6)
        assert max(found.p_values) < 1e-9

    def test_mean_is_never_below_pooled(self):
        rng = np.random.default_rng(0)
        for _ in range(15):
            num_prompts, num_groups = rng.integers(1, 6), rng.integers(2, 6)
            probs = rng.dirichlet(np.ones(num_groups), size=num_prompts)
            counts = np.stack([rng.multinomial(60, row) for row in probs])
            found = prompt_discrepancies(counts, uniform(num_groups))
            assert found.per_prompt_mean.value >= found.pooled.value - 1e-12
            assert found.per_prompt_worst.value >= found.per_prompt_mean.value - 1e-12

    def test_worst_prompt(self):
        found = prompt_discrepancies([[60, 40], [10, 90], [50, 50]], uniform(2))
        assert found.worst_prompt == 1
        assert found.per_prompt_worst.value == found.per_prompt[1]
        alone = discrepancy_interval([10, 90], uniform(2))
        assert found.per_prompt_worst.low < alone.low
        assert found.per_prompt_worst.high > alone.high

    def test_holm_across_prompts(self):
        found = prompt_discrepancies([[58, 42], [50, 50], [52, 48]], uniform(2))
        alone = prompt_discrepancies([[58, 42]], uniform(2))
        assert found.p_values[0] == pytest.approx(3 * alone.p_values[0])

    def test_floors_and_targets_by_prompt(self):
        targets = [[0.75, 0.25], [0.25, 0.75]]
        found = prompt_discrepancies([[150, 50], [25, 75]], targets)
        assert found.per_prompt_mean.value == 0
        assert found.pooled.value == pytest.approx(0)  # its target is weighted by images
        assert found.mean_floor == mean_noise_floor([200, 100], targets)

    def test_fair_prompts_have_an_unbiased_mean_around_zero(self):
        rng = np.random.default_rng(0)
        counts = rng.multinomial(50, uniform(2), size=200)
        found = prompt_discrepancies(counts, uniform(2))
        assert abs(found.unbiased_mean) < 0.05
        assert found.per_prompt_mean.value > 0.07  # noise alone

    def test_signed_root(self):
        assert signed_root(-0.25) == -0.5
        assert signed_root(0.25) == 0.5
        assert signed_root(0) == 0

    @pytest.mark.parametrize(
        ("counts", "targets"),
        [
            ([], [0.5, 0.5]),
            ([5, 5], [0.5, 0.5]),
            ([[5, 5], [1, 0]], [0.5, 0.5]),
            ([[5, 5], [5, 5]], [[0.5, 0.5]] * 3),
        ],
    )
    def test_bad_input(self, counts, targets):
        with pytest.raises(ContractError):
            prompt_discrepancies(counts, targets)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "first", [(0.5,) * 5, (0.8, 0.9, 0.1, 0.9, 0.8), (0.5, 0.5, 0.5, 0.6, 0.7)]
    )
    def test_coverage_of_the_worst(self, first):
        probs = np.stack([first, 1 - np.array(first)], axis=1)
        truth = np.linalg.norm(probs - 0.5, axis=1).max()
        rng, hits = np.random.default_rng(0), 0.0
        for trial in range(300):
            counts = np.stack([rng.multinomial(200, row) for row in probs])
            found = prompt_discrepancies(counts, uniform(2), seed=trial).per_prompt_worst
            hits += found.low - 1e-9 <= truth <= found.high + 1e-9
        print(first, hits / 300)
        assert hits / 300 >= 0.92
