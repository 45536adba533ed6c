from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.stats.contingency import association
from sklearn.metrics import mutual_info_score

from fairbench.core.errors import ContractError
from fairbench.metrics import cramers_v, entropy, mutual_information, total_correlation


class TestEntropy:
    def test_card_values(self):
        assert entropy([0.4, 0.3, 0.2, 0.1]) == pytest.approx(1.279854, abs=1e-6)
        assert entropy([0.4, 0.3, 0.2, 0.1]) / np.log(4) == pytest.approx(0.923220, abs=1e-6)
        assert entropy([1, 0]) == 0


class TestMutualInformation:
    def test_determined(self):
        found = mutual_information([[50, 0], [0, 50]])
        assert found.plug_in == pytest.approx(0.693147, abs=1e-6)
        assert found.corrected == pytest.approx(found.plug_in - 1 / 200)
        assert found.cramers_v == pytest.approx(1)
        assert found.p_value < 1e-20

    def test_independent(self):
        found = mutual_information([[20, 30], [40, 60]])
        assert found.plug_in == pytest.approx(0, abs=1e-12)
        assert found.corrected < 0
        assert found.normalised == 0
        assert found.p_value == pytest.approx(1)

    def test_agrees_with_sklearn_and_scipy(self):
        rng = np.random.default_rng(0)
        first = rng.integers(0, 3, 500)
        second = (first + rng.integers(0, 3, 500)) % 4
        table = np.zeros((3, 4), dtype=int)
        np.add.at(table, (first, second), 1)
        found = mutual_information(table)
        assert found.plug_in == pytest.approx(mutual_info_score(first, second))
        expected = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
        assert found.method == "chi-square"
        assert found.degrees == expected.dof
        assert found.p_value == pytest.approx(expected.pvalue)
        assert found.cramers_v == pytest.approx(association(table, method="cramer"))

    def test_few_images_are_permuted(self):
        table = [[6, 2], [1, 4]]
        found = mutual_information(table)
        assert found.method == "permutation"
        # 2 x 2 tables with these margins are ordered alike by both tests, up to ties.
        assert found.p_value == pytest.approx(stats.fisher_exact(table).pvalue, abs=0.03)
        assert found == mutual_information(table)

    def test_permutation_p_values_are_uniform_enough(self):
        rng = np.random.default_rng(0)
        values = [
            mutual_information(rng.multinomial(24, np.full(12, 1 / 12)).reshape(3, 4)).p_value
            for _ in range(100)
        ]
        assert np.mean(np.array(values) < 0.1) <= 0.2

    def test_levels_without_images_change_nothing_but_are_refused_alone(self):
        found = mutual_information([[20, 5, 0], [5, 20, 0], [0, 0, 0]])
        plain = mutual_information([[20, 5], [5, 20]])
        assert found.corrected == pytest.approx(plain.corrected)
        assert found.p_value == pytest.approx(plain.p_value)
        alone = mutual_information([[20, 5], [0, 0]])
        assert alone.reason == "single_level"
        assert np.isnan([alone.normalised, alone.cramers_v]).all()
        assert alone.p_value == 1

    def test_correction_removes_the_bias(self):
        drawn = np.random.default_rng(0).multinomial(1000, np.full(4, 0.25), size=20_000)
        tables = drawn.reshape(-1, 2, 2)
        plug_in = np.mean([mutual_information(table).plug_in for table in tables[:4000]])
        assert plug_in == pytest.approx(0.000504, abs=3e-5)
        assert plug_in - 1 / 2000 == pytest.approx(0, abs=4e-5)

    @pytest.mark.slow
    def test_correction_at_length(self):
        drawn = np.random.default_rng(1).multinomial(1000, np.full(4, 0.25), size=20_000)
        found = [mutual_information(row.reshape(2, 2)) for row in drawn]
        plug_in = np.mean([each.plug_in for each in found])
        corrected = np.mean([each.corrected for each in found])
        print(plug_in, corrected)
        assert plug_in == pytest.approx(0.000504, abs=2e-5)
        assert corrected == pytest.approx(0, abs=2e-5)

    @pytest.mark.parametrize("table", [[1, 2], [[0, 0], [0, 0]], [[1.5, 1]], [[-1, 2]], [[[1]]]])
    def test_bad_input(self, table):
        with pytest.raises(ContractError):
            mutual_information(table)
        with pytest.raises(ContractError):
            cramers_v(table)


class TestTotalCorrelation:
    def test_two_attributes_are_mutual_information(self):
        table = [[20, 5, 3], [5, 20, 9]]
        found, pair = total_correlation(table), mutual_information(table)
        assert found.plug_in == pytest.approx(pair.plug_in)
        assert found.corrected == pytest.approx(pair.corrected)

    def test_three_copies(self):
        table = np.zeros((2, 2, 2), dtype=int)
        table[0, 0, 0] = table[1, 1, 1] = 50
        assert total_correlation(table).plug_in == pytest.approx(2 * np.log(2))

    def test_independent_is_zero_after_correction(self):
        drawn = np.random.default_rng(0).multinomial(500, np.full(8, 1 / 8), size=2000)
        found = np.mean([total_correlation(row.reshape(2, 2, 2)).corrected for row in drawn])
        assert found == pytest.approx(0, abs=1e-4)

    def test_bad_input(self):
        with pytest.raises(ContractError):
            total_correlation([1, 2])
