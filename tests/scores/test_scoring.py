import dataclasses
import json
import math
import re
from fnmatch import fnmatchcase

import numpy as np
import pytest

from fairbench.core.errors import InputError
from fairbench.core.keys import plain
from fairbench.core.measurements import Measurements
from fairbench.core.task import Control, Prompt, Task
from fairbench.metrics import (
    corrected_discrepancy,
    mutual_information,
    subgroup_coverage,
    subgroup_lattice,
    worse_interval,
)
from fairbench.scores.catalogue import spec_of, specs
from fairbench.scores.intersections import effective_groups, joint_excess
from fairbench.scores.parts.crossings import Reading, Sample, crossing, crossings, target_of
from fairbench.scores.parts.evidence import Columns, Reference
from fairbench.scores.parts.shares import information
from fairbench.scores.scoring import score_all
from fairbench.scores.strata import check_controls

LEVELS = {"role": ("cook", "judge"), "gender": ("f", "m"), "race": ("a", "b")}
SENSITIVE = ("gender", "race")
ENCODERS = {"enc": Columns("enc", "frechet_enc", "kernel_enc")}
CLEAN = np.diag([500, 500])
CONFUSIONS = {
    name: {"gender": CLEAN, "race": CLEAN, "gender/race": np.diag([250] * 4)}
    for name in ("one", "two")
}


def task(per_prompt=False, attributes=("gender",), target=None):
    prompts = tuple(Prompt(role, {"role": role}, "a photo of {}") for role in LEVELS["role"])
    sizes = math.prod(len(LEVELS[name]) for name in attributes)
    return Task(
        "t",
        {name: LEVELS[name] for name in attributes},
        prompts if per_prompt else prompts[:1],
        target or (1 / sizes,) * sizes,
        per_prompt,
    )


def one_hot(labels, size):
    # Sure, but not so sure that a soft share equals a hard one.
    table = np.full((len(labels), size), 0.02 / (size - 1), dtype=np.float32)
    table[np.arange(len(labels)), labels] = 0.98
    return table


def features(labels, seed):
    """Each cell of gender × race has a mean of its own."""
    cell = crossing(labels, SENSITIVE, LEVELS)
    noise = np.random.default_rng(seed).normal(size=(len(cell), 4))
    return (noise + np.eye(4)[cell] * 2).astype(np.float32)


def sample(
    gender, race, *, role=None, prompts=None, valid=None, second=None, requested=None, batch=None
):
    n = len(gender)
    labels = {
        "role": np.zeros(n, dtype=int) if role is None else np.asarray(role),
        "gender": np.asarray(gender),
        "race": np.asarray(race),
    }
    probabilities = {name: one_hot(labels[name], len(LEVELS[name])) for name in LEVELS}
    other = {**probabilities}
    if second is not None:
        other["gender"] = one_hot(np.asarray(second), 2)
    measured = Measurements(
        {"enc": features(labels, 1)},
        {"one": probabilities, "two": other},
        np.ones(n, dtype=bool) if valid is None else np.asarray(valid),
    )
    return Sample(
        measured,
        np.zeros(n, dtype=np.int64) if prompts is None else np.asarray(prompts),
        None if requested is None else np.asarray(requested),
        np.arange(n) if batch is None else np.asarray(batch),
    )


