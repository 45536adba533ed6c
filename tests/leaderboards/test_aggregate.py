from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fairbench.core.score import Score
from fairbench.leaderboards import rows


def refuse(message):
    raise AssertionError(f"unexpected warning: {message}")


def fairness(value, low=None, high=None, floor=None):
    name = "fairness_discrepancy_corrected"
    return (Score(name, value, low, high, 2000, "lower", "wilson" if low else "", floor),)


def ranks(table):
    return [(row.method, row.rank) for row in table]


def test_seeds_of_one_configuration_become_one_row(make_record):
    values = (0.1, 0.2, 0.6)
    seeds = (2, 0, 1)
    runs = [make_record(seed=s, scores=fairness(v)) for s, v in zip(seeds, values, strict=True)]
    (row,) = rows(runs, warn=refuse)
    cell = row.scores["fairness_discrepancy_corrected"]
    # t of 2 degrees of freedom, from any table; the standard deviation is sqrt(0.07).
    half = 4.302653 * math.sqrt(0.07) / math.sqrt(3)
    assert cell.value == pytest.approx(0.3)
    assert cell.low == pytest.approx(0.3 - half, abs=1e-6)
    assert cell.high == pytest.approx(0.3 + half, abs=1e-6)
    assert cell.interval == "t over 3 seeds"
    assert (row.seeds, row.n) == ((0, 1, 2), 2000)
    assert row.keys == (runs[1].key, runs[2].key, runs[0].key)
    assert "seed" not in row.config


def test_the_wider_interval_is_shown(make_record):
    def cell(*scores):
        runs = [make_record(seed=seed, scores=score) for seed, score in enumerate(scores)]
        return rows(runs, warn=refuse)[0].scores["fairness_discrepancy_corrected"]

    within = cell(fairness(0.30, 0.1, 0.5), fairness(0.31, 0.2, 0.6))
    assert (within.low, within.high) == (pytest.approx(0.15), pytest.approx(0.55))
    assert within.interval == "within run: wilson"
    assert cell(fairness(0.1, 0.09, 0.11), fairness(0.5, 0.49, 0.51)).interval == "t over 2 seeds"
    assert cell(fairness(0.1, 0.09, 0.11)).interval == "within run: wilson"
    alone = cell(fairness(0.1))
    assert (alone.low, alone.high, alone.interval) == (None, None, "")
    # Two equal values have a t interval of width 0; it is still one.
    assert cell(fairness(0.1), fairness(0.1)).low == pytest.approx(0.1)


def test_floor_of_several_seeds_is_that_of_their_mean(make_record):
    def runs(count, n=2000, floor=0.031):
        fair = {"fair": {"fairness_discrepancy_corrected": {"n": [n], "target": [0.5, 0.5]}}}
        return [
            make_record(seed=s, scores=fairness(0.1, floor=floor), facts=fair)
            for s in range(count)
        ]

    def floor(records):
        return rows(records, warn=refuse)[0].scores["fairness_discrepancy_corrected"].floor

    assert floor(runs(1)) == 0.031
    # Simulated: three fair runs of 2,000 images, the mean of sqrt(2) |share - 1/2|.
    rng = np.random.default_rng(0)
    shares = rng.binomial(2000, 0.5, (200_000, 3)) / 2000
    expected = np.quantile((np.sqrt(2) * np.abs(shares - 0.5)).mean(1), 0.95)
    assert floor(runs(3)) == pytest.approx(expected, rel=0.02)
    assert floor(runs(3)) < 0.75 * 0.031
    # A record that doesn't say what its floor rests on, or has none: no floor of the mean.
    assert floor([*runs(1), make_record(seed=1, scores=fairness(0.1, floor=0.031))]) is None
    assert floor(runs(2, floor=None)) is None


def test_too_few_valid_images_are_not_compared(make_record):
    (score,) = fairness(0.01)
    few = make_record("few", scores=(replace(score, n=10),))
    many = make_record("many", scores=fairness(0.3))
    first, last = rows([few, many], warn=refuse)
    assert (first.method, first.rank) == ("many", "1")
    assert (last.rank, last.comparable) == ("–", "no: only 10 valid images, at least 100 needed")


