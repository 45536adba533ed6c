from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fairbench.leaderboards import rows
from fairbench.storage.records import read_record

RESULTS = Path(__file__).parents[2] / "results" / "cartoonfaces"


def refuse(message):
    raise AssertionError(f"unexpected warning: {message}")


def table(records):
    return {row.method: row for row in rows(records, warn=refuse)}


@pytest.fixture
def block(make_counted):
    """A baseline and an honest row."""
    return [make_counted("vanilla", (1800, 200)), make_counted("honest", (1200, 800))]


def why(block, record):
    row = table([*block, record])[record.method]
    assert (row.rank == "–") == bool(row.why_unranked)
    return row.why_unranked


def test_an_honest_row_ranks_and_its_table_has_nothing_unchecked(block):
    row = table(block)["honest"]
    assert (row.rank, row.tie_class, row.why_unranked, row.reasons) == ("1", "A", "", ())
    assert row.unchecked == ()
    assert not row.luck


@pytest.mark.parametrize("method", ["fairgen", "cheat"])
@pytest.mark.parametrize("ends_too", [True, False])
def test_a_committed_record_edited_to_broken_images_does_not_rank(edited, method, ends_too):
    names = [RESULTS / "vanilla", RESULTS / "fairgen"]
    records = [read_record(path) for folder in names for path in sorted(folder.glob("*.json"))]
    records = [r for r in records if r.task == "gender_race" and r.config["num_images"] == 2000]
    assert table(records)["fairgen"].rank == "1"
    kernel = "kernel_cartoonfaces_reweighted"
    usual = next(r.score(kernel).value for r in records if r.method == "vanilla")

    def change(record, name, value):
        if ends_too:
            return edited(record, name, value)
        scores = [replace(s, value=value) if s.name == name else s for s in record.scores]
        return replace(record, scores=tuple(scores))

    for names in (("validity",), (kernel,), ("validity", kernel)):
        changed = []
        for record in records:
            if record.method == "fairgen":
                for name in names:
                    record = change(record, name, 0.06 if name == "validity" else 200 * usual)
                changed.append(replace(record, method=method))
        row = table([*(r for r in records if r.method == "vanilla"), *changed])[method]
        expected = "validity" if "validity" in names else "quality"
        assert (row.rank, row.tie_class, row.why_unranked) == ("–", "", expected)
        assert len(row.reasons) == len(names)


def test_one_broken_seed_of_three_is_enough(make_counted):
    runs = [make_counted("vanilla", (1800, 200), s) for s in range(3)]
    bad = [
        make_counted("bad", (1000, 1000), s, validity=v) for s, v in enumerate((0.97, 0.97, 0.06))
    ]
    assert table([*runs, *bad])["bad"].why_unranked == "validity"
    far = [
        make_counted("far", (1000, 1000), s, kernel=k) for s, k in enumerate((0.06, 0.06, 12.0))
    ]
    assert table([*runs, *far])["far"].why_unranked == "quality"


def test_a_few_points_of_validity_are_no_reason(block, make_counted):
    assert why(block, make_counted("row", (1200, 800), validity=0.88)) == ""
    assert why(block, make_counted("row", (1200, 800), validity=0.84)) == "validity"
    # Eleven points fewer, but 100 images can't tell.
    few = [
        make_counted("vanilla", (90, 10), config={"num_images": 100}),
        make_counted("honest", (60, 40), config={"num_images": 100}),
    ]
    unsure = make_counted("row", (60, 40), validity=0.86, config={"num_images": 100})
    assert why(few, unsure) == ""


def test_what_the_baseline_measured_must_be_measured(block, make_counted):
    assert why(block, make_counted("row", (1200, 800), validity=None)) == "validity"
    assert why(block, make_counted("row", (1200, 800), kernel=None)) == "quality"


def test_a_check_that_nothing_can_be_put_to_is_skipped_and_named(make_counted):
    def bare(method):
        return make_counted(
            method, (1200, 800), validity=None, kernel=None, facts={"copies": None}
        )

    row = table([bare("vanilla"), bare("row")])["row"]
    assert row.rank == "1"
    assert row.unchecked == ("validity", "quality", "duplicates", "leak")


