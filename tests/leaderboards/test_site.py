from __future__ import annotations

import csv
import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest

from fairbench.core.score import Score
from fairbench.leaderboards import rows, to_csv, to_markdown, to_plot
from fairbench.leaderboards.board import Board
from fairbench.leaderboards.curves import curves_of
from fairbench.leaderboards.formats.latex import to_latex
from fairbench.leaderboards.placing import place_labels
from fairbench.leaderboards.plane import plane_of
from fairbench.leaderboards.site.pages import write_site
from fairbench.leaderboards.site.reported import fair_value, reported

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


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
        Score("fairness_discrepancy", fair, fair - 0.02, fair + 0.02, 900, "lower", "w", 0.03),
        Score(
            "kernel_cartoonfaces_reweighted",
            quality,
            quality - 0.01,
            quality + 0.01,
            900,
            "lower",
            "b",
        ),
    )


def groups():
    def table(target, **counts):
        n = sum(counts.values())
        return [{"group": g, "count": c, "n": n, "target": target} for g, c in counts.items()]

    crossed = {"female/young": 200, "female/old": 100, "male/young": 300, "male/old": 400}
    return {
        "gender": table(0.5, female=300, male=700),
        "gender/age": table(0.25, **crossed),
        "gender|nurse": table(0.5, female=200, male=300),
        "gender|boss": table(0.5, female=100, male=400),
    }


def board(records, results):
    table = rows(records, warn=lambda line: None)
    by_key = {record.key: record for record in records}
    return Board(table, results, lambda row: [by_key[key] for key in row.keys])


@pytest.fixture
def records(make_record):
    more = {"groups": groups()}
    return [
        make_record("vanilla", card={"role": "control"}, scores=scores(0.6, 0.05), **more),
        make_record("fairgen", scores=scores(0.1, 0.1), **more),
        make_record(
            "fairgen", config={"parameters": {"strength": 2.0}}, scores=scores(0.05, 0.2), **more
        ),
        make_record("=cmd()", scores=scores(0.7, 0.3), **more),
        make_record(
            HOSTILE,
            card={"title": HOSTILE, "supervision": [HOSTILE]},
            scores=scores(0.3, 0.08),
            **more,
        ),
        make_record("vanilla", task="race", card={"role": "control"}, scores=scores(0.4, 0.05)),
    ]


@pytest.fixture
def site(records, tmp_path):
    write_site(board(records, tmp_path / "results"), tmp_path / "site")
    return tmp_path / "site"


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def pages(site):
    return {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}


def test_nothing_is_loaded_and_the_policy_forbids_it(site):
    assert len(pages(site)) == 5 + 2 + 6
    for name, text in pages(site).items():
        found = Elements(text)
        policy = next(m["content"] for m in found.of("meta") if m.get("http-equiv"))
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not found.of("link"), name
        assert all("src" not in one for one in found.of("script"))
        loaded = [a["src"] for tag in ("img", "iframe", "source") for a in found.of(tag)]
        assert not [one for one in loaded if ":" in one or one.startswith("//")]
        assert not [
            a for _, a in found.found for key in a if key.startswith("on") or key == "style"
        ]
        assert "url(" not in text


def test_own_script_and_styles_are_small(site):
    text = (site / "index.html").read_text()
    own = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", text, re.DOTALL)
    assert 0 < sum(len(one.encode()) for one in own) <= 30 * 1024


def test_links_lead_to_files_and_anchors(site):
    texts = pages(site)
    for name, text in texts.items():
        for link in Elements(text).of("a"):
            target = link["href"]
            if target.startswith("https://arxiv.org/"):
                continue
            path, _, anchor = target.partition("#")
            other = (site / name).parent.joinpath(path).resolve() if path else site / name
            assert other.is_file(), (name, target)
            if anchor:
                assert f'id="{anchor}"' in other.read_text(), (name, target)


