from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from fairbench.core.score import Score
from fairbench.leaderboards import rows, to_csv, to_json, to_markdown, to_table
from fairbench.scores.catalogue import spec_of


def refuse(message):
    raise AssertionError(f"unexpected warning: {message}")


def scores(value, distance, *, floor=0.031):
    """All by the definitions of today but for one."""
    made = (
        Score("judge_disagreement_race", 0.02, None, None, 2000, "neither", unit="share"),
        Score(
            "fairness_discrepancy_corrected",
            value,
            value - 0.02,
            value + 0.03,
            2000,
            "lower",
            "w",
            floor,
        ),
        Score("fairness_discrepancy_race", value * 2, None, None, 2000, "lower"),
        Score("frechet_cartoonfaces_balanced", distance, distance - 1, distance + 1, 9, "lower"),
        Score("kernel_cartoonfaces_balanced", distance / 1e4, -1e-5, 0.003, 9, "lower", "b"),
        Score("validity", 0.985, 0.978, 0.99, 2000, "higher", "wilson", unit="share"),
        Score("judge_confidence_gender", 0.97, None, None, 2000, "higher", unit="share"),
    )
    older = "frechet_cartoonfaces_balanced"
    return tuple(
        replace(one, version=spec_of(one.name).version - (one.name == older)) for one in made
    )


@pytest.fixture
def table(make_record):
    runs = [
        make_record("vanilla", seed, card={"role": "control"}, scores=scores(0.42, 11.5))
        for seed in range(3)
    ]
    for seed, value in enumerate((0.020, 0.026, 0.014)):
        learns = {"supervision": ["classifier", "prompts"]}
        rests_on = {
            "fair": {"fairness_discrepancy_corrected": {"n": [2000], "target": [0.5, 0.5]}}
        }
        runs.append(
            make_record(
                "fairgen",
                seed,
                card=learns,
                scores=scores(value, 12.25 + seed / 3),
                facts=rests_on,
            )
        )
    runs += [
        make_record(
            "fairgen",
            config={"preset": "as_released"},
            card={"supervision": ["classifier", "prompts"]},
            scores=scores(0.213, 140.0),
            extra_parameters=98304,
        ),
        make_record("prompt_append", scores=scores(0.03, 13.0), network_calls_per_image=22.5),
        make_record("rejection", config={"num_images": 1000}, scores=scores(0.01, 9.0)),
        make_record("fairgen", task="race", config={"backbone": ""}, scores=scores(0.3, 8.0)[1:2]),
    ]
    return rows(runs, warn=refuse)


def test_csv_is_the_golden_one(table, golden):
    golden("leaderboard.csv", to_csv(table))


def test_markdown_is_the_golden_one(table, golden):
    golden("leaderboard.md", to_markdown(table))


def test_csv_has_full_precision_and_every_column(table):
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(lines) == len(table)
    for line, row in zip(lines, table, strict=True):
        for name, cell in row.scores.items():
            assert float(line[name]) == cell.value
            assert line[f"{name}_low"] == ("" if cell.low is None else repr(cell.low))
        assert line["keys"].split() == list(row.keys)
    assert "fairness_discrepancy_corrected_floor" in lines[0]
    assert "validity_floor" not in lines[0]
    assert lines[-1]["validity"] == ""


def test_json_holds_the_same_numbers(table):
    data = json.loads(to_json(table))
    assert len(data) == len(table)
    cell = data[0]["scores"]["fairness_discrepancy_corrected"]
    assert cell["value"] == table[0].scores["fairness_discrepancy_corrected"].value
    assert cell["interval"] == "all of the runs' intervals or t over 3 seeds, whichever is wider"
    assert (data[0]["rank"], data[0]["tie_class"], data[0]["reasons"]) == ("1", "A", [])
    few = next(row for row in data if row["method"] == "rejection")
    assert (few["why_unranked"], few["reasons"]) == (
        "protocol",
        ["num_images 1000, protocol 2000"],
    )
    assert "quality" not in data[0]


def test_terminal_shows_the_intervals(table):
    console = Console(width=400, file=io.StringIO())
    console.print(to_table(table))
    text = console.file.getvalue()
    assert "0.213 [0.193, 0.243]" in text
    assert "as_released" in text


def on_80_columns(rows):
    console = Console(width=80, file=io.StringIO())
    console.print(to_table(rows))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    return lines


