from __future__ import annotations

import pytest

from fairbench.core.score import Score
from fairbench.leaderboards import rows, to_plot
from fairbench.leaderboards.plot import draw


def scores(fair, quality):
    found = [
        Score(
            "fairness_discrepancy_corrected", fair, fair - 0.02, fair + 0.03, 9, "lower", "w", 0.03
        )
    ]
    if quality is not None:
        name = "kernel_cartoonfaces_reweighted"
        found.append(Score(name, quality, quality - 0.01, quality + 0.02, 9, "lower", "b"))
    return tuple(found)


@pytest.fixture
def table(make_record):
    records = [
        make_record("vanilla", card={"role": "control"}, scores=scores(0.6, 0.08)),
        make_record("fairgen", scores=scores(0.1, 0.1)),
        make_record("tiw", scores=scores(0.2, None)),
        make_record("vanilla", task="race", card={"role": "control"}, scores=scores(0.4, 0.05)),
    ]
    return rows(records, warn=lambda line: None)


def panels_of(table):
    """Each panel with the axes that its names stand in."""
    axes = draw(table).axes
    return list(zip(axes[::2], axes[1::2], strict=True))


def test_no_number_covers_another_or_leaves_its_panel(make_record):
    records = [
        make_record(f"m{i}", scores=scores(0.3 + 0.001 * i, 0.05 + 0.0005 * i)) for i in range(20)
    ]
    figure = draw(rows(records, warn=lambda line: None))
    panel = figure.axes[0]
    boxes = [text.get_window_extent() for text in panel.texts]
    assert len(boxes) == 20
    frame = panel.get_window_extent()
    for i, one in enumerate(boxes):
        assert not [j for j in range(i) if one.overlaps(boxes[j])]
        assert frame.x0 <= one.x0
        assert one.x1 <= frame.x1
    names = figure.axes[1].texts[0].get_window_extent()
    assert names.x0 >= frame.x1
    assert names.x1 <= figure.bbox.x1


def test_a_point_is_a_row_with_its_intervals(table):
    panels = panels_of(table)
    assert [panel.get_title(loc="left") for panel, _ in panels] == [
        "cartoonfaces · gender · cartoon-sd, 20 steps, guidance 1",
        "cartoonfaces · race · cartoon-sd, 20 steps, guidance 1",
    ]
    points = {}
    for drawn in panels[0][0].containers:
        across, up = drawn.lines[2]
        (x,), (y,) = (list(map(float, values)) for values in drawn.lines[0].get_data())
        ends = across.get_segments()[0][:, 0], up.get_segments()[0][:, 1]
        points[round(x, 6)] = [round(v, 6) for v in (y, *ends[0], *ends[1])]
    assert points == {0.6: [80, 0.58, 0.63, 70, 100], 0.1: [100, 0.08, 0.13, 90, 120]}


def test_points_are_named_and_a_row_without_quality_is_not_hidden(table):
    key = panels_of(table)[0][1].texts[0].get_text()
    assert key.splitlines() == ["1 fairgen", "2 vanilla", "– tiw: not measurable"]


def test_a_row_far_off_is_named_with_its_value(make_record):
    values = {"a": 0.05, "b": 0.06, "c": 0.07, "d": 5.99}
    records = [make_record(name, scores=scores(0.1, value)) for name, value in values.items()]
    panel, beside = panels_of(rows(records, warn=lambda line: None))[0]
    key = beside.texts[0].get_text()
    assert key.splitlines() == ["1 a", "2 b", "3 c", "↑ d: 5990"]
    assert panel.get_ylim()[1] < 200


def test_a_row_that_takes_no_part_does_not_stretch_the_scale(make_record):
    control = {"role": "control"}
    records = [
        make_record("vanilla", card=control, scores=scores(0.6, 0.05)),
        make_record("prompt_append", card=control, scores=scores(0.1, 0.09)),
        make_record("balanced_data", card={"role": "oracle"}, scores=scores(0.1, 0.1)),
        make_record("oracle", card={"role": "oracle"}, scores=scores(0.1, 0.2)),
    ]
    panel, beside = panels_of(rows(records, warn=lambda line: None))[0]
    key = beside.texts[0].get_text()
    assert key.splitlines() == ["1 balanced_data", "2 prompt_append", "3 vanilla", "↑ oracle: 200"]
    assert panel.get_ylim()[1] < 150


def test_roles_are_explained(table):
    (legend,) = draw(table).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "method",
        "control",
        "faint: not comparable, or an oracle",
        "lowest noise floor: fair by chance",
        "Pareto set",
    ]


def test_the_same_rows_give_the_same_png(table):
    picture = to_plot(table)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert to_plot(table) == picture
