"""The pages say what the code says, and their examples run."""

from __future__ import annotations

import os
import re
import sys
import types
from pathlib import Path

import pytest

from fairbench.build import results_page
from fairbench.build.method_docs import page
from fairbench.leaderboards import leaderboard

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


OWN_TESTS = {
    "adding_a_backbone": "methods/test_adding_a_method.py",
    "adding_a_judge": "instruments/test_catalogue.py",
    "adding_a_method": "methods/test_adding_a_method.py",
    "adding_a_metric": "scores/test_adding_a_metric.py",
}
"""Pages whose examples are whole files of a package -> the test that runs them as such."""


def examples(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


def test_the_tables_of_results_are_written_from_the_committed_records() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    assert all(f"<!-- {name} -->\n" in text for name in results_page.TABLES)
    assert text == results_page.rewritten(text, leaderboard(ROOT / "results"))


def test_the_page_of_methods_is_written_from_the_cards() -> None:
    assert (ROOT / "docs" / "methods.md").read_text() == page()


@pytest.mark.parametrize(
    "path", [p for p in PAGES if examples(p) and p.stem not in OWN_TESTS], ids=lambda p: p.stem
)
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    for example in examples(path):
        module = types.ModuleType("example")
        monkeypatch.setitem(sys.modules, "example", module)
        exec(compile(example, path.name, "exec"), module.__dict__)


@pytest.mark.parametrize(("page_", "test"), OWN_TESTS.items())
def test_pages_of_whole_files_have_a_test_of_their_own(page_: str, test: str) -> None:
    assert page_ in (ROOT / "tests" / test).read_text()


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name}: {target}"
        assert os.path.realpath(path.parent / target).startswith(str(ROOT))