def reference(prompts=1, each=60, natural=None):
    cells = np.tile(np.repeat(np.arange(4), each), prompts)
    labels = {"gender": cells // 2, "race": cells % 2}
    index = np.repeat(np.arange(prompts), 4 * each)
    labels["role"] = index
    return Reference({"enc": features(labels, 2)}, labels, index, natural)


def agree_with_their_specs(scores):
    """Every score has one most specific spec, which tells its direction and its unit."""
    for score in scores:
        matching = [spec for spec in specs() if fnmatchcase(score.name, spec.pattern)]
        best = max((spec.specificity for spec in matching), default=None)
        (spec,) = (one for one in matching if one.specificity == best)
        assert spec is spec_of(score.name)
        assert (spec.better, spec.unit) == (score.better, score.unit), score.name


def scored(a_sample, a_task=None, a_reference=None, **more):
    a_task = a_task or task()
    a_reference = a_reference or reference(len(a_task.prompts))
    confusions = more.pop("confusions", CONFUSIONS)
    scores, tables, facts = score_all(
        a_sample, a_reference, a_task, LEVELS, SENSITIVE, confusions, ENCODERS, **more
    )
    names = [score.name for score in scores]
    assert len(set(names)) == len(names)
    agree_with_their_specs(scores)
    return {score.name: score for score in scores}, tables, facts


def mixed(n=400, male=0.7, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random(n) < male).astype(int), (rng.random(n) < 0.4).astype(int)


WITHOUT_INTERVAL = ("coverage_at_", "group_gap", "frechet_enc_worst", "recall_enc_worst")


def test_every_number_says_n_and_source_and_nearly_every_one_how_sure_it_is():
    scores, tables, _ = scored(sample(*mixed()))
    for score in scores.values():
        assert score.n > 0
        assert score.source
        assert math.isfinite(score.value)
        if not any(part in score.name for part in WITHOUT_INTERVAL):
            if score.unit == "nats" and score.value < 0:  # less its bias, while ends are possible
                assert score.low == 0 < score.high
                continue
            assert score.low <= score.value <= score.high, score.name
            assert score.interval
    for suffix in [
        "soft",
        "l1",
        "tv",
        "kl",
        "pairwise",
        "delta",
        "mad",
        "entropy_gap",
        "squared",
        "normalised",
    ]:
        assert f"fairness_discrepancy_{suffix}" in scores
    assert tables.keys() == {"gender", "race", "gender/race", "role"}


def test_the_ranked_score_is_corrected_and_of_the_worse_judge():
    gender, race = mixed()
    second = np.where(np.arange(400) % 10 == 0, 1, gender)  # sees more men
    confusions = {
        **CONFUSIONS,
        "two": {**CONFUSIONS["two"], "gender": np.array([[450, 50], [0, 500]])},
    }
    scores, _, facts = scored(sample(gender, race, second=second), confusions=confusions)
    found = {
        judge: corrected_discrepancy(np.bincount(labels), confusions[judge]["gender"], [0.5, 0.5])
        for judge, labels in (("one", gender), ("two", second))
    }
    worse = max(found.values(), key=lambda one: one.value)
    ranked = scores["fairness_discrepancy_corrected"]
    assert ranked.value == worse.value
    # The worse one is picked for being larger, so its interval alone would be too short.
    assert (ranked.low, ranked.high) == worse_interval(list(found.values()))
    assert ranked.low == min(one.low for one in found.values()) < worse.low
    assert ranked.floor >= max(one.floor for one in found.values())
    details = facts["fairness"]["corrected"]["fairness_discrepancy_corrected"]
    assert details["one"]["value"] == found["one"].value
    assert details["two"]["value"] == found["two"].value
    assert scores["fairness_discrepancy"].value == pytest.approx(
        math.sqrt(2) * abs(gender.mean() - 0.5)
    )


@pytest.mark.parametrize(
    "poor", [[[260, 240], [240, 260]], [[200, 300], [260, 240]], [[500, 0], [500, 0]]]
)
def test_a_judge_too_poor_to_be_corrected_leaves_the_ranked_score_out(poor):
    poor = np.array(poor)
    confusions = {**CONFUSIONS, "two": {**CONFUSIONS["two"], "gender": poor}}
    scores, _, facts = scored(sample(*mixed()), confusions=confusions)
    assert "fairness_discrepancy_corrected" not in scores
    assert facts["not_measured"]["fairness_discrepancy_corrected"] == "judge two: ill_conditioned"
    assert "fairness_discrepancy" in scores
    json.dumps(facts["fairness"]["corrected"], allow_nan=False)  # a record can hold it


def test_opposite_prompts_are_not_fair_together():
    prompts = np.arange(400) % 2
    _, race = mixed()
    scores, tables, facts = scored(
        sample(prompts, race, prompts=prompts, role=prompts), task(per_prompt=True)
    )
    assert scores["fairness_discrepancy"].value == pytest.approx(math.sqrt(0.5))
    assert scores["fairness_discrepancy_worst_prompt"].value == pytest.approx(math.sqrt(0.5))
    # What pooling prompts, as some published code does, would have said.
    assert scores["fairness_discrepancy_pooled"].value == 0
    assert scores["prompt_dependence"].value == pytest.approx(math.log(2), abs=0.002)
    assert {"gender|cook", "gender|judge"} <= tables.keys()
    assert facts["fairness"]["by_prompt"]["cook"]["value"] == pytest.approx(math.sqrt(0.5))
    worst = facts["fairness"]["by_prompt_epsilon"]["top"][0]
    assert {worst["more"], worst["less"]} == {"cook", "judge"}
    assert worst["log_ratio"] == pytest.approx(math.log(401))  # (200 + 1/2) / (0 + 1/2)


def test_a_vanished_group_counts_as_none_at_all():
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(4), 100)
    whole, _, _ = scored(sample(cell // 2, cell % 2))
    gone = rng.permutation(cell[cell != 3])
    scores, tables, facts = scored(sample(gone // 2, gone % 2))
    assert scores["representation_worst"].value == 0
    assert scores["representation_min_over_max"].value == 0
    assert scores["coverage_at_1"].value == 0.75
    assert scores["effective_groups"].value < whole["effective_groups"].value
    fair = ("fairness", "representation", "differential", "effective", "coverage_at", "joint")
    for name, score in scores.items():
        if name.startswith(fair) and score.better != "neither":
            worse = score.value - whole[name].value
            assert worse >= 0 if score.better == "lower" else worse <= 0, name
    assert tables["gender/race"][3]["count"] == 0
    # Quality of a group that isn't there is not measurable, and it isn't skipped.
    assert "kernel_enc_worst_group" not in scores
    assert facts["not_measured"]["kernel_enc_worst_group"].startswith("m/b has 0 generated")


def test_the_three_references_tell_composition_from_quality():
    gender, race = mixed(600, male=0.9)
    natural = np.array([[0.06, 0.04, 0.54, 0.36]])
    scores, _, _ = scored(sample(gender, race), None, reference(each=150, natural=natural))
    # Perfect images in the wrong proportions.
    assert scores["kernel_enc_balanced"].low > 0
    for name in ("kernel_enc_reweighted", "kernel_enc_natural"):
        assert scores[name].low < 0 < scores[name].high
    assert scores["frechet_enc_reweighted"].value < scores["frechet_enc_balanced"].value / 2


def test_the_worst_group_by_draws_that_have_no_image_in_common():
    cell = np.repeat(np.arange(4), 150)
    a_sample = sample(cell // 2, cell % 2)
    shifted = a_sample.measured.features["enc"].copy()
    shifted[cell == 2, :2] += 3
    measured = dataclasses.replace(a_sample.measured, features={"enc": shifted})
    worse = dataclasses.replace(a_sample, measured=measured)
    scores, _, _ = scored(worse, None, reference(each=150))
    for name, expected_is_better in (
        ("frechet_enc_worst_group", 1),
        ("recall_enc_worst_group", -1),
    ):
        worst = scores[name]
        assert ": m/a; " in worst.source
        assert "no image in common, of the worst of 4 groups" in worst.interval
        assert worst.low <= worst.value <= worst.high
        expected = re.search(r"; (\S+) expected of the worst if all were equal", worst.source)
        assert expected_is_better * (worst.value - float(expected[1])) > 0
        assert scores[name.replace("worst_group", "group_gap")].low is None
    # 119 images of a group are too few for four draws.
    few, _, _ = scored(a_sample, None, reference(each=119))
    for kind in ("frechet", "recall"):
        assert few[f"{kind}_enc_worst_group"].low is None
        assert "too few images for draws" in few[f"{kind}_enc_worst_group"].source


def test_blurring_one_group_shows_in_its_quality_alone():
    cell = np.repeat(np.arange(4), 100)
    a_sample = sample(cell // 2, cell % 2)
    spoiled = a_sample.measured.features["enc"].copy()
    spoiled[cell == 2] *= 0.2
    measured = dataclasses.replace(a_sample.measured, features={"enc": spoiled})
    scores, tables, _ = scored(dataclasses.replace(a_sample, measured=measured))
    worst = scores["kernel_enc_worst_group"]
    assert ": m/a; " in worst.source
    assert "expected of the worst if all were equal" in worst.source
    assert worst.low < worst.value < worst.high
    by_group = [row["quality"]["enc"]["kernel"]["value"] for row in tables["gender/race"]]
    assert np.argmax(by_group) == 2
    assert max(by_group) > 5 * sorted(by_group)[-2]


def test_no_valid_image_leaves_quality_only():
    gender, race = mixed(100)
    scores, tables, facts = scored(sample(gender, race, valid=np.zeros(100, dtype=bool)))
    assert scores["validity"].value == 0
    assert "frechet_enc_balanced" in scores
    fair = [name for name in scores if name.startswith("fairness")]
    assert fair == ["fairness_discrepancy_penalised"]  # it needs none, and it is far from fair
    assert scores["fairness_discrepancy_penalised"].value > 1
    assert tables == {}
    assert facts["not_measured"]["fairness_discrepancy_corrected"] == "no valid image among 100"


def test_invalid_images_count_against_a_method():
    gender, race = np.arange(400) % 2, np.arange(400) // 2 % 2
    valid = np.arange(400) >= 80
    scores, _, facts = scored(sample(gender, race, valid=valid))
    assert scores["fairness_discrepancy"].value == 0
    assert scores["fairness_discrepancy_penalised"].value == pytest.approx(
        math.sqrt(0.2**2 + 2 * 0.1**2)
    )
    assert scores["fairness_discrepancy_penalised"].n == 400
    assert facts["fairness"]["worst_case"]["high"] > 0.1


def test_alternation_is_flagged():
    _, _, facts = scored(sample(np.arange(400) % 2, mixed()[1]))
    assert facts["fairness"]["quota"]["quota"] is False  # one exact hit is no proof
    prompts = np.repeat([0, 1], 200)
    _, _, facts = scored(
        sample(np.arange(400) % 2, mixed()[1], prompts=prompts, role=prompts),
        task(per_prompt=True),
    )
    assert facts["fairness"]["quota"]["p_value"] < 0.01


def test_coupled_batches_widen_what_rests_on_them():
    rng = np.random.default_rng(3)
    drawn = np.repeat(rng.integers(2, size=20), 20)  # one draw for each batch of twenty
    _, race = mixed()
    alone, _, _ = scored(sample(drawn, race))
    coupled, _, facts = scored(sample(drawn, race, batch=np.repeat(np.arange(20), 20)))
    assert facts["fairness"]["design_effect"]["gender"] == pytest.approx(20, rel=0.2)
    for name in ("fairness_discrepancy", "fairness_discrepancy_corrected"):
        assert coupled[name].value == alone[name].value
        assert coupled[name].floor > 3 * alone[name].floor
        assert "batches" in coupled[name].interval
        assert coupled[name].high > alone[name].high
    prompts = np.repeat([0, 1], 200)
    by_prompt = {"prompts": prompts, "role": prompts}
    for batch in (None, np.repeat(np.arange(20), 20)):
        scores, _, _ = scored(sample(drawn, race, batch=batch, **by_prompt), task(per_prompt=True))
        if batch is None:
            alone = scores
    for name in ("fairness_discrepancy", "fairness_discrepancy_corrected"):
        assert scores[name].value == alone[name].value
        assert scores[name].floor > 3 * alone[name].floor
        assert scores[name].high - scores[name].low > 2 * (alone[name].high - alone[name].low)


COUPLED = [
    "soft",
    "l1",
    "kl",
    "pairwise",
    "squared",
    "normalised",
    "penalised",
    "worst_prompt",
    "pooled",
]


@pytest.mark.parametrize("per_prompt", [False, True])
def test_coupled_batches_widen_the_family_and_the_tables_too(per_prompt):
    rng = np.random.default_rng(3)
    drawn = np.repeat(rng.integers(2, size=40), 10)
    _, race = mixed()
    # So that penalised discrepancies have something to penalise, batch by batch.
    valid = np.arange(400) // 10 % 5 > 0
    prompts = np.repeat([0, 1], 200)
    given = {"valid": valid, "requested": drawn}
    if per_prompt:
        given |= {"prompts": prompts, "role": np.where(drawn, prompts, 1 - prompts)}
    question = task(per_prompt)
    alone, plain_tables, plain_facts = scored(sample(drawn, race, **given), question)
    batch = np.repeat(np.arange(40), 10)
    coupled, tables, facts = scored(sample(drawn, race, batch=batch, **given), question)
    names = [f"fairness_discrepancy_{name}" for name in COUPLED]
    names += ["joint_excess", "effective_groups", "validity"]
    names += ["prompt_accuracy"] if per_prompt else []
    for name in names:
        if name in alone or per_prompt:
            one, other = alone[name], coupled[name]
            assert other.value == one.value
            assert other.high - other.low > 1.3 * (one.high - one.low), name
            assert "worth the batches" in other.interval
    for name in ("l1", "soft", "kl"):
        floors = [scores[f"fairness_discrepancy_{name}"].floor for scores in (alone, coupled)]
        # The floor of a mean over prompts is known for the ranked columns alone.
        assert floors == [None, None] if per_prompt else floors[1] > 2 * floors[0]
    for name, rows in tables.items():
        for row, before in zip(rows, plain_tables[name], strict=True):
            assert (row["count"], row["share"]) == (before["count"], before["share"])
            assert row["low"] <= before["low"] <= before["high"] <= row["high"]
            assert "worth the batches" in row["interval"]
            assert "interval" not in before
            if name.startswith("gender") and "/" not in name:
                assert row["high"] - row["low"] > 2 * (before["high"] - before["low"])
            if name == "gender":
                wide, narrow = (
                    t["corrected"]["high"] - t["corrected"]["low"] for t in (row, before)
                )
                assert wide > 1.5 * narrow
    for row, before in zip(
        facts["validity_by_requested"], plain_facts["validity_by_requested"], strict=True
    ):
        assert row["value"] == before["value"]
        assert row["high"] - row["low"] > 1.5 * (before["high"] - before["low"])


def test_batches_of_one_image_change_nothing():
    gender, race = mixed()
    prompts = np.repeat([0, 1], 200)
    by_prompt = {"prompts": prompts, "role": prompts, "requested": gender}
    shuffled = np.random.default_rng(0).permutation(400) * 7
    for question in (task(), task(True), task(attributes=("gender", "race"))):
        given = by_prompt if question.per_prompt else {}
        plain_sample = sample(gender, race, **given)
        assert scored(sample(gender, race, batch=shuffled, **given), question) == scored(
            plain_sample, question
        )


def test_a_single_batch_has_no_family_floor_and_says_why():
    scores, tables, facts = scored(sample(*mixed(), batch=np.zeros(400, dtype=int)))
    alone, _, _ = scored(sample(*mixed()))
    for name in ("l1", "soft", "kl"):
        score = scores[f"fairness_discrepancy_{name}"]
        assert score.floor is None
        assert score.high == alone[f"fairness_discrepancy_{name}"].high
        assert score.interval.endswith("given what each batch of dependent images drew")
    assert "single batch" in facts["fairness"]["no_floor"]
    assert tables["gender"][0]["interval"].endswith("batch of dependent images drew")


def test_batches_that_balance_each_other_are_not_taken_for_certainty():
    _, race = mixed()
    scores, _, facts = scored(sample(np.arange(400) % 2, race, batch=np.repeat(np.arange(20), 20)))
    # As if z² images had gone astray among the 200 that independent ones would have as variance.
    assert facts["fairness"]["design_effect"]["gender"] == pytest.approx(1.96**2 / 200, rel=1e-3)
    assert 0 < scores["fairness_discrepancy"].high < 0.03
    # What the judges read wrongly on labelled images remains.
    assert scores["fairness_discrepancy_corrected"].floor > 0.004
    few = sample(np.arange(400) % 2, race, batch=np.repeat(np.arange(2), 200))
    assert scored(few)[0]["fairness_discrepancy"].high > 0.06  # two batches may balance by luck


def test_a_single_batch_has_no_floor_and_says_what_its_interval_leaves_out():
    scores, _, facts = scored(sample(*mixed(), batch=np.zeros(400, dtype=int)))
    for name in ("fairness_discrepancy_corrected", "fairness_discrepancy"):
        assert scores[name].floor is None
        assert scores[name].interval.endswith("given what each batch of dependent images drew")
        assert name not in facts["fair"]


@pytest.mark.parametrize("per_prompt", [False, True])
def test_a_target_may_want_none_of_a_group(per_prompt):
    prompts = np.repeat([0, 1], 200)
    scores, tables, facts = scored(
        sample(*mixed(), prompts=prompts, role=prompts), task(per_prompt, target=(1.0, 0.0))
    )
    assert scores["fairness_discrepancy"].value > 0.9
    plain([list(scores.values()), tables, facts])  # what a record can hold
    assert "infinite" in facts["not_measured"]["fairness_discrepancy_kl"]


def test_a_norm_without_a_finite_upper_end_is_reported():
    gender, race = np.zeros(300, dtype=int), np.arange(300) % 2
    scores, tables, facts = scored(sample(gender, race), task(target=(1.0, 0.0)))
    found = scores["fairness_discrepancy_kl"]
    assert (found.value, found.low, found.high) == (0, 0, None)
    assert "no finite upper end" in found.interval
    plain([list(scores.values()), tables, facts])  # what a record can hold


def test_scores_carry_the_version_of_their_spec():
    scores, _, _ = scored(sample(*mixed()))
    assert all(score.version == spec_of(name).version for name, score in scores.items())
    assert scores["joint_excess"].version == 3
    assert scores["fairness_discrepancy_corrected"].version == 4
    assert scores["validity"].version == 2


def test_a_seed_moves_no_number_that_is_given_a_reference():
    def given(seed):
        scores, _, _ = scored(sample(*mixed()), seed=seed)
        return {
            name: (score.value, score.low, score.high)
            for name, score in scores.items()
            if name in ("precision_enc", "recall_enc", "density_enc", "coverage_enc")
        }

    assert given(0) == given(1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_valid_images_are_measured_as_far_as_they_go(count):
    scores, tables, facts = scored(sample(*mixed(), valid=np.arange(400) < count))
    assert scores["fairness_discrepancy"].n == count
    plain([list(scores.values()), tables, facts])


def test_a_prompt_without_a_valid_image_is_named_and_counts_against_the_method():
    prompts = np.repeat([0, 1], 200)
    scores, _, facts = scored(
        sample(*mixed(), prompts=prompts, role=prompts, valid=prompts == 0), task(per_prompt=True)
    )
    assert "a photo of a judge" in facts["not_measured"]["fairness_discrepancy_corrected"]
    assert scores["fairness_discrepancy_penalised"].value > 0.5


def test_columns_of_public_encoders_are_plain_words():
    gender, race = mixed()
    a_sample = sample(gender, race)
    x = a_sample.measured.features["enc"]
    measured = dataclasses.replace(
        a_sample.measured,
        features={"inception@clean": x, "clip-vit-b-32": x},
        logits={"inception@clean": x},
        alignment={"clip-vit-b-32": x[:, 0]},
    )
    real = reference()
    features = {"inception@clean": real.features["enc"], "clip-vit-b-32": real.features["enc"]}
    columns = {
        "inception@clean": Columns("inception_clean", "fid", "kid"),
        "clip-vit-b-32": Columns("clip", "frechet_clip", "kernel_clip"),
    }
    scores, _, facts = score_all(
        dataclasses.replace(a_sample, measured=measured),
        dataclasses.replace(real, features=features),
        task(),
        LEVELS,
        SENSITIVE,
        CONFUSIONS,
        columns,
    )
    names = {score.name for score in scores}
    assert names >= {
        "fid_balanced",
        "fid_reweighted",
        "kid_balanced",
        "inception_score",
        "precision_inception_clean",
        "frechet_clip_balanced",
        "cmmd_clip_balanced",
        "clip_score_clip",
    }
    agree_with_their_specs(scores)
    assert all(re.fullmatch(r"\w+", name) for name in names)
    assert "fid_infinity_balanced" in facts["not_measured"]


def test_images_near_to_those_learned_from_are_told_from_new_ones():
    gender, race = mixed()
    own = sample(gender, race)
    x = own.measured.features["enc"]
    labels = {"gender": gender, "race": race}
    others = features(labels, 3)
    assert not {"memorisation_enc", "copies_enc"} & set(scored(own)[0])  # nobody learned from any
    fresh, _, _ = scored(own, seen={"enc": others})
    assert fresh["memorisation_enc"].low <= 0.5 <= fresh["memorisation_enc"].high
    assert fresh["copies_enc"].value < 0.05
    near = x + 1e-3 * others
    copied, _, _ = scored(own, seen={"enc": near})
    assert copied["memorisation_enc"].low > 0.9
    assert copied["copies_enc"].value > 0.9
    assert (copied["copies_enc"].n, copied["copies_enc"].better) == (400, "lower")
    assert "of 400 images learned from, against 240 unseen" in copied["copies_enc"].source
    real = reference()
    women = real.labels["gender"] == 0
    part = dataclasses.replace(
        real,
        features={"enc": real.features["enc"][women]},
        labels={name: values[women] for name, values in real.labels.items()},
        prompt_index=real.prompt_index[women],
    )
    lacking, _, facts = scored(own, a_reference=part, seen={"enc": others})
    assert "memorisation_enc" not in lacking
    assert facts["not_measured"]["memorisation_enc"].startswith("no real image of ")


def test_requested_groups_have_hits_and_validity():
    gender, race = mixed()
    requested = np.where(np.arange(400) < 40, 1 - gender, gender)
    valid = requested == 1
    scores, _, facts = scored(sample(gender, race, requested=requested, valid=valid))
    matrix = np.array(facts["hit_matrix"]["counts"])
    assert matrix.sum() == valid.sum()
    assert scores["hit_rate"].value == np.trace(matrix) / matrix.sum()
    rows = facts["validity_by_requested"]
    assert [row["value"] for row in rows] == [0, 1]


def test_given_labels_check_the_judge():
    gender, race = mixed()
    given = np.where(np.arange(400) < 20, 1 - gender, gender)
    scores, _, facts = scored(sample(gender, race), given={"gender": given})
    assert scores["judge_agreement_gender"].value == 0.95
    assert scores["fairness_discrepancy_given"].value == pytest.approx(
        math.sqrt(2) * abs(given.mean() - 0.5)
    )
    assert np.sum(facts["audit"]["gender"]) == 400


def test_same_arrays_same_scores_and_the_seed_moves_only_intervals():
    a_sample = sample(*mixed())
    one, two, other = scored(a_sample)[0], scored(a_sample)[0], scored(a_sample, seed=5)[0]
    assert one == two
    fair = [name for name in one if name.startswith(("fairness", "joint", "effective"))]
    assert [one[name].value for name in fair] == [other[name].value for name in fair]
    assert any(one[name].low != other[name].low for name in fair)


def test_numbers_from_counts_agree_with_the_metrics():
    gender, race = mixed()
    counts = np.bincount(gender * 2 + race, minlength=4).reshape(2, 2)
    assert information(counts) == pytest.approx(mutual_information(counts).corrected)
    assert effective_groups(counts) == pytest.approx(subgroup_coverage(counts).effective_groups)
    labels = np.stack([gender, race], axis=1)
    lattice = subgroup_lattice(labels, {name: LEVELS[name] for name in SENSITIVE})
    assert joint_excess(counts, np.full(4, 0.25)) == pytest.approx(lattice.joint_excess)


def test_fair_over_all_and_unfair_within_every_stratum():
    _, race = mixed()
    gender = np.arange(400) % 2
    band = Control("age", ("old", "young", "unborn"), gender)
    scores, tables, facts = scored(sample(gender, race), controls=[band])
    plain_scores, plain_tables, plain_facts = scored(sample(gender, race))
    assert scores == plain_scores
    assert scores["fairness_discrepancy"].value == 0
    old, young, unborn = facts.pop("control")["age"]
    assert facts == plain_facts
    assert [row["discrepancy"]["gender"]["value"] for row in (old, young)] == [
        pytest.approx(math.sqrt(0.5))
    ] * 2
    assert old["representation"]["min_over_max"] == 0
    assert unborn == {"level": "unborn", "n": 0}
    assert {*tables} - {*plain_tables} == {
        f"{name}|age={level}"
        for name in ("gender", "race", "gender/race")
        for level in ("old", "young")
    }
    assert [row["count"] for row in tables["gender|age=young"]] == [0, 200]


def test_strata_of_a_judged_attribute_count_coupled_batches_and_any_target():
    rng = np.random.default_rng(3)
    drawn, race = np.repeat(rng.integers(2, size=40), 10), mixed()[1]
    role = np.arange(400) // 10 % 2
    wanted = task(target=(1.0, 0.0))
    control = [Control("role", LEVELS["role"])]
    _, _, plain_facts = scored(sample(drawn, race, role=role), wanted, controls=control)
    batch = np.repeat(np.arange(40), 10)
    a_sample = sample(drawn, race, role=role, batch=batch)
    _, _, facts = scored(a_sample, wanted, controls=control)
    for row, before in zip(facts["control"]["role"], plain_facts["control"]["role"], strict=True):
        found, narrow = (one["discrepancy"]["gender"] for one in (row, before))
        assert found["high"] - found["low"] > 2 * (narrow["high"] - narrow["low"])
        assert row["representation"] is None  # no ratio to a target of 0
    plain(facts)
    one_batch = dataclasses.replace(a_sample, batch_id=np.zeros(400, dtype=int))
    _, _, facts = scored(one_batch, controls=control)
    assert facts["control"]["role"][0]["discrepancy"]["gender"]["floor"] is None


def test_controls_are_checked():
    with pytest.raises(InputError, match="leaves no attribute"):
        check_controls(["gender"], LEVELS, ("gender",))
    assert [c.name for c in check_controls(["role", "race", "role"], LEVELS, SENSITIVE)] == [
        "role",
        "race",
    ]


def with_instruments(a_sample, judges=("one", "two"), checked=True):
    measured = a_sample.measured
    probabilities = {name: measured.probabilities[name] for name in judges}
    valid = measured.valid if checked else np.ones_like(measured.valid)
    changed = dataclasses.replace(
        measured, probabilities=probabilities, valid=valid, validity_checked=checked
    )
    return dataclasses.replace(a_sample, measured=changed)


def test_a_single_judge_is_named_and_disagrees_with_nobody():
    both, _, _ = scored(sample(*mixed()))
    alone = with_instruments(sample(*mixed()), judges=["one"])
    scores, _, facts = scored(alone, confusions={"one": CONFUSIONS["one"]})
    assert both["fairness_discrepancy_corrected"].source.startswith("the worse of 2 judges (")
    ranked = scores["fairness_discrepancy_corrected"]
    assert ranked.source == "judge one, classifier error corrected, valid images"
    assert ranked.value == both["fairness_discrepancy_corrected"].value
    assert {*both} - {*scores} == {"judge_disagreement_gender", "judge_disagreement_race"}
    assert facts["fairness"]["corrected"]["fairness_discrepancy_corrected"].keys() == {"one"}


def test_without_a_validity_check_every_image_counts():
    gender, race = mixed()
    given = {"requested": gender}
    checked, tables, facts = scored(sample(gender, race, **given))
    scores, same_tables, other_facts = scored(
        with_instruments(sample(gender, race, **given), checked=False)
    )
    assert {*checked} - {*scores} == {"validity", "fairness_discrepancy_penalised"}
    assert scores == {name: checked[name] for name in scores}
    assert same_tables == tables
    assert {*facts} - {*other_facts} == {"validity_by_requested"}
    for name in ("validity", "fairness_discrepancy_penalised"):
        assert other_facts["not_measured"][name] == "this data set has no validity check"


BALANCED = {
    *("frechet_enc_balanced", "kernel_enc_balanced", "vendi_enc"),
    *("precision_enc", "recall_enc", "density_enc", "coverage_enc"),
}


def test_balanced_columns_rest_on_balanced_rows_alone():
    a_sample, whole = sample(*mixed()), reference()
    rows = np.arange(0, 240, 2)
    half = dataclasses.replace(
        whole,
        features={"enc": whole.features["enc"][rows]},
        labels={name: values[rows] for name, values in whole.labels.items()},
        prompt_index=whole.prompt_index[rows],
    )
    plain_scores, _, _ = scored(a_sample, a_reference=whole)
    only, _, _ = scored(a_sample, a_reference=half)
    part, _, _ = scored(a_sample, a_reference=dataclasses.replace(whole, balanced=rows))
    for name, score in part.items():
        assert score == (only if name in BALANCED else plain_scores)[name]
    assert part["kernel_enc_balanced"] != plain_scores["kernel_enc_balanced"]


def test_a_reference_that_cannot_be_balanced_leaves_those_columns_out():
    reason = "no real image of m/b"
    plain_scores, _, _ = scored(sample(*mixed()))
    lacking = dataclasses.replace(reference(), unbalanced=reason)
    scores, _, facts = scored(sample(*mixed()), a_reference=lacking)
    assert {*plain_scores} - {*scores} == BALANCED
    named = {name for name, why in facts["not_measured"].items() if why == reason}
    assert named == {*BALANCED, "frechet_enc_infinity_balanced"}


def test_crossings_and_targets():
    assert crossings(("a", "b")) == [("a",), ("b",), ("a", "b")]
    asked = task(attributes=("gender",), target=(0.3, 0.7))
    np.testing.assert_allclose(target_of(asked, ("race",), LEVELS), [0.5, 0.5])
    np.testing.assert_allclose(
        target_of(asked, ("race", "gender"), LEVELS), [0.15, 0.35, 0.15, 0.35]
    )


def test_soft_shares_of_a_crossing_multiply():
    reading = Reading(sample([0, 1], [0, 1]), "one", LEVELS, task())
    soft = reading.soft(SENSITIVE)
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    assert soft[0, 0] == pytest.approx(0.98**2, rel=1e-5)
