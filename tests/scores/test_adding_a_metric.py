"""The example of docs/adding_a_metric.md runs as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

from fairbench.scores import scoring
from fairbench.scores.catalogue import families
from fairbench.scores.parts.example import example_evidence

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding_a_metric.md"


def test_the_example_and_its_test_run(monkeypatch):
    family, tests = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    module = types.ModuleType("fairbench.scores.spread")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(family, "spread.py", "exec"), module.__dict__)
    names: dict[str, object] = {}
    exec(compile(tests, "test_spread.py", "exec"), names)
    checks = [check for name, check in names.items() if name.startswith("test_")]
    assert len(checks) == 3
    for check in checks:
        check()
    found = scoring.found_in(example_evidence(), [module.FAMILY, *families()])
    assert found.scores[0].name == "spread_example"
    assert any(score.name == "fairness_discrepancy_corrected" for score in found.scores)


def test_the_page_names_every_field_of_a_spec():
    from dataclasses import fields

    from fairbench.core.score import ScoreSpec

    text = PAGE.read_text()
    for field in fields(ScoreSpec):
        assert f"| `{field.name}` |" in text
