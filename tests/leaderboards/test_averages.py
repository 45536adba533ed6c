from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fairbench.core.score import Score
from fairbench.leaderboards import rows
from fairbench.leaderboards.formats.csv import to_csv
from fairbench.leaderboards.formats.markdown import to_markdown
from fairbench.metrics import discrepancy_interval, wilson_interval
from fairbench.scores.catalogue import spec_of


def refuse(message):
    raise AssertionError(f"unexpected warning: {message}")


def over_seeds(make_record, scores):
    runs = [make_record(seed=seed, scores=(score,)) for seed, score in enumerate(scores)]
    (row,) = rows(runs, warn=refuse)
    (cell,) = row.scores.values()
    return cell


def test_a_discrepancy_is_that_of_the_mean_shares(make_counted):
    # Off to either side by as much: each run is unfair, the recipe isn't.
    counts = ((1200, 800), (800, 1200), (1000, 1000))
    runs = [make_counted("row", one, seed) for seed, one in enumerate(counts)]
    (row,) = rows(runs, warn=refuse)
    cell = row.scores["fairness_discrepancy_corrected"]
    assert cell.value == pytest.approx(0, abs=1e-12)
    assert cell.low == 0
    # Student's t of 2 degrees over shares that spread by .1.
    assert cell.high == pytest.approx(np.sqrt(2) * 4.302653 * 0.1 / np.sqrt(3), rel=1e-4)
    assert cell.interval == "mean shares of 3 seeds, differences between seeds decide"
    # The floor is that of 6,000 images.
    assert cell.floor == pytest.approx(np.sqrt(3.841459 / 2 / 6000), rel=0.01)


def test_a_single_seed_says_that_it_speaks_for_itself(make_counted):
    (row,) = rows([make_counted("row", (1200, 800))], warn=refuse)
    cell = row.scores["fairness_discrepancy_corrected"]
    assert cell.interval == "this run: wilson"
    assert cell.floor == 0.031


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_fair_generator_is_not_excluded_whatever_the_number_of_seeds(make_record, seeds):
    """Runs whose counts aren't held: the interval of the distances must hold, too."""
    rng, out = np.random.default_rng(0), 0
    for _ in range(60):
        found = [
            discrepancy_interval(rng.multinomial(2000, [0.5, 0.5]), [0.5, 0.5])
            for _ in range(seeds)
        ]
        scores = [
            Score("fairness_discrepancy", f.value, f.low, f.high, 2000, "lower", f.method, 0.0)
            for f in found
        ]
        cell = over_seeds(make_record, scores)
        assert 0 <= cell.low <= cell.value <= cell.high <= np.sqrt(0.5)
        out += cell.low > 0
    assert out / 60 <= 0.06


def test_rates_are_pooled_and_stay_in_range(make_record):
    low, high = wilson_interval(2000, 2000)
    score = Score("validity", 1.0, low, high, 2000, "higher", "wilson", unit="share")
    cell = over_seeds(make_record, [score] * 3)
    # Wilson's lower end of 6,000 of 6,000.
    assert (cell.value, cell.high) == (1.0, 1.0)
    assert cell.low == pytest.approx(1 / (1 + 3.841459 / 6000), abs=1e-6)
    spread = [replace(score, value=value) for value in (0.90, 0.99, 0.96)]
    cell = over_seeds(make_record, spread)
    assert cell.value == pytest.approx(0.95)
    assert cell.low < 0.85
    assert 0.97 < cell.high <= 1.0


def test_rates_of_coupled_images_stay_worth_fewer_of_them(make_record):
    def shared(low, high):
        return Score("validity", 0.9, low, high, 1000, "higher", unit="share", version=1)

    def width(low, high):
        cell = over_seeds(make_record, [shared(low, high)] * 3)
        return cell.high - cell.low

    alone, coupled = wilson_interval(900, 1000), wilson_interval(90, 100)
    assert width(*coupled) > 2.5 * width(*alone)
    # Three runs of 100 images each, as the runs' own intervals say.
    together = wilson_interval(270, 300)
    assert width(*coupled) == pytest.approx(together[1] - together[0])


def test_distances_never_have_negative_ends(make_record):
    def cells(name, values, half):
        scores = [Score(name, v, v - half, v + half, 2000, "lower", "jackknife") for v in values]
        return over_seeds(make_record, scores)

    frechet = cells("frechet_e_balanced", (1.0, 2.0, 6.0), 0.1)
    assert 0 < frechet.low < 1
    assert frechet.high > 6
    assert "of logarithms" in frechet.interval
    kernel = cells("kernel_e_balanced", (0.0001, 0.0002, 0.0006), 0.0001)
    assert kernel.low == 0
    # A measured unbiased square may be negative; the end is then no lower than the value.
    below = cells("kernel_e_balanced", (-0.0001, -0.0002, -0.0003), 0.0001)
    assert below.value < 0
    assert below.low == pytest.approx(below.value)
    steady = cells("kernel_e_balanced", (0.1, 0.1, 0.1), 0.03)
    # The real images are the same for all seeds, and so is their error.
    assert steady.high - steady.value == pytest.approx(0.03)
    sure = cells("judge_confidence_gender", (0.9, 0.9, 0.9), 0.03)
    assert sure.high - sure.value == pytest.approx(0.03 / np.sqrt(3))


