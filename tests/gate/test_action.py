"""The composite action and the example workflow call what there is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fairbench.app.cli import app

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


def script_of(step, given, folder):
    """What a step's script hands to `fairbench`, an argument a line."""
    stub = folder / "fairbench"
    stub.write_text('#!/bin/sh\nfor one in "$@"; do echo "$one"; done\n')
    stub.chmod(0o755)
    values = {name: told.get("default", "") for name, told in ACTION["inputs"].items()} | given
    filled = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], text)
        for name, text in step["env"].items()
    }
    environment = os.environ | filled | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", "-e", "-c", step["run"]]
    seen = subprocess.check_output(command, env=environment, text=True)
    return seen.splitlines()


@pytest.mark.parametrize("results", ["", "my results; rm -rf x"])
def test_the_action_hands_its_inputs_on_as_they_are(tmp_path, results):
    step = ACTION["runs"]["steps"][-1]
    assert "${{" not in step["run"]
    seen = script_of(step, {"baseline": "a $(b).json", "results": results}, tmp_path)
    assert seen[:4] == ["check", "--baseline", "a $(b).json", "--junit"]
    assert (seen[-2:] == ["--results", results]) == bool(results)


def test_its_options_are_the_commands_own(tmp_path):
    step = ACTION["runs"]["steps"][-1]
    seen = script_of(step, {"baseline": "none.json", "results": "r"}, tmp_path)
    done = CliRunner().invoke(app, seen)
    assert done.exit_code == 2
    assert "none.json: no such baseline" in done.stderr


def test_the_example_workflow_is_one():
    page = (ROOT / "docs" / "gate.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (job,) = yaml.safe_load(text)["jobs"].values()
    (step,) = [one for one in job["steps"] if "fairbench" in one.get("uses", "")]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert "baseline" in step["with"]