def test_hostile_names_are_shown_and_never_obeyed(site, records):
    for name, text in pages(site).items():
        assert "<script>alert" not in text, name
        assert "\x1b" not in text
        assert "\u202e" not in text
    shown = "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202e"
    assert shown in (site / "index.html").read_text()
    table = rows(records, warn=lambda line: None)
    for text in (to_csv(table), to_markdown(table), to_latex(table)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "<script>" not in to_markdown(table)
    lines = list(csv.DictReader((site / "leaderboard.csv").read_text().splitlines()))
    assert "'=cmd()" in {line["method"] for line in lines}
    assert not [v for line in lines for v in line.values() if v.startswith(("=", "+", "@"))]


def test_the_table_stands_in_the_page_without_a_script(site):
    found = Elements((site / "index.html").read_text())
    assert len(found.of("table")) == 2
    assert [one for one in found.of("th") if one.get("aria-sort") == "ascending"]
    assert len(found.of("button")) > 10
    assert {"kind", "role", "supervision", "dataset", "task", "backbone"} == {
        one["name"] for one in found.of("select")
    }


def test_the_mark_of_older_numbers_is_explained_where_one_is_marked(make_record, tmp_path):
    for version, marked in ((99, False), (1, True)):
        told = tuple(dataclasses.replace(one, version=version) for one in scores(0.6, 0.05))
        made = [make_record("vanilla", scores=told, groups=groups())]
        write_site(board(made, tmp_path), tmp_path / str(version))
        (row,) = (tmp_path / str(version) / "rows").iterdir()
        for page in (tmp_path / str(version) / "index.html", row):
            text = page.read_text()
            assert ("†" in text) == ("†: by an older version" in text) == marked


def test_each_chart_has_a_title_a_description_and_its_numbers(site):
    seen = 0
    for text in pages(site).values():
        for figure in re.findall(r"<figure>(?:(?!<img).)*?</figure>", text, re.DOTALL):
            seen += 1
            found = Elements(figure)
            (svg,) = found.of("svg")
            assert svg["aria-labelledby"] == found.of("title")[0]["id"]
            assert svg["aria-describedby"] == found.of("desc")[0]["id"]
            assert found.of("table")
    assert seen > 20


def test_a_row_tells_how_to_make_it_again(site):
    told = [text for name, text in pages(site).items() if name.startswith("rows/")]
    commands = [c for text in told for c in re.findall(r">(fairbench run [^<]*)<", text)]
    assert any("--method fairgen" in one and "strength=2.0" in one for one in commands)
    assert sum("Configuration and hashes" in text for text in told) == 6


def test_pictures_are_shown_only_where_the_licence_allows(records, tmp_path, make_record):
    foreign = make_record("vanilla", dataset="celeba", scores=scores(0.2, 0.1))
    for record in (records[0], foreign):
        path = tmp_path / "results" / record.dataset / record.method / f"{record.key}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\nrest")
    write_site(board([*records, foreign], tmp_path / "results"), tmp_path / "site")
    assert len(list((tmp_path / "site" / "pictures").iterdir())) == 1


def test_the_same_rows_give_the_same_bytes(records, tmp_path):
    for name in ("one", "two"):
        write_site(board(records, tmp_path), tmp_path / name)
    for path in (tmp_path / "one").rglob("*.html"):
        assert (
            path.read_bytes()
            == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        )


def test_the_pareto_set_and_its_volume(make_record):
    config = {"config": {"target": {"female": 0.5, "male": 0.5}}}
    made = [
        make_record("vanilla", card={"role": "control"}, scores=scores(0.6, 0.05), **config),
        make_record("fairgen", scores=scores(0.1, 0.1), **config),
        make_record("tiw", scores=scores(0.61, 0.2), **config),
        make_record("balanced_data", card={"role": "oracle"}, scores=scores(0.01, 0.01), **config),
    ]
    found = plane_of(rows(made, warn=lambda line: None))
    by = {point.row.method: point for point in found.points}
    assert {name for name, point in by.items() if point.on_set} == {"vanilla", "fairgen"}
    assert by["balanced_data"].probability is None
    assert by["fairgen"].probability == 1.0
    assert by["tiw"].probability == 0.0
    worst = 0.5**0.5
    area = (worst - 0.1) * 0.4 + (worst - 0.6) * 0.05
    assert found.hypervolume == pytest.approx(area / (worst * 0.5))


