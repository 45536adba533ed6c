from __future__ import annotations

from fairbench.leaderboards import rows, to_csv, to_json, to_markdown, to_table
from fairbench.leaderboards.formats import formats
from fairbench.leaderboards.formats.latex import to_latex


def test_each_format_is_found_by_its_file():
    found = formats()
    written = {
        "csv": to_csv,
        "eval_results": None,
        "every_eval_ever": None,
        "html": None,
        "json": to_json,
        "latex": to_latex,
        "markdown": to_markdown,
        "table": to_table,
    }
    assert {name: one.write for name, one in found.items()} == written
    assert [name for name, one in found.items() if one.build] == [
        "eval_results",
        "every_eval_ever",
        "html",
    ]
    assert {suffix for one in found.values() for suffix in one.suffixes} == {
        ".csv",
        ".json",
        ".md",
        ".tex",
    }


def test_a_score_that_nobody_knows_is_in_the_csv_alone(make_record):
    from fairbench.core.score import Score

    table = rows(
        [make_record(scores=(Score("of_old", 0.5, None, None, 9, "higher"),))], warn=print
    )
    assert "of_old" in to_csv(table)
    assert "of_old" in to_json(table)
    assert "of_old" not in to_markdown(table)
