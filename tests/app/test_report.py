from __future__ import annotations

import io

import pytest
from rich.console import Console

from fairbench.app.report import sentence, summary
from fairbench.core.score import Score
from fairbench.runs.baselines import Baseline

GROUPS = ("female/asian", "female/black", "female/brown", "female/white")


def group(name, share, n, target=0.25):
    ends = {"low": share - 0.03, "high": share + 0.04}
    return {"group": name, "count": 9, "n": n, "share": share, "target": target, **ends}


@pytest.fixture
def made(make_record):
    """Make a record with every kind of row."""

    def make(method, n=992, **changes):
        discrepancy = (0.2591, 0.2189, 0.3014, n, "lower", "w", 0.0534)
        scores = (
            Score("fairness_discrepancy_corrected", *discrepancy),
            Score("fairness_discrepancy_corrected_gender_race", 0.4126, None, None, n, "lower"),
            Score("frechet_cartoonfaces_balanced", 140.123, 138.2, 150.26, 1000, "lower"),
            Score("kernel_cartoonfaces_balanced", 0.00123, -1e-5, 0.00345, 1000, "lower"),
            Score("validity", 0.9917, 0.984, 0.9951, 1000, "higher", unit="share"),
            Score("hit_rate", 1.0, 0.996, 1.0, n, "higher", unit="share"),
            Score("judge_confidence_gender", 0.9975, 0.9961, 0.999, n, "neither", unit="prob"),
            Score("judge_disagreement_gender", 0.0073, 0.001, 0.012, n, "neither", unit="share"),
        )
        groups = {
            "gender/race": [group(name, 0.1 * k + 0.05, n) for k, name in enumerate(GROUPS)],
            "role": [group("baker", 0.777, n, target=None)],
            "gender|baker": [group("female", 0.888, 50)],
        }
        return make_record(method, **{"scores": scores, "groups": groups, **changes})

    return make


def shown(record, baseline=None, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(summary(record, baseline))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    return lines


def row(lines, label):
    """The cells that follow a label; fails unless they are all in its line."""
    (line,) = (line for line in lines if line[2:].startswith(f"{label}  "))
    return [cell.strip() for cell in line[2:].split("  ") if cell]


NUMBERS = (
    *("5.0% [2.0%, 9.0%]", "15.0% [12.0%, 19.0%]", "25.0% [22.0%, 29.0%]"),
    *("0.259 [0.219, 0.301]", "0.053", "0.413", "140.1 [138.2, 150.3]", "1.230 [-0.010, 3.450]"),
    *("99.2% [98.4%, 99.5%]", "100.0% [99.6%, 100.0%]", "0.998 [0.996, 0.999]"),
    *("0.7% [0.1%, 1.2%]", "0.05", "12.5", "20", "512", "98304"),
)


@pytest.mark.parametrize("compared", [False, True])
def test_80_columns_cut_nothing(made, compared):
    record = made("fairgen", extra_parameters=98304, card={"supervision": ["prompts"]})
    lines = shown(record, made("vanilla") if compared else None)
    text = "\n".join(lines)
    assert "…" not in text
    for number in NUMBERS:
        assert number in text, number
    assert ("vanilla" in text) == compared
    for what in ("seed 0", "2000 images", "supervision: prompts", "95 % interval", "target"):
        assert what in text
    # Every row is one line, so that columns can be read along it.
    for label in (*GROUPS, "corrected gender race", "kernel cartoonfaces balanced ×1000"):
        row(lines, label)
    assert "baker" not in text


def test_the_number_of_images_stands_in_the_headings(made):
    lines = shown(made("fairgen", n=987))
    headings = [line for line in lines if "images" in line and "·" not in line]
    assert headings == [
        "share by gender × race, 987 images",
        "scores, 987 images",
        "scores, 1000 images",
    ]
    # Without an invalid image all scores rest on the same ones.
    headings = [line for line in shown(made("fairgen", n=1000)) if line.startswith("scores")]
    assert headings == ["scores, 1000 images"]


def test_the_baseline_stands_beside_the_run(made):
    lines = shown(made("fairgen"), made("vanilla", groups={}, peak_memory_mib=77.0))
    cells = row(lines, "fairness discrepancy corrected")[1:]
    assert cells == ["0.259 [0.219, 0.301]", "0.053", "0.259"]
    assert row(lines, "female/asian")[1:] == ["5.0% [2.0%, 9.0%]", "25.0%"]
    assert row(lines, "peak memory, MiB")[1:] == ["512", "77"]


def test_long_names_go_on_in_the_next_line(made):
    name = "images-of-a-model-with-a-rather-long-name-from-somewhere-else-again"
    lines = shown(made(name), made("vanilla"))
    start = next(i for i, line in enumerate(lines) if line.startswith(" " * 30))
    end = lines.index(next(line for line in lines if line.startswith("share by")))
    header = "".join(lines[start:end])
    assert name in "".join(header.split()).replace("target", "")
    for number in NUMBERS[:-1]:
        assert number in "\n".join(lines), number


def test_narrower_terminals_cut_nothing_either(made):
    assert "…" not in "\n".join(shown(made("fairgen"), made("vanilla"), width=40))


def test_a_run_without_a_valid_image_still_has_a_table(make_record):
    record = make_record(groups={}, scores=())
    assert any("cost" in line for line in shown(record))


def test_a_score_that_nobody_knows_is_shown_as_it_is(make_record):
    old = Score("quality_of_old", 0.00123, None, None, 9, "higher")
    known = Score("vendi_cartoonfaces", 0.5, None, None, 9, "higher")
    lines = shown(make_record(groups={}, scores=(old, known)))
    assert row(lines, "quality of old")[1:] == ["0.001"]
    assert not any("vendi" in line for line in lines)
    assert any("1 more scores are in the record" in line for line in lines)


def test_a_sentence_says_how_far_and_how_it_was_without(made):
    said = sentence(made("fairgen"), Baseline(made("vanilla", n=1999), shipped=False))
    assert said.startswith("fairgen is 0.259 [0.219, 0.301] from the target; without a method it ")
    assert (
        "was 0.259 (vanilla); a perfectly fair model would be below 0.053 with 992 images" in said
    )
    shipped = sentence(made("fairgen"), Baseline(made("vanilla", n=1999), shipped=True))
    assert "0.259 (fairbench's own record of vanilla, 1,999 images)" in shipped
    assert "without" not in sentence(made("fairgen"), None)


def test_a_sentence_says_whether_a_fair_model_would_look_the_same(make_record):
    fair = Score("fairness_discrepancy_corrected", 0.02, 0.0, 0.04, 500, "lower", "w", 0.05)
    said = sentence(make_record(scores=(fair,)), None)
    assert "would look the same: up to 0.050 is chance with 500 images" in said
    assert sentence(make_record(scores=()), None) == ""


def test_one_reason_is_said_once(make_record):
    reason = "no real image of 'x'"
    names = ("kernel_a_worst_group", "frechet_a_worst_group", "recall_a_worst_group")
    lines = shown(make_record(facts={"not_measured": dict.fromkeys(names, reason)}))
    text = " ".join(lines)
    assert text.count(reason) == 1
    assert all(name.replace("_", " ") in text for name in names)


def test_hostile_names_steer_no_terminal(made):
    lines = "\n".join(shown(made("a\x1b[2J[red]b"), made("vanilla\x07")))
    assert "\x1b" not in lines
    assert "\x07" not in lines
    assert r"a\x1b[2J[red]b" in lines
