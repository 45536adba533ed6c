"""The two plainest kinds of scores, which every stage makes: a share, and a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Better, Score
from fairbench.metrics import (
    GroupEffects,
    KernelDistance,
    Memorisation,
    clustered_share_intervals,
    wilson_interval,
)
from fairbench.metrics.jackknife import degrees_of_freedom, skewed_ends, student
from fairbench.scores.parts.crossings import (
    GIVEN_BATCHES,
    WHOLE_BATCHES,
    WORTH_BATCHES,
    Reading,
)
from fairbench.scores.parts.diversity import GIVEN_REFERENCE

__all__ = [
    "NORMAL",
    "auc_score",
    "copies_score",
    "distance_score",
    "kernel_score",
    "leaving_out_batches",
    "mean_score",
    "share_of_valid",
    "share_of_worth",
    "share_score",
    "worst_score",
]

NORMAL = 1.96
_EQUAL_DRAWS = 4000
_EQUAL_SEED = 20_245


def share_score(
    name: str,
    count: int,
    total: int,
    better: Better,
    source: str,
    *,
    n: int | None = None,
    interval: bool = True,
    effects: GroupEffects | None = None,
) -> Score:
    """A share with Wilson's interval, unless the things counted aren't a sample.

    `effects` are those of the two groups, misses and hits, where batches couple images.
    """
    low, high = wilson_interval(count, total) if interval else (None, None)
    if effects is not None:
        ends = clustered_share_intervals([total - count, count], effects)
        low, high = (float(end[1]) for end in ends)
    return Score(
        name=name,
        value=count / total,
        low=low,
        high=high,
        n=total if n is None else n,
        better=better,
        interval=f"wilson{f', {WORTH_BATCHES}' if effects else ''}" if interval else "",
        unit="share",
        source=source,
    )


def share_of_worth(
    name: str, value: float, half: float, n: int, source: str, interval: str
) -> Score:
    """A share of images whose errors may not be independent; higher is better.

    One far-off image can reach many real ones, or none. So Wilson's interval is of as many images
    as have the error that was found, with Student's quantile of the degrees that it rests on:
    where a few rows carry the share, blocks understate it.

    Simulated coverage at 95 %, 200 trials a cell, D = 4, 8 and 16, N = M = 300 and 640, equal and
    up to 2.5 deviations from the reference: 94.5…98 % for recall and 95…98 % for coverage, of
    independent images and of 12 to 20 coupled batches, by jackknife. Student's quantile of as
    many degrees as there are blocks, less one, covers down to 87 %, Wilson's plain interval of
    recall 45 %.

    Args:
        name: Of the score.
        value: The share.
        half: Half the width of its interval by the error that was found; 0 for independent
            images.
        n: Images.
        source: What was compared.
        interval: What the interval is called.
    """
    plain = value * (1 - value) / n
    effect = max(1.0, (half / NORMAL) ** 2 / plain) if plain > 0 else 1.0
    low, high = map(float, wilson_interval(value * n / effect, n / effect))
    return Score(
        name=name,
        value=value,
        low=low,
        high=high,
        n=n,
        better="higher",
        interval=interval,
        unit="share",
        source=source,
    )


def auc_score(name: str, auc: float, error: float, n: int, interval: str, source: str) -> Score:
    """Chance that a generated image lies nearer than a real one; lower is better.

    Args:
        name: Of the column.
        auc: In [0, 1].
        error: Its standard error; the interval is auc ± 1.96 errors, within [0, 1].
        n: Generated images.
        interval: How the error was found.
        source: What was compared with what.
    """
    return Score(
        name=name,
        value=auc,
        low=max(0.0, auc - NORMAL * error),
        high=min(1.0, auc + NORMAL * error),
        n=n,
        better="lower",
        interval=interval,
        unit="probability",
        source=source,
    )


def copies_score(name: str, found: Memorisation, n: int, source: str) -> Score:
    """Share of images beyond a threshold that real images only estimate; lower is better."""
    return Score(
        name=name,
        value=found.copies,
        low=found.copies_low,
        high=found.copies_high,
        n=n,
        better="lower",
        interval="wilson, with the error of the threshold, given the images learned from",
        unit="share",
        source=source,
    )


def worst_score(groups: Sequence[Score], degrees: Sequence[float] | None = None) -> Score:
    """The worst of several groups, with an interval that knows that it was picked for that.

    The end towards better values is that of no single group but the best one that every group
    allows at once (Bonferroni); the other end needs no more than each group's own, since the
    worst is at least as bad as each. Errors are taken as normal, and groups as independent.

    Simulated coverage at 95 %, 200 trials a cell, normal errors, 2, 4 and 8 groups, equal and up
    to 4 errors apart: 95…99.5 %.

    Args:
        groups: One score a group, none without an interval, all of one direction.
        degrees: Degrees of freedom of each group's error, where its ends are Student's.

    Returns:
        The worst one, its interval and source saying what all groups say: also what the worst
        would be expected to be if all were equal.
    """
    lower = groups[0].better == "lower"
    sign = 1.0 if lower else -1.0
    worst = max(groups, key=lambda one: sign * one.value)
    values = np.array([sign * one.value for one in groups])
    ends = np.array(
        [sorted((sign * (one.low or 0.0), sign * (one.high or 0.0))) for one in groups]
    )
    each = degrees or [np.inf] * len(groups)
    own = np.array([student(0.95, one) for one in each])
    tails = np.array([student(1 - 0.05 / len(groups), one) for one in each]) / own
    good = float((values - tails * (values - ends[:, 0])).max())
    bad = float(ends[:, 1].max())
    low, high = sorted((sign * good, sign * bad))
    errors = (ends[:, 1] - ends[:, 0]) / (2 * own)
    noise = np.random.default_rng(_EQUAL_SEED).standard_normal((_EQUAL_DRAWS, len(groups)))
    weights = 1 / np.maximum(errors, 1e-12) ** 2
    equal = float((weights * values).sum() / weights.sum())
    expected = sign * float((equal + errors * noise).max(axis=1).mean())
    return replace(
        worst,
        low=min(low, worst.value),
        high=max(high, worst.value),
        interval=f"{worst.interval}, of the worst of {len(groups)} groups",
        source=f"{worst.source}; {expected:.3g} expected of the worst if all were equal",
    )


def mean_score(
    name: str,
    values: NDArray[np.floating[Any]],
    better: Better,
    source: str,
    *,
    unit: str = "",
    lowest: float = -np.inf,
    highest: float = np.inf,
    reading: Reading | None = None,
    within: NDArray[np.bool_] | None = None,
) -> Score:
    """The mean of one number an image, (N,), with the normal interval, cut to what is possible.

    With the reading whose images these are, all of them or those `within`, coupled batches count
    as one observation each, and what differs between prompts isn't a batch's doing; the interval
    reaches further to the side that few batches pull to.
    """
    numbers = values.astype(np.float64)
    n, mean = len(numbers), float(numbers.mean())
    half = float(NORMAL * numbers.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    below = above = half
    how = "normal"
    if reading is not None and reading.coupled:
        chosen = np.ones(n, dtype=bool) if within is None else within
        batches, prompts = reading.sample.batch_id[chosen], reading.sample.prompt_index[chosen]
        parts: list[NDArray[np.float64]] = []
        degrees = 0
        for prompt in np.unique(prompts):
            mine = prompts == prompt
            _, places = np.unique(batches[mine], return_inverse=True)
            sums = np.bincount(places, weights=numbers[mine] - numbers[mine].mean())
            if len(sums) > 1:
                # About the prompt's own mean, which costs one degree.
                parts.append(sums * np.sqrt(len(sums) / (len(sums) - 1)))
                degrees += len(sums) - 1
        how = f"normal, {GIVEN_BATCHES}"
        if degrees:
            each = np.concatenate(parts)
            quantile = student(0.95, degrees_of_freedom(each**2, degrees))
            below, above = (end / n for end in skewed_ends(each, quantile))
            how = f"t, skewness allowed for, {WHOLE_BATCHES}"
    return Score(
        name=name,
        value=mean,
        low=max(lowest, mean - below),
        high=min(highest, mean + above),
        n=n,
        better=better,
        interval=how,
        unit=unit,
        source=source,
    )


def distance_score(
    name: str,
    ends: tuple[float, float, float],
    n: int,
    source: str,
    interval: str = f"jackknife, 20 blocks, {GIVEN_REFERENCE}",
) -> Score:
    """A distance with the ends of its interval, (value, low, high); lower is better."""
    value, low, high = ends
    return Score(
        name=name,
        value=value,
        low=low,
        high=high,
        n=n,
        better="lower",
        interval=interval,
        source=source,
    )


def kernel_score(name: str, found: KernelDistance, n: int, source: str) -> Score:
    """A kernel distance, whose interval counts both sets as samples; lower is better."""
    ends = (found.value, found.low, found.high)
    return distance_score(name, ends, n, source, "jackknife of both sets, 20 blocks")


def share_of_valid(
    reading: Reading, name: str, hits: NDArray[np.bool_], better: Better, source: str
) -> Score:
    """Share of the valid images for which something holds, (n,)."""
    effects = reading.effects(hits.astype(np.int64), 2)
    score = share_score(name, int(hits.sum()), reading.n, better, source, effects=effects)
    return score if effects is not None else leaving_out_batches(score, reading)


def leaving_out_batches(score: Score, reading: Reading) -> Score:
    """The score, its interval saying that it leaves out what batches do, where there are any."""
    if not reading.coupled or not score.interval:
        return score
    return replace(score, interval=f"{score.interval}, {GIVEN_BATCHES}")
