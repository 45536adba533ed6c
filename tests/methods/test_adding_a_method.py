"""The examples of docs/adding_a_method.md and adding_a_backbone.md are whole files that work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fairbench.app.cli import main
from fairbench.backbones.base import Family
from fairbench.methods import get_method, known_methods, method_names
from fairbench.methods.parts.contract import check_method

DOCS = Path(__file__).parents[2] / "docs"


def example(page):
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    return code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose entry points are a method and one that can't be imported."""
    (tmp_path / "my_package.py").write_text(example("adding_a_method.md"))
    (tmp_path / "my_package-1.0.dist-info").mkdir()
    folder = tmp_path / "my_package-1.0.dist-info"
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[fairbench.methods]\nnamed_direction = my_package:METHOD\nbroken = nowhere:METHOD\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_package", None)


def test_a_method_of_another_package_is_found_and_holds_to_the_contract(package):
    assert {"named_direction", "broken", "vanilla"} <= set(method_names())
    outcomes = list(check_method("named_direction"))
    assert not [outcome for outcome in outcomes if outcome.problem]
    assert any("(mixture)" in outcome.what for outcome in outcomes)
    assert any("(text)" in outcome.what for outcome in outcomes)
    assert not get_method("named_direction").card.ranked


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("vanilla", 0, "ok "),
        ("vanila", 2, "did you mean vanilla"),
        ("broken", 2, "nowhere:METHOD"),
    ],
)
def test_the_command_prints_a_line_a_check(name, code, said, package, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fairbench", "check-method", name])
    with pytest.raises(SystemExit) as caught:
        main()
    seen = capsys.readouterr()
    lines = (seen.out + seen.err).splitlines()
    assert (caught.value.code or 0) == code
    assert said in lines[0]
    assert len(lines) > 10 if code == 0 else len(lines) == 1


def test_a_check_that_fails_is_one_line_and_exit_code_2(package, tmp_path, monkeypatch, capsys):
    path = tmp_path / "my_package.py"
    path.write_text(path.read_text().replace("return denoise, calls + 1", "return denoise, calls"))
    monkeypatch.setattr(sys, "argv", ["fairbench", "check-method", "named_direction"])
    with pytest.raises(SystemExit) as caught:
        main()
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert caught.value.code == 2
    assert len(wrong) == 2  # on either backbone that it fits
    assert all("network calls" in line for line in wrong)


def test_listing_methods_imports_no_torch(package):
    code = (
        "import sys; from fairbench.app.cli import main\n"
        "sys.argv = ['fairbench', 'list', 'methods', '--json']\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert {"named_direction", "vanilla"} <= {row["name"] for row in json.loads(run.stdout)}
    assert run.stderr.splitlines()[-1] == "False"
    assert "nowhere:METHOD can't be imported" in run.stderr


def test_a_broken_method_of_another_package_is_named_and_stops_nothing(package):
    found, broken = known_methods()
    assert {"named_direction", "vanilla"} <= set(found)
    assert set(broken) == {"broken"}
    assert "nowhere:METHOD can't be imported" in broken["broken"]


def test_the_example_of_a_family_is_one():
    names = {}
    exec(compile(example("adding_a_backbone.md"), "adding_a_backbone.md", "exec"), names)
    assert isinstance(names["FAMILY"], Family)