def test_quality_is_doubtful_before_it_is_a_reason(block, make_counted):
    def flags(kernel):
        row = table([*block, make_counted("row", (1200, 800), kernel=kernel)])["row"]
        return row.flags, row.why_unranked

    assert flags(0.10) == ((), "")
    assert flags(0.20) == (("quality?",), "")
    assert flags(0.40) == (("quality?",), "quality")


def test_the_distance_of_real_images_counts_where_the_baseline_is_closer(make_counted):
    def row(real):
        facts = make_counted("row", (1200, 800)).facts
        facts = {"estimate": {**facts["estimate"], "real_distance": real}}
        records = [
            make_counted("vanilla", (1800, 200), kernel=0.001),
            make_counted("row", (1200, 800), kernel=0.05, facts=facts),
        ]
        return table(records)["row"].why_unranked

    assert row(None) == "quality"
    assert row(0.01) == ""


def test_copies_and_leaks(block, make_counted):
    def row(**copies):
        facts = {"copies": {"images": 2000, "distinct": 2000, "evaluation": 0} | copies}
        return why(block, make_counted("row", (1200, 800), facts=facts))

    assert row(distinct=1985) == ""
    assert row(distinct=1900) == "duplicates"
    assert row(evaluation=1) == "leak"


def test_older_records_show_copies_by_their_hashes(make_counted):
    def run(method, hashes, seed=0):
        manifest = tuple((0, i, name) for i, name in enumerate(hashes))
        facts = {"copies": None}
        return make_counted(method, (1200, 800), seed, manifest=manifest, facts=facts)

    names = [f"{i:064x}" for i in range(4000)]
    base = [run("vanilla", names[:2000])]
    assert table([*base, run("row", names[:2000])])["row"].why_unranked == ""
    assert table([*base, run("row", names[:1900] + names[:100])])["row"].why_unranked == (
        "duplicates"
    )
    row = table([*base, run("row", names[:2000])])["row"]
    assert row.unchecked == ("leak",)
    # The same images under two seeds are no second run.
    twice = [run("row", names[:2000]), run("row", names[:2000], 1)]
    assert table([*base, *twice])["row"].copies.share == 0.5


def test_dealt_out_groups_have_no_rank(block, make_counted):
    facts = {"fairness": {"quota": {"quota": True}}}
    record = make_counted("row", (1000, 1000), facts=facts)
    assert why(block, record) == "quota"
    assert table([*block, record])["row"].flags == ("quota",)


def test_without_a_baseline_the_command_that_makes_it_is_named(make_counted):
    row = table([make_counted("row", (1200, 800))])["row"]
    assert row.why_unranked == "baseline"
    assert (
        "fairbench run --method vanilla --dataset cartoonfaces --task gender "
        "--backbone cartoon-sd --num-images 2000 --seeds 0"
    ) in row.reasons[0]


def test_a_baseline_of_another_target_task_and_size_serves(make_counted):
    row = make_counted("row", (1200, 800))
    other = make_counted("vanilla", (450, 50), task="race", config={"num_images": 500})
    found = table([row, other])["row"]
    # It serves for quality; its number of images is then the largest with a baseline.
    assert found.why_unranked == "protocol"
    assert "num_images 2000, protocol 500" in found.reasons[0]
    alike = make_counted("vanilla", (1800, 200), task="race")
    assert table([row, alike])["row"].why_unranked == ""
    target = {"target": {"female": 0.2, "male": 0.8}}
    skewed = make_counted("vanilla", (1800, 200), config=target)
    assert table([row, skewed])["row"].why_unranked == "protocol"


def test_filters_change_neither_ranks_nor_reasons(make_counted):
    records = [
        make_counted("row", (1200, 800)),
        make_counted("vanilla", (1800, 200), task="race"),
    ]
    (row,) = rows(records, task="gender", warn=refuse)
    assert (row.rank, row.why_unranked) == ("1", "")


