"""A classifier's confusion: whether it can be undone, and the shares that undo it best."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import Array, check_counts

__all__ = [
    "Reason",
    "check_confusion",
    "confusion_rates",
    "judge_confusion",
    "likeliest_shares",
]

Reason = Literal["ill_conditioned"]

MAX_CONDITION = 10.0
MIN_DIAGONAL = 0.5
_GAP = 1e-13  # of the mean log likelihood
_MAX_ROUNDS = 2000


def check_confusion(confusion_counts: ArrayLike) -> NDArray[np.int64]:
    """Whole counts (K, K) with an image in every row."""
    table = np.asarray(confusion_counts)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        raise ContractError(f"confusion_counts must be (K, K), K >= 2; seen {table.shape}")
    return np.stack([check_counts(row, len(table)) for row in table])


def confusion_rates(table: NDArray[np.int64]) -> Array:
    """Chance of each answer given the true group, (K, K), rows sum to 1."""
    return np.asarray(table / table.sum(axis=1, keepdims=True), dtype=np.float64)


def judge_confusion(confusion: Array) -> tuple[float, Reason | None]:
    """Condition number, and why the classifier is refused if it is."""
    condition = float(np.linalg.cond(confusion))
    if not condition <= MAX_CONDITION or confusion.diagonal().min() < MIN_DIAGONAL:
        return condition, "ill_conditioned"
    return condition, None


def likeliest_shares(measured: Array, confusion: Array) -> Array:
    """Maximum-likelihood shares of rows, (R, K) with one confusion (K, K) -> (R, K)."""
    raw = np.linalg.solve(confusion.T, measured.T).T
    if measured.shape[1] == 2:
        first = np.clip(raw[:, 0], 0, 1)
        return np.stack([first, 1 - first], axis=1)
    # A solution that is a set of shares reproduces the counts exactly: nothing is likelier.
    outside = raw.min(axis=1) < 0
    found = np.maximum(raw, 0)
    if outside.any():
        found[outside] = _maximise(measured[outside], confusion)
    return np.asarray(found / found.sum(axis=1, keepdims=True), dtype=np.float64)


def _maximise(measured: Array, confusion: Array) -> Array:
    """Expectation maximisation from uniform shares, sped up by squared extrapolation.

    Stops where no share could raise the mean log likelihood by more than `_GAP`.
    Source of the extrapolation: Varadhan and Roland 2008, doi 10.1111/j.1467-9469.2007.00585.x.
    """
    solution = np.full_like(measured, 1 / measured.shape[1])
    active = np.arange(len(measured))
    for _ in range(_MAX_ROUNDS):
        start, q = solution[active], measured[active]
        once, gain = _em_step(start, q, confusion)
        done = gain.max(axis=1) - 1 <= _GAP
        if done.all():
            break
        twice, _ = _em_step(once, q, confusion)
        step, bend = once - start, twice - 2 * once + start
        length = np.linalg.norm(step, axis=1) / np.maximum(np.linalg.norm(bend, axis=1), 1e-300)
        length = np.clip(length, 1, 1e6)[:, None]
        jump = start + 2 * length * step + length**2 * bend
        # A jump out of the simplex is cut back to just inside it; EM can't leave an exact 0.
        jump = np.maximum(jump, 0.1 * twice)
        jump /= jump.sum(axis=1, keepdims=True)
        worse = _likelihood(jump, q, confusion) < _likelihood(twice, q, confusion)
        jump[worse] = twice[worse]
        solution[active] = np.where(done[:, None], start, jump)
        active = active[~done]
    return solution


def _em_step(current: Array, measured: Array, confusion: Array) -> tuple[Array, Array]:
    """One step, and the derivative of the mean log likelihood by each share."""
    expected = current @ confusion
    weight = np.divide(measured, expected, out=np.zeros_like(measured), where=measured > 0)
    gain = weight @ confusion.T
    return current * gain, gain


def _likelihood(current: Array, measured: Array, confusion: Array) -> Array:
    logs = np.log(np.maximum(current @ confusion, 1e-300))
    return np.asarray((measured * logs).sum(axis=1), dtype=np.float64)
