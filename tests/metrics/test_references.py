from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    FrechetMoments,
    balanced_subset,
    frechet_distance,
    group_quality,
    kernel_distance,
    precision_recall_density_coverage,
    reference_weights,
)


def normal(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def mixture(n, share, seed):
    """n rows of N(±2, 1), this share of them from +2, and the cell of each: 1 for +2."""
    cells = (np.arange(n) < round(share * n)).astype(int)
    return np.where(cells == 1, 2.0, -2.0)[:, None] + normal(n, 1, seed), cells


class TestBalancedSubset:
    cells = np.repeat([0, 1, 2], [50, 7, 20])

    def test_as_many_as_the_smallest_cell_has(self):
        found = balanced_subset(self.cells, 3, seed=0)
        assert found.per_cell == 7
        assert found.counts.tolist() == [50, 7, 20]
        assert np.bincount(self.cells[found.indices]).tolist() == [7, 7, 7]
        assert len(np.unique(found.indices)) == len(found.indices) == 21
        assert (np.diff(found.indices) > 0).all()

    def test_a_given_number(self):
        found = balanced_subset(self.cells, 3, per_cell=2, seed=0)
        assert np.bincount(self.cells[found.indices]).tolist() == [2, 2, 2]

    def test_seed(self):
        first, again, other = (balanced_subset(self.cells, 3, seed=s).indices for s in (1, 1, 2))
        assert first.tolist() == again.tolist() != other.tolist()

    def test_a_declared_cell_without_images_is_an_error(self):
        with pytest.raises(ContractError, match=r"none of cells \[3\]"):
            balanced_subset(self.cells, 4, seed=0)

    @pytest.mark.parametrize("per_cell", [0, 8])
    def test_more_than_there_are(self, per_cell):
        with pytest.raises(ContractError, match="per_cell"):
            balanced_subset(self.cells, 3, per_cell=per_cell, seed=0)

    @pytest.mark.parametrize(
        ("cells", "num_cells"),
        [([], 2), ([0.0, 1.0], 2), ([[0, 1]], 2), ([0, 2], 2), ([-1, 0], 2), ([0], 0)],
    )
    def test_bad_cells(self, cells, num_cells):
        with pytest.raises(ContractError):
            balanced_subset(cells, num_cells, seed=0)


class TestReferenceWeights:
    cells = np.array([0, 0, 0, 1])

    def test_shares(self):
        found = reference_weights(self.cells, [0.5, 0.5])
        np.testing.assert_allclose(found.weights, [1 / 6, 1 / 6, 1 / 6, 1 / 2])
        assert found.weights.sum() == pytest.approx(1)
        assert found.effective_n == pytest.approx(1 / (3 / 36 + 1 / 4))
        assert found.counts.tolist() == [3, 1]

    def test_own_shares_leave_it_as_it_is(self):
        found = reference_weights(self.cells, [0.75, 0.25])
        np.testing.assert_allclose(found.weights, 0.25)
        assert found.effective_n == pytest.approx(4)

    def test_an_unwanted_cell_may_be_empty_or_weigh_nothing(self):
        found = reference_weights(self.cells, [1, 0, 0])
        np.testing.assert_allclose(found.weights, [1 / 3, 1 / 3, 1 / 3, 0])

    def test_a_wanted_cell_without_images_is_an_error(self):
        with pytest.raises(ContractError, match=r"cells \[2\].*not measurable"):
            reference_weights(self.cells, [0.5, 0.3, 0.2])

    @pytest.mark.parametrize(
        "shares", [[], [0.5, 0.6], [1.5, -0.5], [np.nan, 1], [[0.5, 0.5]], [1.0]]
    )
    def test_bad_shares(self, shares):
        with pytest.raises(ContractError):
            reference_weights(self.cells, shares)


def test_the_reference_trap_and_its_two_ways_out():
    """Shares alone: both generators make perfect images of either cell.

    The published habit, a natural reference, ranks the biased generator first by 3.01; balanced
    ranks the fair one first; reweighted to each generator's own shares finds no difference.
    """
    real, cells = mixture(30_000, 0.9, 0)
    natural = FrechetMoments.of(real)
    balanced = FrechetMoments.of(real[balanced_subset(cells, 2, seed=0).indices])
    fair, biased = mixture(30_000, 0.5, 1)[0], mixture(30_000, 0.9, 2)[0]
    assert natural.distance(biased) < 0.01
    assert natural.distance(fair) == pytest.approx(3.0143, rel=0.03)
    assert balanced.distance(fair) < 0.01
    assert balanced.distance(biased) == pytest.approx(3.0143, rel=0.03)
    for generated, share in ((fair, 0.5), (biased, 0.9)):
        weights = reference_weights(cells, [1 - share, share]).weights
        assert FrechetMoments.of(real, weights).distance(generated) < 0.01


class TestGroupQuality:
    def sets(self, sizes=(60, 45, 80), seed=0):
        """Three cells around 0, 10 and 20; the last one's generated images are off by 1."""
        generated = np.concatenate(
            [
                normal(n, 3, seed + i, 10 * i + (i == 2))
                for i, n in enumerate(sizes)
            ]
        )  # fmt: skip
        reference = np.concatenate([normal(100, 3, seed + 50 + i, 10 * i) for i in range(3)])
        return (
            generated,
            np.repeat(np.arange(len(sizes)), sizes),
            reference,
            np.repeat(np.arange(3), 100),
        )

    def test_every_cell_against_its_own(self):
        x, mine, y, theirs = self.sets()
        found = group_quality(x, mine, y, theirs, 3, seed=0)
        assert found.common_n == 45
        for cell, row in enumerate(found.cells):
            assert row.cell == cell
            assert (row.n_generated, row.n_reference) == ((60, 45, 80)[cell], 100)
            assert row.kernel == kernel_distance(x[mine == cell], y[theirs == cell], seed=0)
            assert row.reason == ""
        assert found.kernel.worst == found.cells[2].kernel.value
        assert found.frechet.worst == found.cells[2].frechet > 2
        assert found.precision.worst == found.cells[2].neighbours.precision
        values = found.frechet.by_cell
        assert found.frechet.gap == pytest.approx(max(values) - min(values))
        assert found.frechet.ratio == pytest.approx(min(values) / max(values))

    def test_at_one_n_there_is_nothing_to_draw(self):
        x, mine, y, theirs = self.sets((100, 100, 100))
        found = group_quality(x, mine, y, theirs, 3, k=4, seed=0)
        for cell, row in enumerate(found.cells):
            pair = x[mine == cell], y[theirs == cell]
            assert row.frechet == pytest.approx(frechet_distance(*pair))
            alone = precision_recall_density_coverage(*pair, k=4)
            measured, expected = asdict(row.neighbours), asdict(alone)
            for name in ("recall_error", "coverage_error"):  # blocks follow the order of rows
                assert measured.pop(name) == pytest.approx(expected.pop(name), rel=0.5)
            for name in ("recall_degrees", "coverage_degrees"):
                assert 1 <= measured.pop(name) < np.inf
                assert 1 <= expected.pop(name) < np.inf
            assert measured == pytest.approx(expected)

    def test_draws_that_have_no_image_in_common_tell_the_error(self):
        sizes = (150, 119, 700)
        x = normal(sum(sizes), 4, 0)
        mine = np.repeat(np.arange(3), sizes)
        y, theirs = normal(2100, 4, 1), np.repeat(np.arange(3), 700)
        found = group_quality(x, mine, y, theirs, 3, common_n=30, seed=0)
        assert [cell.draws for cell in found.cells] == [5, 0, 20]
        assert found.cells[1].frechet_error is None
        assert found.cells[1].recall_error is None
        many = [
            group_quality(normal(700, 4, s), np.zeros(700, int), normal(700, 4, 900 + s),
                          np.zeros(700, int), 1, common_n=30, seed=0).cells[0]
            for s in range(40)
        ]  # fmt: skip
        for name, read in (
            ("frechet", lambda c: c.frechet),
            ("recall", lambda c: c.neighbours.recall),
        ):
            errors = [getattr(cell, f"{name}_error") for cell in many]
            seen = np.std([read(cell) for cell in many], ddof=1)
            assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(seen, rel=0.35)

    def test_distances_at_unequal_n_would_punish_the_small_cell(self):
        """Equal quality in both cells: the common n finds it, each cell's own n doesn't."""
        d, sizes = 32, (40, 2000)
        x = normal(sum(sizes), d, 0)
        mine = np.repeat([0, 1], sizes)
        y, theirs = normal(4000, d, 1), np.repeat([0, 1], 2000)
        found = group_quality(x, mine, y, theirs, 2, seed=0)
        wrong = [frechet_distance(x[mine == c], y[theirs == c]) for c in (0, 1)]
        assert wrong[0] / wrong[1] > 5
        assert found.frechet.ratio > 0.85
        assert found.common_n == 40

    def test_a_cell_nobody_generated_taints_the_summaries(self):
        x, mine, y, theirs = self.sets()
        kept = mine != 2  # the worst cell: leaving it out would look like a gain
        found = group_quality(x[kept], mine[kept], y, theirs, 3, seed=0)
        assert found.cells[2].n_generated == 0
        assert "0 generated" in found.cells[2].reason
        assert found.cells[0].kernel is not None
        for parity in (
            found.kernel, found.frechet, found.precision, found.recall, found.density,
            found.coverage,
        ):  # fmt: skip
            assert parity.by_cell[2] is None
            assert parity.worst is None
            assert parity.gap is None
            assert parity.ratio is None
            assert "cell 2 has 0 generated" in parity.reason

    def test_too_few_for_a_given_common_n_leaves_the_kernel_distance(self):
        x, mine, y, theirs = self.sets()
        found = group_quality(x, mine, y, theirs, 3, common_n=50, seed=0)
        assert found.cells[1].frechet is None
        assert found.cells[1].neighbours is None
        assert "50 of each" in found.cells[1].reason
        assert found.kernel.worst is not None
        assert found.frechet.worst is None
        assert found.frechet.by_cell[0] is not None

    def test_nothing_measurable(self):
        x, mine, y, theirs = self.sets((5, 6, 7))
        found = group_quality(x, mine, y, theirs, 3, seed=0)
        assert found.common_n is None
        assert found.kernel.by_cell == (None, None, None)
        assert found.kernel.reason.count("30 of each") == 3

    def test_a_ratio_of_a_negative_distance_means_nothing(self):
        x, y = normal(200, 2, 3), normal(200, 2, 4)
        halves = np.repeat([0, 1], 100)
        found = group_quality(x, halves, y, halves, 2, seed=0)
        assert min(found.kernel.by_cell) < 0
        assert found.kernel.ratio is None
        assert found.kernel.gap > 0

    def test_zero_everywhere_is_even(self):
        x, y = normal(80, 2, 0, 1e3), normal(80, 2, 1)
        halves = np.repeat([0, 1], 40)
        found = group_quality(x, halves, y, halves, 2, seed=0)
        assert found.precision.worst == 0
        assert found.precision.ratio == 1

    def test_same_seed_same_answer(self):
        first, again, other = (group_quality(*self.sets(), 3, seed=s) for s in (1, 1, 2))
        assert first == again != other

    @pytest.mark.parametrize(
        "options",
        [{"k": 0}, {"minimum": 5}, {"minimum": 3, "k": 1}, {"common_n": 29}, {"seed": -1}],
    )
    def test_bad_numbers(self, options):
        with pytest.raises(ContractError):
            group_quality(*self.sets(), 3, **{"seed": 0, **options})

    def test_bad_arrays(self):
        x, mine, y, theirs = self.sets()
        for change in (
            (x[:-1], mine, y, theirs),
            (x, mine, y, theirs[:-1]),
            (x, mine, y[:, :2], theirs),
            (x, mine + 1, y, theirs),
            (x * np.nan, mine, y, theirs),
            (x[:0], mine[:0], y, theirs),
        ):
            with pytest.raises(ContractError):
                group_quality(*change, 3, seed=0)