def test_a_method_is_ranked_once_by_its_defaults(make_counted):
    def run(strength, **config):
        return make_counted(
            "fairgen", (1100, 900), config={"parameters": {"strength": strength}, **config}
        )

    baseline = make_counted("vanilla", (1800, 200))
    table = rows([baseline, run(1.0), run(2.5)], warn=refuse)
    words = {row.label: row.why_unranked for row in table if row.method == "fairgen"}
    assert words == {"": "", "strength=2.5": "setting"}
    reasons = next(row.reasons for row in table if row.label == "strength=2.5")
    assert reasons == ("strength=2.5, default 1.0; one row a method is ranked",)
    table = rows([baseline, run(1.0, preset="as_released")], warn=refuse)
    assert [row.why_unranked for row in table if row.method == "fairgen"] == ["setting"]


def test_a_card_may_name_the_preset_that_is_ranked(make_counted):
    card = {"ranked_preset": "best"}
    runs = [
        make_counted("vanilla", (1800, 200)),
        make_counted("row", (1100, 900), config={"preset": "best"}, card=card),
        make_counted("row", (1150, 850), card=card),
    ]
    found = [row for row in rows(runs, warn=refuse) if row.method == "row"]
    assert [(row.label, row.why_unranked) for row in found] == [("best", ""), ("", "setting")]


def test_of_two_versions_the_newer_is_ranked(make_counted):
    runs = [
        make_counted("vanilla", (1800, 200)),
        make_counted("row", (1100, 900), config={"version": 1}),
        make_counted("row", (1150, 850), config={"version": 2}),
    ]
    words = {row.label: row.why_unranked for row in rows(runs, warn=refuse)}
    assert (words["version=1"], words["version=2"]) == ("setting", "")


def test_seeds_are_asked_for_where_any_row_has_them(make_counted):
    runs = [make_counted("vanilla", (1800, 200)), make_counted("one", (1200, 800))]
    assert table(runs)["one"].why_unranked == ""
    many = [make_counted("many", (1200, 800), seed) for seed in range(3)]
    found = table([*runs, *many])
    assert (found["one"].why_unranked, found["many"].why_unranked) == ("seeds", "")
    assert found["many"].luck
    two = [make_counted("two", (1200, 800), seed) for seed in range(2)]
    found = table([*runs, *two])
    assert (found["one"].why_unranked, found["two"].why_unranked) == ("seeds", "")
    assert not found["two"].luck


def test_all_reasons_are_told_and_the_first_is_the_word(block, make_counted):
    record = make_counted("row", (1200, 800), validity=0.06, kernel=12.0)
    row = table([*block, record])["row"]
    assert row.why_unranked == "validity"
    assert [reason.split()[0] for reason in row.reasons] == ["6.0%", "its"]


def test_images_made_elsewhere_rank_against_the_baseline_that_they_name(make_counted):
    def run(name, kernel, told=True):
        usual = {"value": 0.97, "low": 0.96, "high": 0.98, "n": 2000}
        near = {"value": 0.06, "low": 0.05, "high": 0.07, "n": 2000}
        scores = {"validity": usual, "kernel_cartoonfaces_reweighted": near}
        facts = {"baseline": {"key": "0" * 16, "method": "raw", "scores": scores}} if told else {}
        return make_counted(
            name,
            (1200, 800),
            kernel=kernel,
            facts=facts,
            card={"ranked": told},
            config={"evaluated": name, "backbone": ""},
        )

    found = table([run("near", 0.06), run("far", 12.0), run("alone", 0.06, told=False)])
    words = {name: row.why_unranked for name, row in found.items()}
    assert words == {"near": "", "far": "quality", "alone": "baseline"}
    assert found["near"].rank == "1"
    assert "fairbench evaluate --baseline" in found["alone"].reasons[0]


def test_a_row_that_was_trained_with_another_bias_is_a_setting(block, make_counted):
    half = "gender:female=0.5,male=0.5"
    usual = make_counted("trained", (1300, 700))
    other = make_counted("trained", (1100, 900), config={"bias": half})
    table = rows([*block, usual, other], warn=refuse)
    (row,) = [row for row in table if row.config.get("bias")]
    assert (row.label, row.why_unranked) == (f"bias={half}", "setting")
    assert row.reasons == (f"trained with the bias {half}; one row a method is ranked",)
    assert [row.why_unranked for row in table if row.method == "trained"].count("") == 1
