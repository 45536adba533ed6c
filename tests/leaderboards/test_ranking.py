from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.record import SCHEMA
from fairbench.leaderboards import leaderboard, rows
from fairbench.storage.records import write_record

N = 2000


def refuse(message):
    raise AssertionError(f"unexpected warning: {message}")


def drawn(share, noise):
    """Group 0 where the noise lies below the share."""
    return np.where(noise < share, 0, 1)


def counts(labels):
    return tuple(np.bincount(labels[labels >= 0], minlength=2).tolist())


@pytest.fixture
def paired(make_counted, per_image):
    """Records of methods that start from the same noise, and what is known of each image."""

    def make(shares, seeds=3, sidecars=True, drop=()):
        records, images = [make_counted("vanilla", (1800, 200), s) for s in range(seeds)], {}
        for seed in range(seeds):
            noise = np.random.default_rng(seed).random(N)
            for method, share in shares.items():
                labels = drawn(share, noise)
                labels[: len(labels) // 100] = -1 if method in drop else labels[: N // 100]
                record = make_counted(method, counts(labels), seed)
                records.append(record)
                if sidecars:
                    images[record.key] = per_image(labels)
        return records, lambda record: images.get(record.key)

    return make


def test_pairs_of_images_tell_rows_apart_that_their_counts_alone_cannot(paired):
    shares = {"a": 0.60, "b": 0.615}
    records, images = paired(shares, seeds=1)
    table = rows(records, images=images, warn=refuse)
    assert [(row.method, row.tie_class, row.compared) for row in table[:2]] == [
        ("a", "A", "paired"),
        ("b", "B", "paired"),
    ]
    table = rows(records, warn=refuse)
    assert [(row.method, row.tie_class, row.rank, row.compared) for row in table[:2]] == [
        ("a", "A", "1–2", "unpaired"),
        ("b", "A", "1–2", "unpaired"),
    ]


def test_differences_between_seeds_count_where_both_rows_have_three(make_counted):
    def records(shares):
        runs = [make_counted("vanilla", (1800, 200), s) for s in range(3)]
        for method, by_seed in shares.items():
            for seed, share in enumerate(by_seed):
                first = round(share * N)
                runs.append(make_counted(method, (first, N - first), seed))
        return runs

    steady = {"a": (0.60, 0.60, 0.60), "b": (0.66, 0.661, 0.659)}
    assert [row.tie_class for row in rows(records(steady), warn=refuse)[:2]] == ["A", "B"]
    lucky = {"a": (0.55, 0.65, 0.60), "b": (0.71, 0.61, 0.66)}
    table = rows(records(lucky), warn=refuse)
    assert [row.tie_class for row in table[:2]] == ["A", "A"]
    assert table[0].luck


def test_images_that_one_row_lacks_do_not_break_a_pair(paired):
    records, images = paired({"a": 0.60, "b": 0.68}, drop=("b",))
    table = rows(records, images=images, warn=refuse)
    assert [(row.method, row.tie_class) for row in table[:2]] == [("a", "A"), ("b", "B")]


def test_the_judge_that_finds_more_counts_for_a_row_as_a_whole(make_counted):
    sure = [[1000, 0], [0, 1000]]
    # By seed the judges take turns; in the mean the second finds more.
    first, second = ((1100, 900), (1300, 700), (1200, 800)), ((1250, 750),) * 3
    runs = [
        make_counted(
            "row",
            one,
            seed,
            judges={"primary": (one, sure), "second": (other, sure)},
        )
        for seed, (one, other) in enumerate(zip(first, second, strict=True))
    ]
    (row,) = rows(runs, warn=refuse)
    cell = row.scores["fairness_discrepancy_corrected"]
    assert cell.value == pytest.approx(np.sqrt(2) * 0.125)
    assert "the worse of 2 judges" in cell.interval
    # The first judge's interval overlaps, so it is united with the second's, which is narrow.
    assert cell.low < np.sqrt(2) * 0.05 < cell.value < cell.high
    raw = row.scores["fairness_discrepancy"]
    assert raw.value == pytest.approx(np.sqrt(2) * 0.1)


def test_older_records_give_a_second_judge_by_its_distances(make_record):
    from fairbench.core.score import Score

    name = "fairness_discrepancy_corrected"

    def run(seed, count, second):
        first = np.sqrt(2) * abs(count / N - 0.5)
        rows_ = [
            {"group": group, "count": number, "n": N, "target": 0.5}
            for group, number in (("female", count), ("male", N - count))
        ]
        fair = {"n": [N], "target": [0.5, 0.5]}
        facts = {
            "fair": {
                name: {**fair, "confusion": [[500, 0], [0, 500]]},
                "fairness_discrepancy": fair,
            },
            "fairness": {
                "corrected": {name: {"primary": {"value": first}, "second": {"value": second}}}
            },
        }
        worse = "primary" if first >= second else "second"
        score = Score(
            name, max(first, second), 0.0, 0.9, N, "lower", "delta", 0.03,
            source=f"the worse of two judges ({worse})",
        )  # fmt: skip
        return make_record(seed=seed, scores=(score,), facts=facts, groups={"gender": rows_})

    runs = [run(0, 1100, 0.05), run(1, 1200, 0.2), run(2, 1300, 0.3)]
    (row,) = rows(runs, warn=refuse)
    cell = row.scores[name]
    first = [np.sqrt(2) * x for x in (0.05, 0.1, 0.15)]
    shift = np.mean(np.array([0.05, 0.2, 0.3]) - first)
    assert shift > 0
    assert cell.value == pytest.approx(np.mean(first) + shift)
    assert "judge second by how far its distances lie from those of primary" in cell.interval
    assert cell.floor == pytest.approx(0.031 / np.sqrt(3), rel=0.06)


def test_a_folder_s_sidecars_are_read(paired, tmp_path):
    records, images = paired({"a": 0.60, "b": 0.615}, seeds=1)
    for record in records:
        assert record.schema == SCHEMA
        write_record(tmp_path, record, images(record))
    table = leaderboard(tmp_path, warn=refuse)
    assert [row.compared for row in table[:2]] == ["paired", "paired"]
    for path in tmp_path.glob("*/a/*.npz"):
        path.unlink()
    warnings = []
    table = leaderboard(tmp_path, warn=warnings.append)
    assert [(row.method, row.compared) for row in table[:2]] == [
        ("a", "unpaired"),
        ("b", "paired"),
    ]
    assert len(warnings) == 1
    assert "expected the sidecar" in warnings[0]
