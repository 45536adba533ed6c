"""Quick looks at many values of a record, beside the checks of one value after the other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fairbench.leaderboards import leaderboard
from fairbench.storage import layout
from fairbench.storage.records import write_record

COMMITTED = sorted((Path(__file__).parents[2] / "results").glob("*/*/*.json"))
BASELINES = sorted((Path(__file__).parents[1] / "baselines").glob("*.json"))
ODD = (None, True, -1, 0, 2**70, 1.5, -0.5, "text", [], {}, [[]], [1], {"a": 1})


def places(value, found=()):
    """Where values of a kind of place stand first: of a list its first and its last item."""
    yield found
    if isinstance(value, dict):
        for name, one in value.items():
            yield from places(one, (*found, name))
    elif isinstance(value, list) and value:
        for place in {0, len(value) - 1}:
            yield from places(value[place], (*found, place))


def of_record(record):
    try:
        layout.check_layout(record)
    except ValueError as error:
        return str(error)
    return None


def of_baseline(baseline):
    try:
        layout.check_baseline(baseline)
    except ValueError as error:
        return str(error)
    return None


def record():
    """A committed record that holds most kinds of facts, with few of each."""
    data = json.loads(max(COMMITTED, key=lambda path: path.stat().st_size).read_bytes())
    data["scores"] = data["scores"][:4]
    data["groups"] = dict(list(data["groups"].items())[:3])
    data["config"] |= {"parameters": {}, "prompts": [], "neutral_prompts": []}
    return data


def baseline():
    """The smallest baseline that is shipped, of one run."""
    path = min(BASELINES, key=lambda path: path.stat().st_size)
    data = json.loads(path.read_bytes())
    data["runs"] = data["runs"][:1]
    return data


@pytest.mark.parametrize(
    ("make", "verdict", "checked"),
    [
        (record, of_record, layout._RECORD),
        (baseline, of_baseline, layout._BASELINE),
    ],
    ids=["record", "baseline"],
)
def test_quick_looks_find_what_single_ones_find(monkeypatch, make, verdict, checked):
    data, quick = make(), dict(layout._SOUND)
    seen = {True: 0, False: 0}
    for place in [one for one in places(data) if one and one[0] in checked]:
        inner = data
        for step in place[:-1]:
            inner = inner[step]
        before = inner[place[-1]]
        for odd in ODD:
            inner[place[-1]] = odd
            monkeypatch.setattr(layout, "_SOUND", quick)
            found = verdict(data)
            monkeypatch.setattr(layout, "_SOUND", {})
            assert found == verdict(data), (place, odd)
            seen[found is None] += 1
        inner[place[-1]] = before
    assert min(seen.values()) > 150


def test_committed_records_take_quick_looks_only():
    for path in COMMITTED[::20]:
        data = json.loads(path.read_bytes())
        slow = []
        for name, check in layout._RECORD.items():
            if name in data and not layout._are_sound([data[name]], check):
                slow.append(name)
        assert not slow, path


@pytest.mark.parametrize("name", ["config", "card", "environment", "seconds", "rescored"])
@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_too_deeply_is_named(tmp_path, make_record, name, opened, closed):
    # Python's own reader gives up a few levels before orjson does.
    for depth, sound in ((90, True), (101, False), (450, False), (950, False), (5000, False)):
        record = replace(make_record(), rescored={"created": "", "scores": []})
        path = write_record(tmp_path / str(depth), record)
        data = json.loads(path.read_bytes())
        data[name]["deep"] = "…"
        if name == "seconds" and sound:
            continue  # its values are numbers
        text = json.dumps(data).replace('"\\u2026"', opened * depth + "1" + closed * depth)
        path.write_text(text)
        said = []
        assert len(leaderboard(tmp_path / str(depth), warn=said.append)) == sound
        assert bool(said) != sound, depth
        if depth in (101, 450, 950):
            assert (
                f"{name} is nested more than 100 levels deep" in said[0] or "recursion" in said[0]
            )
