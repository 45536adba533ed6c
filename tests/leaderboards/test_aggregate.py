from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fairbench.core.score import Score
from fairbench.leaderboards import rows
from fairbench.leaderboards.columns import blocks

SD = {"steps": 25, "guidance": 3.0, "eta": 0.0, "spacing": "trailing"}
"""As cartoonfaces-sd declares."""


def refuse(message):
    raise AssertionError(f"unexpected warning: {message}")


def fairness(value, low=None, high=None, floor=None):
    name = "fairness_discrepancy_corrected"
    return (Score(name, value, low, high, 2000, "lower", "wilson" if low else "", floor),)


def sure(value, floor=None):
    """A value whose interval is narrow enough to tell it from others."""
    return fairness(value, value - 0.004, value + 0.004, floor)


@pytest.fixture
def vanilla(make_record):
    """The baseline that ranks need, never ranked itself; no changes: of the usual block."""

    def make(seed=0, **changes):
        scores = changes.pop("scores", fairness(0.9))
        return make_record("vanilla", seed, card={"role": "control"}, scores=scores, **changes)

    return make


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
    # Without counts the distances themselves are averaged; what can't be is cut off.
    assert half > 0.3
    assert (cell.low, cell.high) == (0.0, pytest.approx(math.sqrt(0.5)))
    assert cell.interval == "t over 3 seeds"
    assert (row.seeds, row.n) == ((0, 1, 2), 2000)
    assert row.keys == (runs[1].key, runs[2].key, runs[0].key)
    assert "seed" not in row.config


def test_settings_that_are_equal_as_json_are_of_one_row(make_record):
    alike = (
        (
            {"lr": 1e-5, "name": "é", "of": [3, 4]},
            {"lr": np.float64(1e-5), "name": "é", "of": {4, 3}},
        ),
        ({"big": 2**70, "of": [1]}, {"big": 2**70, "of": (1,)}),
    )
    for pair in alike:
        runs = [
            make_record(seed=seed, scores=fairness(0.1), config={"parameters": given})
            for seed, given in enumerate(pair)
        ]
        assert [row.seeds for row in rows(runs, warn=refuse)] == [(0, 1)]
    apart = [
        make_record(seed=s, scores=fairness(0.1), config={"parameters": {"of": s + 0.0}})
        for s in (0, 1)
    ]
    assert len(rows(apart, warn=refuse)) == 2


def test_too_few_valid_images_are_not_ranked(make_record, vanilla):
    (score,) = fairness(0.01)
    few = make_record("few", scores=(replace(score, n=10),))
    many = make_record("many", scores=fairness(0.3))
    table = {row.method: row for row in rows([few, many, vanilla()], warn=refuse)}
    assert table["many"].rank == "1"
    assert (table["few"].rank, table["few"].why_unranked) == ("–", "images")
    assert table["few"].reasons == ("only 10 valid images, at least 100 are needed",)


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


def test_ranks_rise_with_the_discrepancy_and_controls_have_none(make_record, vanilla):
    runs = [
        make_record("c", scores=sure(0.3)),
        make_record("a", scores=sure(0.5)),
        make_record("b", scores=sure(0.4)),
        make_record("control", card={"role": "control"}, scores=sure(0.01)),
        make_record("oracle", card={"role": "oracle"}, scores=sure(0.02)),
        make_record("ablation", card={"role": "ablation"}, scores=sure(0.025)),
        make_record("aside", card={"ranked": False}, scores=sure(0.03)),
        vanilla(),
    ]
    expected = [("c", "1"), ("b", "2"), ("a", "3")]
    expected += [("control", "–"), ("oracle", "–"), ("ablation", "–"), ("aside", "–")]
    expected += [("vanilla", "–")]
    table = rows(runs, warn=refuse)
    assert ranks(table) == expected
    assert ranks(rows(runs[::-1], warn=refuse)) == expected
    words = [row.why_unranked for row in table]
    assert words == ["", "", "", "control", "oracle", "ablation", "unranked", "control"]
    assert [row.tie_class for row in table[:4]] == ["A", "B", "C", ""]


