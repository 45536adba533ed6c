"""What people say of some images tells how far judges are to be trusted on all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fairbench.core.measurements import Measurements
from fairbench.core.task import Prompt, Task
from fairbench.scores.parts.auditing import LEAST
from fairbench.scores.parts.crossings import Sample
from fairbench.scores.parts.evidence import Reference
from fairbench.scores.scoring import score_all

LEVELS = {"gender": ("female", "male")}
TASK = Task("gender", LEVELS, (Prompt("person", template="a photo of {}"),), (0.5, 0.5))
ON_REAL = {"gender": np.array([[500, 0], [0, 500]])}


def scored(
    read: np.ndarray,
    given: np.ndarray | None,
    valid: np.ndarray | None = None,
    batches: np.ndarray | None = None,
) -> Any:
    n = len(read)
    measured = Measurements(
        {},
        {"one": {"gender": np.eye(2, dtype=np.float32)[read]}},
        np.ones(n, dtype=bool) if valid is None else valid,
    )
    where = np.arange(n) if batches is None else batches
    sample = Sample(measured, np.zeros(n, np.int64), None, where)
    scores, _, facts = score_all(
        sample,
        Reference({}, {}, np.empty(0, np.int64), None),
        TASK,
        LEVELS,
        ("gender",),
        {"one": ON_REAL},
        {},
        given={} if given is None else {"gender": given},
    )
    return {score.name: score for score in scores}, facts


def generated(n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True and read genders: even shares, and a judge that takes a fifth of the women for men."""
    rng = np.random.default_rng(seed)
    truth = (np.arange(n) % 2).astype(np.int64)
    read = np.where((truth == 0) & (rng.random(n) < 0.2), 1, truth)
    return truth, read


def test_errors_on_the_images_themselves_take_the_place_of_those_on_real_ones() -> None:
    truth, read = generated()
    told = np.where(np.random.default_rng(1).random(len(truth)) < 0.15, truth, -1)
    name = "fairness_discrepancy_corrected"
    plain, _ = scored(read, None)
    audited, facts = scored(read, told)
    assert plain[name].low > 0.08  # the fair generator is called unfair
    assert audited[name].low == 0
    assert audited[name].value < 0.08
    assert audited[name].high > audited[name].value
    labelled = int((told >= 0).sum())
    assert facts["audit"]["errors counted on these images"] == {"gender": labelled}
    assert f"errors counted on {labelled} labelled images of this run" in audited[name].source
    assert "of this run" not in plain[name].source
    assert audited["judge_agreement_gender"].n == labelled
    assert audited["fairness_discrepancy_given"].n == labelled


def test_too_few_labelled_images_of_a_group_replace_nothing() -> None:
    truth, read = generated()
    few = np.full(len(truth), -1)
    few[np.flatnonzero(truth == 0)[: LEAST - 1]] = 0
    few[np.flatnonzero(truth == 1)[:200]] = 1
    plain, _ = scored(read, None)
    audited, facts = scored(read, few)
    name = "fairness_discrepancy_corrected"
    assert (audited[name].value, audited[name].low) == (plain[name].value, plain[name].low)
    assert "errors counted on these images" not in facts["audit"]
    assert audited["judge_agreement_gender"].n == LEAST - 1 + 200


def test_labels_of_images_that_are_not_valid_say_nothing() -> None:
    truth, read = generated(400)
    valid = np.arange(400) < 200
    told = np.where(valid, -1, truth)
    scores, facts = scored(read, told, valid)
    assert "judge_agreement_gender" not in scores
    assert "fairness_discrepancy_given" not in scores
    assert "audit" not in facts


@pytest.mark.slow
def test_the_audited_interval_holds_a_fair_generator() -> None:
    held = 0
    for seed in range(100):
        truth, read = generated(1000, seed)
        rng = np.random.default_rng(10_000 + seed)
        told = np.full(len(truth), -1)
        chosen = rng.choice(len(truth), 200, replace=False)
        told[chosen] = truth[chosen]
        scores, _ = scored(read, told)
        held += scores["fairness_discrepancy_corrected"].low <= 0
    assert held >= 90


def test_labels_of_images_that_batches_couple_count_as_fewer() -> None:
    truth, read = generated()
    told = np.where(np.random.default_rng(1).random(len(truth)) < 0.15, truth, -1)
    batches = np.arange(len(truth)) // 50
    alone, _ = scored(read, told)
    # The judge errs in whole batches: whether it took a woman for a man hangs on the batch.
    errs = np.random.default_rng(2).random(40) < 0.2
    together = np.where((truth == 0) & errs[batches], 1, truth)
    found, facts = scored(together, told, batches=batches)
    name = "fairness_discrepancy_corrected"
    assert facts["audit"]["errors counted on these images"] == {"gender": int((told >= 0).sum())}
    assert found[name].high - found[name].low > 1.5 * (alone[name].high - alone[name].low)
    assert found[name].low == 0
    given = "fairness_discrepancy_given"
    assert found[given].interval.endswith("as of independent images worth the batches")
    agreement = "judge_agreement_gender"
    width = found[agreement].high - found[agreement].low
    assert width > 1.5 * (alone[agreement].high - alone[agreement].low)


def test_labels_of_a_single_batch_replace_nothing() -> None:
    truth, read = generated()
    told = np.where(np.random.default_rng(1).random(len(truth)) < 0.15, truth, -1)
    found, facts = scored(read, told, batches=np.zeros(len(truth), np.int64))
    assert "errors counted on these images" not in facts["audit"]
    assert "given what each batch" in found["judge_agreement_gender"].interval
    assert found["fairness_discrepancy_given"].floor is None