def test_only_complete_records_count(make_record):
    warnings = []
    failed = make_record(seed=1, status="failed", error="it stopped")
    (row,) = rows([make_record(), failed], warn=warnings.append)
    assert row.seeds == (0,)
    assert len(warnings) == 1
    assert failed.key in warnings[0]
    assert rows([failed], warn=warnings.append) == []


def test_a_repeated_seed_counts_once_and_the_later_record_wins(make_record):
    warnings = []
    old = make_record(scores=fairness(0.1), created="2026-01-01T00:00:00+00:00")
    new = make_record(scores=fairness(0.2), created="2026-01-02T00:00:00+00:00")
    (row,) = rows([new, old], warn=warnings.append)
    assert row.scores["fairness_discrepancy_corrected"].value == 0.2
    assert len(warnings) == 1


def test_a_score_that_some_seeds_lack_is_left_out_with_a_warning(make_record):
    warnings = []
    both = (*fairness(0.1), Score("extra", 1.0, None, None, 5, "neither"))
    runs = [make_record(scores=fairness(0.1)), make_record(seed=1, scores=both)]
    (row,) = rows(runs, warn=warnings.append)
    assert list(row.scores) == ["fairness_discrepancy_corrected"]
    assert "extra left out; 1 of 2 seeds" in warnings[0]


def test_rows_are_chosen_by_dataset_and_task(make_record):
    runs = [make_record(), make_record(dataset="celeba"), make_record(task="race")]
    assert len(rows(runs, warn=refuse)) == 3
    assert [row.dataset for row in rows(runs, dataset="celeba", warn=refuse)] == ["celeba"]
    assert [row.task for row in rows(runs, task="race", warn=refuse)] == ["race"]
    assert rows(runs, dataset="celeba", task="race", warn=refuse) == []


def test_ranks_rise_with_the_discrepancy_and_controls_have_none(make_record):
    runs = [
        make_record("c", scores=fairness(0.3)),
        make_record("a", scores=fairness(0.5)),
        make_record("b", scores=fairness(0.4)),
        make_record("control", card={"role": "control"}, scores=fairness(0.01)),
        make_record("oracle", card={"role": "oracle"}, scores=fairness(0.02)),
        make_record("aside", card={"ranked": False}, scores=fairness(0.03)),
        make_record("unmeasured"),
    ]
    expected = [("c", "1"), ("b", "2"), ("a", "3")]
    expected += [("control", "–"), ("oracle", "–"), ("aside", "–"), ("unmeasured", "–")]
    assert ranks(rows(runs, warn=refuse)) == expected
    assert ranks(rows(runs[::-1], warn=refuse)) == expected


def test_rows_at_or_below_the_floor_tie(make_record):
    def run(method, value, floor=0.05):
        return make_record(method, scores=fairness(value, floor=floor))

    table = rows([run("a", 0.05), run("b", 0.01), run("c", 0.06), run("d", 0.03)], warn=refuse)
    assert ranks(table) == [("b", "1–3"), ("d", "1–3"), ("a", "1–3"), ("c", "4")]
    table = rows([run("a", 0.06), run("b", 0.01)], warn=refuse)
    assert ranks(table) == [("b", "1"), ("a", "2")]
    table = rows([run("a", 0.06), run("b", 0.06, floor=None)], warn=refuse)
    assert ranks(table) == [("a", "1"), ("b", "2")]


def test_blocks_are_ranked_apart(make_record):
    runs = [
        make_record("a", config={"backbone": backbone}, scores=fairness(0.1))
        for backbone in ("one", "two")
    ]
    assert [(row.backbone, row.rank) for row in rows(runs, warn=refuse)] == [
        ("one", "1"),
        ("two", "1"),
    ]


