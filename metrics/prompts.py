"""From the discrepancies of prompts to one number, four ways.

Pooling prompts hides a model that makes one role all male and another all female, so the mean
over prompts is ranked and the pooled value is only shown beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import check_prompts, normal_quantile
from fairbench.metrics.fairness import (
    DiscrepancyInterval,
    discrepancy_interval,
    mean_discrepancy_interval,
    unbiased_squared_discrepancy,
    whole_size,
)
from fairbench.metrics.floors import mean_noise_floor, noise_floor_for, worst_prompt_floor
from fairbench.metrics.information import MutualInformation, mutual_information
from fairbench.metrics.significance import goodness_of_fit, holm

__all__ = ["PromptDiscrepancies", "prompt_discrepancies", "signed_root"]


@dataclass(frozen=True)
class PromptDiscrepancies:
    """Fairness discrepancies of P prompts.

    Attributes:
        per_prompt: Value of each prompt, P of them.
        per_prompt_mean: Their mean with its interval; the ranked number; lower is better.
        mean_floor: What that mean stays below in 95 % of samples of a fair generator.
        worst_prompt: Index of the largest value.
        per_prompt_worst: The largest value; the interval holds for the largest true one.
        worst_floor: What the largest value stays below in 95 % of samples of a fair generator.
        pooled: All images against the mean target, weighted by images.
        pooled_floor: Noise floor of `pooled`.
        prompt_dependence: Mutual information of prompt and group.
        unbiased_mean: Mean of the unbiased squares with its sign, sign(U) sqrt(|U|).
        p_values: Test of each prompt's shares being its target's, Holm-adjusted.
    """

    per_prompt: tuple[float, ...]
    per_prompt_mean: DiscrepancyInterval
    mean_floor: float
    worst_prompt: int
    per_prompt_worst: DiscrepancyInterval
    worst_floor: float
    pooled: DiscrepancyInterval
    pooled_floor: float
    prompt_dependence: MutualInformation
    unbiased_mean: float
    p_values: tuple[float, ...]


def prompt_discrepancies(
    counts: ArrayLike,
    targets: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> PromptDiscrepancies:
    """Mean, worst and pooled discrepancy of prompts, and how much the prompt decides.

    Args:
        counts: Images of each declared group by prompt, (P, K) whole numbers, every prompt with
            2 images or more.
        targets: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.
        design_effect: Variance of the counts over that of independent images, above 0, from
            `fairbench.metrics.clusters` for images that batches couple; it enters all intervals
            and floors. The tests are those of independent images.
        level: Confidence level in (0, 1).
        seed: Seed of all resamples.

    Returns:
        All of them. With equally many images a prompt the mean is never below the pooled value.

    Raises:
        ContractError: If a prompt has fewer than 2 images or the shapes disagree.

    Source: ``docs/metrics.md``, "Prompts". The worst prompt's interval spans the largest lower and
        the largest upper end over prompts at level 1 - (1 - level) / P, the step of Holm's
        procedure that the most extreme prompt has to pass.
    """
    normal_quantile(level)  # its check
    wanted, numbers = check_prompts(counts, targets)
    sizes = numbers.sum(axis=1)
    if sizes.min() < 2:
        raise ContractError(f"prompt {int(sizes.argmin())} has a single image; 2 are needed")
    strict = 1 - (1 - level) / len(numbers)
    each = [
        discrepancy_interval(row, aim, design_effect=design_effect, level=strict, seed=seed)
        for row, aim in zip(numbers, wanted, strict=True)
    ]
    worst = max(range(len(each)), key=lambda prompt: each[prompt].value)
    squares = [
        unbiased_squared_discrepancy(row, aim) for row, aim in zip(numbers, wanted, strict=True)
    ]
    tests = [
        goodness_of_fit(row, aim, seed=seed) for row, aim in zip(numbers, wanted, strict=True)
    ]
    pooled_target = sizes @ wanted / sizes.sum()
    pooled = discrepancy_interval(
        numbers.sum(axis=0), pooled_target, design_effect=design_effect, level=level, seed=seed
    )
    worth = [whole_size(row / design_effect) for row in numbers]
    return PromptDiscrepancies(
        per_prompt=tuple(found.value for found in each),
        per_prompt_mean=mean_discrepancy_interval(
            numbers, wanted, design_effect=design_effect, level=level, seed=seed
        ),
        mean_floor=mean_noise_floor(worth, wanted),
        worst_prompt=worst,
        per_prompt_worst=DiscrepancyInterval(
            each[worst].value,
            max(found.low for found in each),
            max(found.high for found in each),
            each[worst].method,
        ),
        worst_floor=worst_prompt_floor(worth, wanted),
        pooled=pooled,
        pooled_floor=noise_floor_for(pooled_target, whole_size(sizes / design_effect)),
        prompt_dependence=mutual_information(numbers, seed=seed),
        unbiased_mean=signed_root(float(np.mean(squares))),
        p_values=tuple(holm([test.p_value for test in tests]).tolist()),
    )


def signed_root(square: float) -> float:
    """Square root of the size with the sign kept, to show an unbiased square that is negative.

    Args:
        square: Any finite number.

    Returns:
        sign(U) sqrt(|U|).
    """
    return float(np.sign(square) * np.sqrt(abs(square)))