def test_terminal_of_80_columns_cuts_nothing(table):
    lines = on_80_columns(table)
    text = "\n".join(lines)
    assert "…" not in text
    for row in table:
        assert f" {len(row.seeds)} × {row.n:,} " in text
        cell = row.scores["fairness_discrepancy_corrected"]
        interval = f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]"
        line = next(line for line in lines if interval in line)
        assert row.method in line
        assert line.split()[0] == (row.tie_class or row.why_unranked)
        assert line.endswith(f" {row.network_calls_per_image:g}")
    assert "≤ floor 0.031" in text
    assert "(as_released)" in text
    assert all(number in text for number in ("12.58", "13.00", "140.0", "9.000"))
    assert "0.985" not in text  # columns give way, words don't


def test_terminal_says_why_rows_are_not_ranked_in_one_word_and_a_line(table):
    lines = on_80_columns(table)
    assert "protocol: rejection: num_images 1000, protocol 2000" in lines
    assert "seeds: prompt_append: 1 of the 3 seeds that this table asks for" in lines
    # A role needs no line of its own.
    controls = [row for row in table if row.why_unranked in ("", "control")]
    assert "control:" not in "\n".join(on_80_columns(controls))


def test_titles_say_what_is_ranked_and_whether_luck_is_included(table):
    titles = [line for line in to_markdown(table).splitlines() if line.startswith("Ranked by")]
    assert titles == [
        "Ranked by fairness_discrepancy_corrected; differences between seeds included; not "
        "checked: quality, duplicates, leak.",
        "Ranked by fairness_discrepancy_corrected; the luck of a training isn't included: fewer "
        "than 3 seeds a row; not checked: duplicates, leak.",
    ]


def test_terminal_names_the_encoders_of_several_distances(make_record):
    names = ("frechet_first_balanced", "frechet_second_balanced")
    scores = tuple(Score(name, 9.0, None, None, 9, "lower") for name in names)
    lines = on_80_columns(rows([make_record(scores=scores)], warn=refuse))
    headers = " ".join(" ".join(lines).split())
    assert "frechet frechet" in headers
    assert "first second" in headers


def test_no_rows_make_empty_tables():
    assert to_csv([]).startswith("dataset,task,backbone,rank,tie_class,why_unranked,")
    assert to_csv([]).count("\n") == 1
    assert to_json([]) == "[]\n"
    assert "No complete records." in to_markdown([])
    console = Console(file=io.StringIO())
    console.print(to_table([]))
    assert console.file.getvalue() == "No complete records.\n"


def test_a_bar_in_a_name_does_not_split_a_cell(make_record):
    run = make_record(
        scores=(Score("judge_confidence_a|tennis", 0.5, None, None, 9, "higher"),),
    )
    lines = to_markdown(rows([run], warn=refuse)).splitlines()
    assert "judge_confidence_a\\|tennis" in lines[6]


def test_what_is_in_a_name_is_shown_and_steers_nothing(make_record):
    hostile = "=cmd()\x1b[2J\n@x$_{"
    run = make_record(hostile, dataset="d\x07", scores=scores(0.3, 8.0))
    table = rows([run], warn=refuse)
    for text in (
        to_csv(table),
        to_markdown(table),
        to_json(table),
        "\n".join(on_80_columns(table)),
    ):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\n@x" not in text
    (line,) = csv.DictReader(io.StringIO(to_csv(table)))
    assert line["method"] == r"'=cmd()\x1b[2J\n@x$_{"
    assert json.loads(to_json(table))[0]["method"] == hostile


def test_markdown_takes_no_name_for_an_element_a_link_or_a_picture(make_record):
    hostile = "<script>x</script> ![a](http://b)"
    config = {"backbone": hostile, "parameters": {hostile: 1}}
    run = make_record(hostile, task=hostile, config=config, scores=scores(0.3, 8.0))
    text = to_markdown(rows([run], warn=refuse))
    assert "&lt;script>" in text
    assert "<script" not in text
    assert "](http" not in text


def test_one_reason_of_several_rows_is_said_once(make_record):
    runs = [make_record(name, scores=scores(0.3, 8.0)) for name in ("one", "another")]
    lines = " ".join(on_80_columns(rows(runs, warn=refuse)))
    assert lines.count("baseline:") == 1
    assert "another, one" in lines or "one, another" in lines


def test_a_narrow_terminal_shows_fewer_columns_and_whole_names(make_record):
    name = "debiased_loss_weighting"
    table = rows([make_record(name, scores=scores(0.3, 8.0))], warn=refuse)
    console = Console(width=60, file=io.StringIO())
    console.print(to_table(table))
    text = console.file.getvalue()
    assert f" {name} " in text
    assert "calls" not in text