def test_rows_of_a_method_that_are_sampled_otherwise_are_told_apart(make_record):
    few = {"sampling": {"steps": 10, "eta": 0.0}}
    runs = [
        make_record("a", config={"sampling": {"steps": 50, "eta": 0.0}}, scores=fairness(0.2)),
        make_record("a", config=few, scores=fairness(0.1)),
        make_record("b", config={"sampling": {"steps": 50, "eta": 0.0}}, scores=fairness(0.3)),
    ]
    labels = {(row.method, row.label) for row in rows(runs, warn=refuse)}
    assert labels == {("a", "sampling.steps=50"), ("a", "sampling.steps=10"), ("b", "")}


def test_a_mismatch_is_flagged_last_and_unranked(make_record):
    runs = [
        make_record("a", scores=fairness(0.3)),
        make_record("b", scores=fairness(0.2)),
        make_record("few", config={"num_images": 1000}, scores=fairness(0.1)),
        make_record(
            "other", config={"hashes": {"judge": "e" * 64, "adapter": "x"}}, scores=fairness(0.1)
        ),
        make_record("control", card={"role": "control"}, scores=fairness(0.9)),
    ]
    table = rows(runs, warn=refuse)
    assert ranks(table) == [("b", "1"), ("a", "2"), ("control", "–"), ("few", "–"), ("other", "–")]
    assert [row.comparable for row in table[:3]] == ["yes"] * 3
    assert table[3].comparable == "no: num_images 1000, others 2000"
    assert table[4].comparable == "no: hashes.judge eeeeeeeeeeee…, others aaaaaaaaaaaa…"


def test_controls_do_not_outvote_ranked_methods(make_record):
    few = {"num_images": 1000}
    runs = [make_record(name, config=few, card={"role": "control"}) for name in ("x", "y", "z")]
    table = rows([*runs, make_record("a", scores=fairness(0.1))], warn=refuse)
    assert [row.method for row in table if row.comparable == "yes"] == ["a"]


def test_what_belongs_to_the_method_does_not_hinder_a_comparison(make_record):
    own = {"version": 3, "preset": "p", "parameters": {"k": 1}, "batch_size": 8}
    table = rows([make_record("a"), make_record("b", config=own)], warn=refuse)
    assert {row.comparable for row in table} == {"yes"}


def test_labels_show_presets_and_what_differs(make_record):
    runs = [
        make_record(config={"parameters": {"strength": 1.0, "steps": [1, 2]}}),
        make_record(config={"parameters": {"strength": 2.5, "steps": [1, 2]}}),
        make_record(config={"preset": "as_released", "parameters": {"strength": 9.0}}),
        make_record("vanilla"),
    ]
    labels = {(row.method, row.label) for row in rows(runs, warn=refuse)}
    assert labels == {
        ("fairgen", ""),  # 1.0 is the default
        ("fairgen", "strength=2.5"),
        ("fairgen", "as_released"),
        ("vanilla", ""),
    }


def test_labels_tell_rows_apart_though_one_lacks_a_parameter(make_record):
    runs = [
        make_record(config={"parameters": {"strength": 1.0}}),
        make_record(config={"parameters": {"strength": 1.0, "rank": 1}}),
        make_record(config={"parameters": {"strength": 2.5, "rank": 1}}),
    ]
    labels = sorted(row.label for row in rows(runs, warn=refuse))
    assert labels == ["rank=1, strength=1.0", "rank=1, strength=2.5", "strength=1.0"]


def test_labels_name_a_target_that_is_not_even_and_no_number_of_images(make_record):
    runs = [
        make_record(config={"target": {"female": share, "male": 1 - share}, "num_images": n})
        for share, n in ((0.5, 2000), (0.75, 2000), (0.5, 1000))
    ]
    labels = sorted(row.label for row in rows(runs, warn=refuse))
    assert labels == ["", "", "target.female=0.75, target.male=0.25"]


def test_labels_leave_out_the_sampling_of_the_backbone(make_record):
    runs = [
        make_record(
            "vanilla",
            config={"backbone": "cartoonfaces-sd", "sampling": {"steps": steps, "eta": 0.0}},
        )
        for steps in (25, 10)
    ]
    table = rows(runs, warn=refuse)
    assert {row.label for row in table} == {"", "sampling.steps=10"}