def test_a_row_on_the_edge_is_on_the_set_in_half_of_the_draws(make_record):
    made = [
        make_record("vanilla", card={"role": "control"}, scores=scores(0.6, 0.05)),
        make_record("fairgen", scores=scores(0.3, 0.30)),
        make_record("tiw", scores=scores(0.3, 0.10)),
    ]
    points = {p.row.method: p for p in plane_of(rows(made, warn=lambda line: None)).points}
    assert points["fairgen"].probability == pytest.approx(0.5, abs=0.05)


def test_rows_that_differ_in_one_number_make_a_curve(records):
    block = [row for row in rows(records, warn=lambda line: None) if row.task == "gender"]
    (found,) = [one for one in curves_of(block) if one.parameter == "strength"]
    assert [value for value, _ in found.points] == [1.0, 2.0]


def test_labels_cover_neither_points_nor_each_other():
    points = [(100 + 6 * i, 100 + 3 * (i % 3)) for i in range(12)]
    centres = place_labels(points, [(14, 12)] * 12, (0, 0, 300, 200), radius=5)
    boxes = [(x - 7, y - 6, x + 7, y + 6) for x, y in centres]
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert (
                one[2] <= other[0]
                or other[2] <= one[0]
                or one[3] <= other[1]
                or other[3] <= one[1]
            )
        for x, y in points:
            assert not (one[0] < x < one[2] and one[1] < y < one[3])


def test_reported_numbers_keep_to_their_own_page(site):
    assert fair_value("delta", 30, 2) == pytest.approx(0.1445, rel=0.02)
    assert fair_value("delta", 30, 3) == pytest.approx(0.1530, rel=0.02)
    assert fair_value("delta", 150, 2) == pytest.approx(0.0650, rel=0.02)
    for one in reported():
        assert one.source
        assert one.table
        assert all(row["origin"] in ("copied", "measured") for row in one.rows)
        assert all(len(row["values"]) == len(one.columns) for row in one.rows)
    holding = [name for name, text in pages(site).items() if "RespoDiff" in text]
    assert holding == ["disagree.html"]


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
def test_plots_come_in_three_formats_with_the_same_bytes(records, suffix, start):
    table = rows(records, warn=lambda line: None)
    drawn = to_plot(table, suffix)
    assert drawn.startswith(start)
    assert drawn == to_plot(table, suffix)


def test_latex_escapes_what_it_would_obey(make_record):
    text = to_latex(rows([make_record("a_b", scores=scores(0.1, 0.1))], warn=lambda line: None))
    assert r"\toprule" in text
    assert "a\\_b" in text
    assert "[0.080, 0.120]" in text
    assert not re.search(r"(?<!\\)_", text.split("\n", 1)[1])


def test_no_rows_make_a_page(tmp_path):
    write_site(Board([], tmp_path, lambda row: []), tmp_path / "site")
    assert "No complete records." in (tmp_path / "site" / "index.html").read_text()
    assert json.dumps(sorted(path.name for path in (tmp_path / "site").iterdir()))


def emptied(table):
    return [{**row, "count": 0} for row in table]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gender", lambda rows: [{**rows[0], "target": 0.3}, *rows[1:]]),
        ("gender", emptied),
        ("gender|nurse", emptied),
        ("gender|nurse", lambda rows: [{**row, "target": None} for row in rows]),
        ("gender|nurse", lambda rows: rows[1:]),
    ],
)
def test_odd_tables_of_groups_end_nothing(records, tmp_path, name, change):
    odd = groups()
    odd[name] = change(odd[name])
    changed = [dataclasses.replace(record, groups=odd) for record in records]
    write_site(board(changed, tmp_path / "results"), tmp_path / "site")
    assert "Why published numbers disagree" in (tmp_path / "site" / "disagree.html").read_text()
