from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import MetricFrame, count

from fairbench.core.errors import ContractError
from fairbench.metrics import by_group_table, representation_ratios

LEVELS = {"gender": ("female", "male"), "race": ("asian", "black", "white")}


def mean_value(y_true, y_pred):
    return float(np.mean(y_pred))


def images(n=240, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, 2, n), rng.integers(0, 3, n)], axis=1)
    return labels, rng.random(n)


def frame_of(labels, values, **split):
    columns = {name: np.array(LEVELS[name])[labels[:, axis]] for axis, name in enumerate(LEVELS)}
    return MetricFrame(
        metrics={"count": count, "score": mean_value},
        y_true=np.zeros(len(values)),
        y_pred=values,
        sensitive_features=pd.DataFrame({n: columns[n] for n in split["sensitive"]}),
        control_features=(
            pd.DataFrame({n: columns[n] for n in split["control"]}) if split["control"] else None
        ),
    )


class TestAgainstFairlearn:
    @pytest.mark.parametrize("control", [(), ("gender",), ("race",)])
    def test_everything_agrees_where_all_cells_have_images(self, control):
        labels, values = images()
        sensitive = [name for name in LEVELS if name not in control]
        theirs = frame_of(labels, values, sensitive=sensitive, control=list(control))
        ours = by_group_table(labels, LEVELS, values={"score": values}, control=control)
        columns = ["count", "score"]
        pairs = [
            (ours.by_group, theirs.by_group),
            (ours.overall, theirs.overall),
            (ours.group_min(), theirs.group_min()),
            (ours.group_max(), theirs.group_max()),
        ]
        for method in ("between_groups", "to_overall"):
            pairs.append((ours.difference(method), theirs.difference(method=method)))
            pairs.append((ours.ratio(method), theirs.ratio(method=method)))
        for mine, other in pairs:
            mine = mine[columns].sort_index() if mine.ndim == 2 else mine[columns]
            other = other[columns].sort_index() if other.ndim == 2 else other[columns]
            np.testing.assert_allclose(mine.to_numpy(float), other.to_numpy(float))
            if mine.ndim == 2:
                assert list(mine.index) == list(other.index)
                assert mine.index.names == other.index.names

    def test_a_vanished_group_improves_theirs_and_not_ours(self):
        labels, values = images()
        worst = by_group_table(labels, LEVELS, values={"score": values}).by_group["score"]
        gender, race = worst.idxmin()
        gone = (labels == [LEVELS["gender"].index(gender), LEVELS["race"].index(race)]).all(axis=1)
        labels, values = labels[~gone], values[~gone]
        theirs = frame_of(labels, values, sensitive=list(LEVELS), control=[])
        ours = by_group_table(labels, LEVELS, values={"score": values})
        assert np.isnan(theirs.by_group.loc[(gender, race), "score"])
        assert theirs.group_min()["score"] > worst.min()  # skipped, so the minimum went up
        assert np.isnan(ours.group_min()["score"])
        assert np.isnan(ours.difference()["score"])
        assert np.isnan(ours.ratio("to_overall")["score"])
        assert theirs.ratio()["count"] > 0.5
        assert ours.by_group.loc[(gender, race), "count"] == 0
        assert ours.ratio()["count"] == ours.ratio()["representation"] == 0


class TestTable:
    def test_representation_is_share_over_target(self):
        labels, _ = images()
        target = np.array([[0.1, 0.2, 0.2], [0.2, 0.2, 0.1]])
        found = by_group_table(labels, LEVELS, target=target)
        counts = found.by_group["count"].to_numpy().astype(int)
        ratios = representation_ratios(counts, target.ravel())
        np.testing.assert_allclose(found.by_group["representation"], ratios.ratios)
        assert found.ratio()["representation"] == pytest.approx(ratios.min_over_max)
        assert found.overall["representation"] == 1
        assert found.difference("to_overall")["representation"] == pytest.approx(
            np.abs(ratios.ratios - 1).max()
        )

    def test_rows_follow_the_declared_order(self):
        found = by_group_table([[0, 0], [1, 2]], LEVELS)
        assert list(found.by_group.index[:3]) == [
            ("female", "asian"),
            ("female", "black"),
            ("female", "white"),
        ]
        found = by_group_table([[0, 0], [1, 2]], LEVELS, control=["race"])
        assert found.by_group.index.names == ["race", "gender"]
        assert list(found.overall.index) == ["asian", "black", "white"]

    def test_strata_are_compared_within(self):
        # Every race alike within a gender, though there are more of one gender.
        labels = np.array([[0, race] for race in range(3)] * 10 + [[1, r] for r in range(3)] * 30)
        found = by_group_table(labels, LEVELS, control=["gender"])
        np.testing.assert_allclose(found.ratio()["representation"], 1)
        np.testing.assert_allclose(found.overall["count"], [30, 90])

    def test_a_stratum_without_images_is_not_measurable(self):
        found = by_group_table([[0, 0], [0, 1], [0, 2]], LEVELS, control=["gender"])
        assert found.ratio()["representation"].tolist()[0] == 1
        assert np.isnan(found.ratio()["representation"].tolist()[1])
        assert np.isnan(found.difference()["representation"].tolist()[1])

    def test_one_attribute_has_a_plain_index(self):
        found = by_group_table([[0], [1], [1]], {"gender": ("female", "male")})
        assert list(found.by_group.index) == ["female", "male"]
        assert found.by_group.index.name == "gender"

    def test_other_statistics_and_signed_values(self):
        labels = np.array([[0], [0], [1], [1]])
        levels = {"gender": ("female", "male")}
        values = {"gain": [-1.0, -3.0, 2.0, 4.0]}
        found = by_group_table(labels, levels, values=values, statistic=np.max)
        assert found.by_group["gain"].tolist() == [-1, 4]
        assert found.overall["gain"] == 4
        assert found.difference()["gain"] == 5
        assert np.isnan(found.ratio()["gain"])
        assert np.isnan(found.ratio("to_overall")["gain"])

    @pytest.mark.parametrize(
        "options",
        [
            {"control": ["age"]},
            {"control": ["gender", "gender"]},
            {"control": ["gender", "race"]},
            {"control": "gender"},
            {"values": {"score": [1.0]}},
            {"values": {"score": [1.0, np.nan]}},
            {"values": {"count": [1.0, 2.0]}},
            {"target": [0.5, 0.5, 0, 0, 0, 0]},
        ],
    )
    def test_bad_input(self, options):
        with pytest.raises(ContractError):
            by_group_table([[0, 0], [1, 1]], LEVELS, **options)

    def test_bad_method(self):
        with pytest.raises(ContractError):
            by_group_table([[0, 0]], LEVELS).ratio("to_worst")