def test_rows_that_do_not_differ_share_a_class(make_record, vanilla):
    runs = [
        make_record("a", scores=fairness(0.30, 0.28, 0.32)),
        make_record("b", scores=fairness(0.31, 0.29, 0.33)),
        make_record("c", scores=fairness(0.50, 0.48, 0.52)),
        make_record("unsure", scores=fairness(0.60)),  # no interval: differs from nothing
        vanilla(),
    ]
    table = rows(runs, warn=refuse)
    assert [(row.method, row.tie_class, row.rank) for row in table[:4]] == [
        ("a", "A", "1–3"),
        ("b", "A", "1–3"),
        ("unsure", "A", "1–4"),
        ("c", "B", "3–4"),
    ]


def test_rows_at_or_below_the_floor_tie(make_record, vanilla):
    def run(method, value, floor=0.05):
        return make_record(method, scores=sure(value, floor=floor))

    table = rows(
        [run("a", 0.05), run("b", 0.01), run("c", 0.09), run("d", 0.03), vanilla()], warn=refuse
    )
    assert ranks(table)[:4] == [("b", "1–3"), ("d", "1–3"), ("a", "1–3"), ("c", "4")]
    table = rows([run("a", 0.06), run("b", 0.01), vanilla()], warn=refuse)
    assert ranks(table)[:2] == [("b", "1"), ("a", "2")]


def test_a_row_is_not_let_off_by_a_high_floor_of_its_own(make_record, vanilla):
    table = rows(
        [
            make_record("honest", scores=sure(0.08, floor=0.044)),
            make_record("noisy", scores=sure(0.13, floor=0.139)),
            make_record("fair", scores=sure(0.04, floor=0.045)),
            vanilla(),
        ],
        warn=refuse,
    )
    assert ranks(table)[:3] == [("fair", "1"), ("honest", "2"), ("noisy", "3")]


def test_networks_from_random_weights_have_a_block_of_their_own(make_record):
    """Each number of steps is one: a longer training isn't a fairer one."""

    def made(weighting, **given):
        parameters = {"loss_weighting": weighting, "steps": 2500, "start": "scratch", **given}
        return make_record("debiased_loss_weighting", config={"parameters": parameters})

    records = [
        made("debias", prediction="noise"),
        made("constant", prediction="noise"),
        made("debias", prediction="noise", steps=10_000),
        made("debias"),
        made("debias", start="backbone"),
    ]
    tables = list(blocks(rows(records, warn=refuse)))
    by_title = {title: [row.config["parameters"] for row in block] for title, block in tables}
    titles = [title for title, _ in tables]
    assert len(titles) == len(by_title) == 4
    (noise,) = [t for t in titles if "random weights, noise prediction, 2500 training steps" in t]
    assert sorted(p["loss_weighting"] for p in by_title[noise]) == ["constant", "debias"]
    assert sum("random weights" in title for title in titles) == 3


def test_blocks_are_ranked_apart(make_record, vanilla):
    runs = [
        make(config={"backbone": backbone})
        for backbone in ("one", "two")
        for make in (
            lambda config: make_record("a", config=config, scores=fairness(0.1)),
            lambda config: vanilla(config=config),
        )
    ]
    assert [(row.backbone, row.method, row.rank) for row in rows(runs, warn=refuse)] == [
        ("one", "a", "1"),
        ("one", "vanilla", "–"),
        ("two", "a", "1"),
        ("two", "vanilla", "–"),
    ]


def test_rows_of_a_method_that_are_sampled_otherwise_are_told_apart(make_record):
    few = {"sampling": {"steps": 10, "eta": 0.0}}
    runs = [
        make_record("a", config={"sampling": {"steps": 50, "eta": 0.0}}, scores=fairness(0.2)),
        make_record("a", config=few, scores=fairness(0.1)),
        make_record("b", config={"sampling": {"steps": 50, "eta": 0.0}}, scores=fairness(0.3)),
    ]
    found = {(row.method, row.label, row.block[2]) for row in rows(runs, warn=refuse)}
    assert found == {
        ("a", "", "cartoon-sd, 50 steps"),
        ("a", "", "cartoon-sd, 10 steps"),
        ("b", "", "cartoon-sd, 50 steps"),
    }


