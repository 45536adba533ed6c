from __future__ import annotations

import dataclasses

import pytest

from fairbench.core.score import Score
from fairbench.gate.comparing import EVERYTHING, compare

RAW, DISTANCE = "fairness_discrepancy", "frechet_x_balanced"


def states(verdict):
    return {one.score: one.state for one in verdict.findings}


def test_the_same_images_and_scores_are_identical(make_run):
    verdict = compare([make_run()], [make_run()])
    assert set(states(verdict).values()) == {"identical"}
    assert (verdict.word, verdict.exit_code) == ("identical", 0)


def test_a_regression_is_clear_and_beyond_the_margin(make_run):
    verdict = compare([make_run(0.6)], [make_run(0.75, noise=1)])
    assert states(verdict)[RAW] == "regressed"
    assert (verdict.word, verdict.exit_code) == ("failed", 1)
    (one,) = verdict.of("regressed")
    assert one.low > 0
    assert one.change > one.margin == 0.02
    assert one.p_value < 0.05


def test_an_improvement_is_none(make_run):
    verdict = compare([make_run(0.75)], [make_run(0.6, noise=1)])
    assert states(verdict)[RAW] == "improved"
    assert verdict.exit_code == 0


def test_what_is_clear_but_small_passes(make_run):
    before, after = make_run(0.6, changed=0), make_run(0.6, changed=0, noise=1, flipped=0.015)
    # Some six images of a thousand, all in one direction, on images that are otherwise the same.
    images = dataclasses.replace(after.images, sha256=("0" * 64, *after.images.sha256[1:]))
    after = dataclasses.replace(after, images=images)
    verdict = compare([before], [after])
    (one,) = [one for one in verdict.findings if one.score == RAW]
    assert 0 < one.change < one.margin
    assert one.low > 0
    assert one.state == "pass"
    assert one.how == "paired by seed and image"


def test_what_cannot_be_told_is_inconclusive_and_says_what_would_tell(make_run):
    verdict = compare([make_run(0.6, n=200)], [make_run(0.62, n=200, noise=1)])
    (one,) = [one for one in verdict.findings if one.score == RAW]
    assert one.state == "inconclusive"
    assert one.detectable > one.margin
    assert one.needed > 200
    assert verdict.exit_code == 0
    failing = compare(
        [make_run(0.6, n=200)], [make_run(0.62, n=200, noise=1)], on_inconclusive="fail"
    )
    assert failing.exit_code == 1


def test_pairs_find_what_independent_images_do_not(make_run):
    before = make_run(0.6, changed=0)
    after = make_run(0.6, changed=0.02, noise=1, flipped=0.1)
    paired = compare([before], [after])
    alone = compare(
        [dataclasses.replace(before, images=None)], [dataclasses.replace(after, images=None)]
    )
    widths = []
    for verdict in (paired, alone):
        (one,) = [one for one in verdict.findings if one.score == RAW]
        widths.append(one.high - one.low)
    assert widths[0] < 0.6 * widths[1]
    assert states(paired)[RAW] == "regressed"
    assert any("none are paired" in line for line in alone.notes)


def test_the_same_images_read_otherwise_are_compared_exactly(make_run):
    hashes = {"judge_first": "b" * 64}
    verdict = compare([make_run(0.6)], [make_run(0.6, flipped=0.1, hashes=hashes)])
    (one,) = verdict.of("regressed")
    assert (one.score, one.how) == (RAW, "the same images, measured otherwise")
    assert any("judge_first is another" in line for line in verdict.notes)
    assert states(verdict)[DISTANCE] == "identical"


def test_many_scores_need_clearer_evidence(make_run):
    # The same change, alone and among forty others.
    before = [make_run(0.6, n=400)]
    after = [make_run(0.675, n=400, noise=1)]
    alone = compare(before, after)
    others = [make_run(0.6, n=400, method=f"m{k}") for k in range(40)]
    again = [make_run(0.6, n=400, method=f"m{k}", noise=k + 2) for k in range(40)]
    among = compare([*before, *others], [*after, *again])
    first = next(one for one in alone.findings if one.score == RAW)
    second = next(
        one for one in among.findings if one.score == RAW and one.run.startswith("vanilla")
    )
    assert second.change == first.change
    assert second.p_value > first.p_value
    assert second.detectable > first.detectable


def test_seeds_are_one_estimate(make_run):
    before = [make_run(0.6, seed=s, noise=s) for s in range(3)]
    after = [make_run(0.75, seed=s, noise=s + 10) for s in range(3)]
    verdict = compare(before, after)
    (one,) = verdict.of("regressed")
    assert one.run.endswith("seeds 0, 1, 2")
    single = compare(before[:1], after[:1]).of("regressed")[0]
    assert one.high - one.low < single.high - single.low


