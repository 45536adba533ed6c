"""Names that anybody may have written are shown, never obeyed."""

from __future__ import annotations

import pytest

from fairbench.core.tables import Column, lay_out, wrapped
from fairbench.core.text import cell, shown


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain – ↓ é 文", "plain – ↓ é 文"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_steers_a_terminal_is_written_out(text: str, seen: str) -> None:
    assert shown(text) == seen


@pytest.mark.parametrize("formula", ["=cmd()", "+1+cmd", "-1+1", "@SUM(A1)", "＝1"])
def test_no_cell_is_a_formula(formula: str) -> None:
    assert cell(formula) == f"'{formula}"


@pytest.mark.parametrize("number", ["-0.5", "+3", "1e-05", "-1e+300", ".5", "nan", "–", ""])
def test_numbers_stay_numbers(number: str) -> None:
    assert cell(number) == number


def table() -> list[Column]:
    return [
        Column("name", ["debiased_loss_weighting", "x"]),
        Column("n", ["1", "20"], right=True),
        Column("title", ["a rather long sentence of many words", "short"], whole=False),
        Column("first to go", ["y" * 30, "z"], spare=2),
        Column("stays longer", ["u", "v"], spare=1),
    ]


def test_a_table_has_no_padding_and_no_broken_word() -> None:
    lines = lay_out(table())
    assert lines[0].split() == ["name", "n", "title", "first", "to", "go", "stays", "longer"]
    assert all(line == line.rstrip() for line in lines)
    assert len(lines) == 3
    for width in (40, 60, 80, 100):
        narrow = lay_out(table(), width)
        assert max(map(len, narrow)) <= width
        text = "\n".join(narrow)
        for word in ["debiased_loss_weighting", "rather", "sentence", "words", "short"]:
            assert word in text
    assert "first to go" not in "\n".join(lay_out(table(), 80))
    assert "stays longer" in "\n".join(lay_out(table(), 80))


def test_what_cannot_fit_stays_whole() -> None:
    assert "debiased_loss_weighting" in "\n".join(lay_out(table(), 10))
    assert wrapped("a https://example.org/long b", 8) == ["a", "https://example.org/long", "b"]


def test_wide_letters_take_two_places() -> None:
    lines = lay_out([Column("a", ["文文", "x"]), Column("b", ["1", "2"])])
    assert lines[1:] == ["文文  1", "x     2"]