def test_costs_are_averaged_and_missing_sampling_time_is_no_zero(make_record):
    runs = [
        make_record(seed=0, seconds={"generate": 100.0}, network_calls_per_image=20.0),
        make_record(seed=1, seconds={"generate": 300.0}, network_calls_per_image=22.0),
        make_record(seed=2, seconds={"score": 1.0}, network_calls_per_image=24.0),
    ]
    (row,) = rows(runs, warn=refuse)
    assert row.seconds_per_image == pytest.approx(0.1)
    assert row.network_calls_per_image == 22.0
    assert rows(runs[2:], warn=refuse)[0].seconds_per_image is None


def test_a_record_of_older_metrics_gives_way_to_its_rescoring(make_record):
    old = make_record(config={"metric_version": 1}, scores=fairness(0.3))
    new = make_record(config={"metric_version": 2}, scores=fairness(0.2))
    warnings = []
    (row,) = rows([old, new], warn=warnings.append)
    assert row.scores["fairness_discrepancy_corrected"].value == 0.2
    assert len(warnings) == 1
    assert "scores its images anew" in warnings[0]


def test_a_record_without_the_ranked_score_says_so_and_has_no_rank(make_record):
    raw = (Score("fairness_discrepancy", 0.1, None, None, 2000, "lower"),)
    table = rows(
        [make_record("a", scores=fairness(0.2)), make_record("b", scores=raw)], warn=refuse
    )
    assert ranks(table) == [("a", "1"), ("b", "–")]
    assert "isn't in its record" in table[1].comparable


def test_the_floor_of_corrected_seeds_keeps_the_error_of_the_judge(make_record):
    def floor(confusion):
        entry = {"n": [2000], "target": [0.5, 0.5], "confusion": confusion}
        facts = {"fair": {"fairness_discrepancy_corrected": entry}}
        runs = [
            make_record(seed=s, scores=fairness(0.1, floor=0.031), facts=facts) for s in range(3)
        ]
        return rows(runs, warn=refuse)[0].scores["fairness_discrepancy_corrected"].floor

    sure = floor([[100_000, 0], [0, 100_000]])
    assert sure == pytest.approx(0.75 * 0.031, rel=0.1)
    assert floor([[90, 10], [10, 90]]) > 1.5 * sure


def test_dealt_out_groups_are_flagged(make_record):
    facts = {"fairness": {"quota": {"quota": True}}}
    runs = [make_record(seed=0, scores=fairness(0.0), facts=facts), make_record(seed=1)]
    (row,) = rows([replace(run, scores=fairness(0.01)) for run in runs], warn=refuse)
    assert row.flags == ("quota",)


def test_a_row_is_not_let_off_by_a_high_floor_of_its_own(make_record):
    table = rows(
        [
            make_record("honest", scores=fairness(0.05, floor=0.044)),
            make_record("noisy", scores=fairness(0.13, floor=0.139)),
            make_record("fair", scores=fairness(0.04, floor=0.045)),
        ],
        warn=refuse,
    )
    assert ranks(table) == [("fair", "1"), ("honest", "2"), ("noisy", "3")]


def test_seeds_that_all_hit_the_target_exactly_are_flagged(make_record):
    def row(statistic):
        quota = {"quota": False, "statistic": statistic, "degrees": 1}
        facts = {"fairness": {"quota": quota}}
        runs = [make_record(seed=s, scores=fairness(0.01), facts=facts) for s in range(3)]
        return rows(runs, warn=refuse)[0]

    assert row(0.0).flags == ("quota",)
    assert row(1.0).flags == ()


def test_of_two_scorings_of_the_same_images_the_wider_is_kept(make_record):
    few = make_record(config={"hashes": {"a": "1"}}, scores=fairness(0.3))
    more = make_record(config={"hashes": {"a": "1", "b": "2"}}, scores=fairness(0.2))
    (row,) = rows([few, more], warn=lambda line: None)
    assert row.scores["fairness_discrepancy_corrected"].value == 0.2