def test_steps_and_guidance_have_blocks_with_baselines_of_their_own(make_counted):
    """What isn't declared stands in the title, and is ranked among itself."""
    runs = [
        make_counted(method, counts, seed, config={"backbone": "cartoonfaces-sd", **config})
        for config in ({"sampling": SD}, {"sampling": {**SD, "guidance": 1.0}})
        for method, counts in (("a", (900, 1100)), ("vanilla", (500, 1500)))
        for seed in (0, 1, 2)
    ]
    found = [
        (row.block[2], row.method, row.comparable, row.rank != "–", row.label)
        for row in rows(runs, warn=refuse)
    ]
    assert found == [
        ("cartoonfaces-sd", "a", "yes", True, ""),
        ("cartoonfaces-sd", "vanilla", "yes", False, ""),
        ("cartoonfaces-sd, guidance 1", "a", "yes", True, ""),
        ("cartoonfaces-sd, guidance 1", "vanilla", "yes", False, ""),
    ]


def test_other_sampling_settings_stay_a_departure_from_the_protocol(make_counted):
    shifted = {"sampling": {**SD, "eta": 1.0, "guidance": 1.0}}
    runs = [
        make_counted("vanilla", (500, 1500), config={"backbone": "cartoonfaces-sd", **config})
        for config in (shifted, {"sampling": {**SD, "guidance": 1.0}})
    ]
    told = {row.config["sampling"]["eta"]: row.comparable for row in rows(runs, warn=refuse)}
    assert told == {0.0: "yes", 1.0: "no: sampling.eta 1.0, protocol 0.0"}


def test_a_mismatch_is_named_last_and_unranked(make_record, vanilla):
    runs = [
        make_record("a", scores=sure(0.3)),
        make_record("b", scores=sure(0.2)),
        make_record("few", config={"num_images": 1000}, scores=sure(0.1)),
        make_record(
            "other", config={"hashes": {"judge": "e" * 64, "adapter": "x"}}, scores=sure(0.1)
        ),
        vanilla(),
    ]
    table = rows(runs, warn=refuse)
    assert ranks(table) == [("b", "1"), ("a", "2"), ("vanilla", "–"), ("few", "–"), ("other", "–")]
    assert [row.comparable for row in table[:3]] == ["yes"] * 3
    assert table[3].comparable == "no: num_images 1000, protocol 2000"
    assert table[4].comparable == "no: hashes.judge eeeeeeeeeeee…, protocol aaaaaaaaaaaa…"
    assert [row.why_unranked for row in table[3:]] == ["protocol", "protocol"]


def test_rows_do_not_vote_on_the_protocol(make_record, vanilla):
    few = {"num_images": 1000}
    runs = [make_record(name, config=few, scores=sure(0.1)) for name in ("x", "y", "z")]
    table = rows([*runs, make_record("a", scores=sure(0.2)), vanilla()], warn=refuse)
    assert [row.method for row in table if row.comparable == "yes"] == ["a", "vanilla"]


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
    assert {(row.label, row.block[2]) for row in table} == {
        ("", "cartoonfaces-sd"),
        ("", "cartoonfaces-sd, 10 steps"),
    }


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


def test_if_a_candidate_lacks_the_correction_all_are_ranked_without(make_record, vanilla):
    raw = tuple(replace(score, name="fairness_discrepancy") for score in sure(0.1))
    runs = [make_record("a", scores=(*sure(0.2), *raw)), vanilla()]
    (row, _) = rows(runs, warn=refuse)
    assert row.ranked_by == "fairness_discrepancy_corrected"
    table = rows([*runs, make_record("b", scores=raw)], warn=refuse)
    assert {row.ranked_by for row in table} == {"fairness_discrepancy"}
    assert ranks(table)[:2] == [("a", "1–2"), ("b", "1–2")]
    # A row that wouldn't be ranked anyway doesn't decide.
    aside = make_record("b", scores=raw, card={"role": "ablation"})
    assert rows([*runs, aside], warn=refuse)[0].ranked_by == "fairness_discrepancy_corrected"
    neither = make_record("c", scores=(Score("x", 1.0, None, None, 5, "neither"),))
    words = {row.method: row.why_unranked for row in rows([*runs, neither], warn=refuse)}
    assert words["c"] == "unmeasured"


def test_dealt_out_groups_are_flagged(make_record):
    facts = {"fairness": {"quota": {"quota": True}}}
    runs = [make_record(seed=0, scores=fairness(0.0), facts=facts), make_record(seed=1)]
    (row,) = rows([replace(run, scores=fairness(0.01)) for run in runs], warn=refuse)
    assert row.flags == ("quota",)


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