def test_numbers_that_chance_moves_one_way_keep_all_of_the_runs_intervals(make_record):
    """A smallest share over the largest is below 1 in each run of a fair generator."""
    scores = [
        Score("representation_min_over_max", v, v - 0.1, 1.0, 2000, "higher", "bootstrap")
        for v in (0.80, 0.82, 0.81)
    ]
    cell = over_seeds(make_record, scores)
    assert (cell.value, cell.high) == (pytest.approx(0.81), 1.0)
    assert cell.interval == "all of the runs' intervals or t over 3 seeds, whichever is wider"


def test_runs_that_agree_on_a_number_without_interval_give_none(make_record):
    score = Score("coverage_at_1", 1.0, None, None, 2000, "higher", unit="share")
    cell = over_seeds(make_record, [score] * 3)
    assert (cell.value, cell.low, cell.high, cell.interval) == (1.0, None, None, "")


def test_every_norm_of_the_mean_shares_has_its_own_scale(make_counted):
    counts = ((1400, 600), (1500, 500), (1450, 550))
    norms = {"l1": 0.45, "tv": 0.225, "mad": 0.225, "delta": 0.45, "normalised": 0.45}
    runs = []
    for seed, one in enumerate(counts):
        run = make_counted("row", one, seed)
        more = [
            Score(f"fairness_discrepancy_{norm}", 0.1, 0.0, 0.2, 2000, "lower", "wilson")
            for norm in norms
        ]
        runs.append(replace(run, scores=(*run.scores, *more)))
    (row,) = rows(runs, warn=refuse)
    raw = row.scores["fairness_discrepancy"]
    for norm, value in norms.items():
        cell = row.scores[f"fairness_discrepancy_{norm}"]
        assert cell.value == pytest.approx(value)
        assert cell.low / cell.value == pytest.approx(raw.low / raw.value, rel=1e-6)
        assert cell.high / cell.value == pytest.approx(raw.high / raw.value, rel=1e-6)


def test_images_that_are_not_valid_are_a_group_of_their_own(make_counted):
    runs = []
    for seed in range(3):
        run = make_counted("row", (900, 900), seed)
        facts = {"estimate": {**run.facts["estimate"], "images": [2000]}}
        score = Score("fairness_discrepancy_penalised", 0.12, 0.1, 0.2, 2000, "lower", "triangle")
        runs.append(replace(run, facts=run.facts | facts, scores=(*run.scores, score)))
    (row,) = rows(runs, warn=refuse)
    cell = row.scores["fairness_discrepancy_penalised"]
    assert cell.value == pytest.approx(np.sqrt(0.1**2 + 2 * 0.05**2))
    assert cell.low < cell.value < cell.high


# Versions of a score's definition.


def kernel(value, version):
    name = "kernel_cartoonfaces_balanced"
    return (Score(name, value, None, None, 2000, "lower", version=version),)


def test_a_number_of_an_older_definition_is_marked(make_record):
    today = spec_of("kernel_cartoonfaces_balanced").version
    told = []
    for version, older in ((today, False), (today - 1, True)):
        runs = [make_record(seed=s, scores=kernel(0.1, version)) for s in (0, 1)]
        (row,) = rows(runs, warn=told.append)
        assert row.scores["kernel_cartoonfaces_balanced"].older is older
        assert ("100.0†" in to_markdown([row])) is older
        assert ("kernel_cartoonfaces_balanced" in to_csv([row]).splitlines()[1]) is older
    assert not told


@pytest.mark.parametrize(
    ("interval", "older"), [("normal", False), ("t, of whole batches", True), ("", False)]
)
def test_what_changed_for_batches_alone_leaves_other_numbers_current(make_record, interval, older):
    spec = spec_of("judge_confidence_gender")
    told = []
    for version in range(spec.batches_since, spec.version):
        score = Score(
            "judge_confidence_gender",
            *(0.9, 0.8, 1.0, 2000, "neither", interval),
            version=version,
        )
        runs = [make_record(seed=0, scores=(score,))]
        # One seed of each: where both are current they are averaged, else they are not mixed.
        runs.append(make_record(seed=1, scores=(replace(score, version=spec.version),)))
        (row,) = rows(runs[:1], warn=told.append)
        assert row.scores["judge_confidence_gender"].older is older
        (both,) = rows(runs, warn=told.append)
        assert ("judge_confidence_gender" in both.scores) is not older


def test_versions_are_never_averaged(make_record):
    today = spec_of("kernel_cartoonfaces_balanced").version
    runs = [make_record(seed=s, scores=kernel(0.1, today - s)) for s in (0, 1)]
    told = []
    (row,) = rows(runs, warn=told.append)
    assert "kernel_cartoonfaces_balanced" not in row.scores
    assert "different versions" in told[0]
    assert "fairbench rescore" in told[0]


@pytest.mark.parametrize(
    ("name", "unit", "values", "ends"),
    [
        ("effective_groups", "", (1e200, 1.5, 2.0), (1.0, 2.0)),
        ("effective_groups", "", (1e308, 1e308, 1e308), (-1e308, 1e308)),
        ("frechet_a_balanced", "", (1e-300, 5.0, 6.0), (4.0, 7.0)),
        ("validity", "share", (0.5, 0.5, 0.5), (0.0, 1.0)),
    ],
)
def test_numbers_beyond_all_measure_have_a_mean_and_no_ends(make_record, name, unit, values, ends):
    images = 0 if unit else 10
    scores = [Score(name, one, *ends, images, "lower", "a", unit=unit) for one in values]
    cell = over_seeds(make_record, scores)
    assert cell.value == pytest.approx(np.mean([value / 10 for value in values]) * 10)
    assert (cell.low, cell.high, cell.interval) == (None, None, "")
