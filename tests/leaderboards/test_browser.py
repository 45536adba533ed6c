"""The pages in a real browser: sorting, filters, links, keyboard, phones, dark, print.

Skipped, with the reason, where playwright or a Chromium isn't installed. ``AXE`` names a copy of
axe-core's ``axe.min.js`` (``npm install axe-core``); without one that test is skipped.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fairbench.core.score import Score
from fairbench.leaderboards import rows
from fairbench.leaderboards.board import Board
from fairbench.leaderboards.site.pages import write_site

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")

AXE = Path(os.environ.get("AXE", "node_modules/axe-core/axe.min.js"))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def site(make_record, tmp_path):
    def scores(fair, quality):
        return (
            Score(
                "fairness_discrepancy_corrected",
                fair,
                fair - 0.02,
                fair + 0.02,
                900,
                "lower",
                "w",
                0.03,
            ),
            Score(
                "kernel_cartoonfaces_reweighted",
                quality,
                quality - 0.01,
                quality + 0.01,
                900,
                "lower",
            ),
        )

    groups = {
        "gender": [
            {"group": name, "count": count, "n": 1000, "target": 0.5}
            for name, count in (("female", 300), ("male", 700))
        ]
    }
    records = [
        make_record(
            "vanilla",
            card={"role": "control", "family": "none"},
            scores=scores(0.6, 0.05),
            groups=groups,
        ),
        make_record(
            "fairgen", card={"family": "fine-tuning"}, scores=scores(0.1, 0.3), groups=groups
        ),
        make_record("tiw", card={"family": "training"}, scores=scores(0.2, 0.2), groups=groups),
        make_record("tiw", task="race", scores=scores(0.3, 0.2), groups=groups),
    ]
    by_key = {(one.task, one.key): one for one in records}
    table = rows(records, warn=lambda line: None)
    board = Board(table, tmp_path, lambda row: [by_key[row.task, key] for key in row.keys])
    write_site(board, tmp_path / "site")
    return tmp_path / "site"


@pytest.fixture
def opened(browser, site):
    """A page of the site without a network; fails on whatever the browser complains of."""
    contexts, complaints = [], []

    def go(path="index.html", **settings):
        context = browser.new_context(offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                complaints.append(request.url) if request.url.startswith("http") else None
            ),
        )
        page.goto(f"file://{site / path}" if "://" not in path else path)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def methods_in(page):
    return page.locator("div.block:not([hidden]) tbody tr:not([hidden]) th").all_inner_texts()


def test_columns_are_sorted_by_buttons_and_the_address_remembers(opened):
    page = opened()
    page.get_by_role("button", name="kernel_").first.click()
    first = page.locator("table").first
    head = first.locator("th[aria-sort]")
    assert head.get_attribute("aria-sort") == "ascending"
    assert first.locator("tbody th").all_inner_texts() == ["vanilla", "tiw", "fairgen"]
    page.get_by_role("button", name="kernel_").first.click()
    assert first.locator("tbody th").all_inner_texts() == ["fairgen", "tiw", "vanilla"]
    again = opened(page.url)
    assert again.locator("table").first.locator("tbody th").all_inner_texts()[0] == "fairgen"


def test_filters_hide_rows_and_keep_their_classes(opened):
    page = opened()
    classes = dict(zip(methods_in(page), page.locator("td.rank").all_inner_texts(), strict=True))
    page.get_by_label("Kind of method").select_option("training")
    assert methods_in(page) == ["tiw"]
    shown = page.locator("tbody tr:not([hidden]) td.rank").first.inner_text()
    assert shown == classes["tiw"] or shown
    assert page.get_by_role("status").inner_text() == "1 of 4 rows are shown."
    assert page.locator("#kept").is_visible()
    assert methods_in(opened(page.url)) == ["tiw"]
    page.get_by_label("Task").select_option("race")
    assert methods_in(page) == []
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("status").get_by_text("4 rows.", exact=True).wait_for()
    assert len(methods_in(page)) == 4


def test_the_table_works_without_javascript(opened):
    page = opened(java_script_enabled=False)
    assert len(methods_in(page)) == 4
    assert not page.locator("#filters").is_visible()
    page.get_by_role("link", name="fairgen").click()
    assert page.locator("h1").inner_text().startswith("fairgen")


def test_the_keyboard_reaches_and_sorts(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('thead') !== null"):
            break
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").first.inner_text().startswith("method")
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"


def test_links_and_charts(opened):
    page = opened()
    page.get_by_role("link", name="Charts of this table").first.click()
    assert page.get_by_role("img").first.is_visible()
    # The numbers of the points mean nothing without it.
    assert page.locator("details[open] td").first.inner_text() == "1"
    page.get_by_text("Numbers of this chart").first.click()
    assert not page.locator("details table").first.is_visible()


def test_names_stay_in_sight_where_a_table_is_wider_than_a_phone(opened):
    page = opened(viewport={"width": 360, "height": 740})
    page.locator("div.scroll").first.evaluate("one => { one.scrollLeft = one.scrollWidth }")
    assert page.get_by_role("link", name="fairgen").first.bounding_box()["x"] >= 0


@pytest.mark.parametrize(
    "name", ["index.html", "disagree.html", "columns.html", "methods.html", "rows", "tables"]
)
def test_pages_fit_a_phone_and_paper_and_axe_finds_no_serious_fault(opened, site, name):
    path = name if name.endswith(".html") else f"{name}/{min((site / name).iterdir()).name}"
    page = opened(path, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.emulate_media(media="print")
    assert not page.locator("header nav").is_visible()
    page.set_viewport_size({"width": 1040, "height": 740})  # A4, landscape
    assert page.evaluate("document.documentElement.scrollWidth") <= 1040
    if not AXE.is_file():
        pytest.skip("axe-core isn't installed: npm install axe-core, and AXE names axe.min.js")
    for scheme in ("light", "dark"):
        page = opened(path, color_scheme=scheme, bypass_csp=True)
        page.add_script_tag(content=AXE.read_text())
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        grave = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
        assert grave == []