def test_a_score_without_an_interval_needs_seeds(make_run):
    def run(value, seed=0, noise=0):
        return make_run(seed=seed, noise=noise, recall_x_group_gap=(value, None))

    verdict = compare([run(0.1)], [run(0.4, noise=1)])
    (one,) = [one for one in verdict.findings if one.score == "recall_x_group_gap"]
    assert (one.state, one.how) == ("inconclusive", "no interval and few seeds")
    before = [run(0.1 + 0.01 * s, s) for s in range(4)]
    after = [run(0.6 + 0.005 * s, s, noise=s + 9) for s in range(4)]
    found = states(compare(before, after))
    assert found["recall_x_group_gap"] == "regressed"


def test_exact_counts_are_shares_of_a_sample(make_run):
    before, after = make_run(), make_run(noise=1)
    copies = [
        Score("duplicates", value, None, None, 1000, "lower", unit="share")
        for value in (0.0, 0.006, 0.06)
    ]
    runs = [
        dataclasses.replace(run, scores={**run.scores, "duplicates": one})
        for run, one in zip((before, after, after), copies, strict=True)
    ]
    assert states(compare(runs[:1], runs[1:2]))["duplicates"] == "inconclusive"
    assert states(compare(runs[:1], runs[2:]))["duplicates"] == "regressed"


def test_missing_scores_and_runs_fail_unless_told_otherwise(make_run):
    before, after = make_run(), make_run(frechet_x_balanced=(None, None))
    verdict = compare([before], [after])
    assert states(verdict)[DISTANCE] == "missing"
    assert verdict.exit_code == 1
    assert compare([before], [after], on_missing="warn").exit_code == 0
    gone = compare([before, make_run(method="fairgen")], [before])
    assert [one.score for one in gone.of("missing")] == [EVERYTHING]
    assert gone.exit_code == 1
    assert (
        compare([before, make_run(method="fairgen")], [make_run()], on_missing="ignore").exit_code
        == 0
    )


def test_what_the_baseline_lacks_is_new(make_run):
    verdict = compare([make_run()], [make_run(validity=(0.9, 0.02)), make_run(method="fairgen")])
    assert {(one.run.split()[0], one.score) for one in verdict.of("new")} == {
        ("vanilla", "validity"),
        ("fairgen", EVERYTHING),
    }
    assert verdict.exit_code == 0


@pytest.mark.parametrize("on_missing", ["fail", "ignore"])
def test_nothing_measured_never_passes(make_run, on_missing):
    assert compare([], [], on_missing=on_missing).exit_code != 0
    assert compare([make_run()], [], on_missing=on_missing).exit_code != 0
    empty = dataclasses.replace(make_run(), scores={})
    assert compare([empty], [empty], on_missing=on_missing).exit_code != 0
    assert compare([make_run()], [empty], on_missing=on_missing).exit_code != 0


def test_too_few_images_never_pass(make_run):
    few = make_run(n=60)
    verdict = compare([few], [few])
    assert (verdict.exit_code, verdict.word) == (2, "not comparable")
    assert "at least 100" in verdict.refusals[0]


def test_equal_images_never_pass(make_run):
    equal = make_run(equal=True)
    assert compare([equal], [equal]).exit_code == 2
    collapsed = compare([make_run()], [equal])
    assert collapsed.exit_code == 1
    assert "all of its images are equal" in collapsed.of("regressed")[0].reason


def test_equal_features_never_pass(make_run):
    equal = make_run(frechet_x_balanced=(4.0, 0.0))
    assert compare([equal], [equal]).exit_code == 2
    collapsed = compare([make_run()], [equal])
    assert collapsed.exit_code == 1
    assert DISTANCE in collapsed.of("regressed")[0].reason


def test_another_definition_is_not_compared(make_run):
    after = make_run(0.9, noise=1)
    score = dataclasses.replace(after.scores[RAW], version=4)
    after = dataclasses.replace(after, scores={**after.scores, RAW: score})
    verdict = compare([make_run()], [after])
    assert states(verdict)[RAW] == "inconclusive"
    assert "definition" in verdict.of("inconclusive")[0].reason


def test_rounding_of_another_machine_passes(make_run):
    before = make_run(changed=0)
    images = dataclasses.replace(before.images, sha256=("1" * 64, *before.images.sha256[1:]))
    after = dataclasses.replace(
        make_run(changed=0, frechet_x_balanced=(4.0001, 0.4)), images=images
    )
    verdict = compare([before], [after])
    assert set(states(verdict).values()) == {"pass"}
    assert verdict.exit_code == 0
