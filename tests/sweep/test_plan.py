"""A plan's text -> its runs; what is wrong in it is one line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairbench.app.cli import app
from fairbench.core.errors import InputError
from fairbench.core.progress import Reporter
from fairbench.storage.places import place_of
from fairbench.storage.records import read_records
from fairbench.sweep.asked import ask
from fairbench.sweep.plan import COMMITTED, plan_of, read_plan
from fairbench.sweep.sweeping import Sweep

RESULTS = Path(__file__).parents[2] / "results"

WHOLE = """
dataset = "analytic"
num_images = 200
seeds = [0, 1]

[[block]]
methods = ["vanilla", "prompt_append"]
tasks = ["tone", "tone_hue"]

[[block]]
methods = ["distribution_guidance"]
backbones = ["analytic-plain"]
seeds = [3]
steps = 20
parameters.distribution_guidance = { batch = 32 }
grid.distribution_guidance = { trajectories = [64, 128] }

[engine.slurm]
partition = "gpu"
"""


def test_blocks_are_crossed_and_take_over_what_stands_before_them(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(WHOLE)
    plan = read_plan(path)
    assert len(plan.runs) == 2 * 2 * 2 + 2
    first, last = plan.runs[0], plan.runs[-1]
    assert (first.method, first.task, first.seed, first.num_images) == ("vanilla", "tone", 0, 200)
    assert (last.backbone, last.seed, last.steps) == ("analytic-plain", 3, 20)
    assert last.parameters == ("batch=32", "trajectories=128")
    assert plan.engines == {"slurm": {"partition": "gpu"}}


def test_the_command_line_takes_the_place_of_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(WHOLE)
    plan = read_plan(path, {"methods": ["vanilla"], "seeds": [7], "backbones": "all"})
    assert {run.method for run in plan.runs} == {"vanilla"}
    assert {run.seed for run in plan.runs} == {7}
    assert {run.backbone for run in plan.runs} == {"analytic-text", "analytic-plain"}


def test_a_run_that_two_blocks_ask_is_asked_once() -> None:
    block = {"methods": ["vanilla"], "dataset": "analytic"}
    assert len(plan_of({"block": [block, block]}, "here").runs) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("methods = ['vanila']", "did you mean vanilla"),
        ("method = ['vanilla']", "did you mean methods"),
        ("methods = []", "methods must be a list of names"),
        ("methods = ['vanilla', 'vanilla']", "each name stands once"),
        ("methods = ['vanilla']\nseeds = [0, 0]", "each seed stands once"),
        ("methods = ['vanilla']\nseeds = [true]", "seeds must be a list of whole numbers"),
        ("methods = ['vanilla']\nseeds = [-1]", "--seed must lie in"),
        ("methods = ['vanilla']\nsteps = '20'", "steps must be a whole number"),
        ("methods = ['vanilla']\nnum_images = 10", "--num-images must be at least 100"),
        ("methods = ['vanilla']\ntasks = ['tune']", "did you mean tone"),
        ("methods = ['vanilla']\nparameters = 3", "tables of methods"),
        ("methods = ['vanilla']\ngrid.vanilla = {x = 3}", "lists of values"),
        ("methods = ['vanilla']\nengine = 3", "go into a table"),
        ("methods = ['vanilla']\nblock = 3", "written as [[block]]"),
        ("tasks = ['tone']", "no methods"),
        ("methods = [", "expected a plan in TOML"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(f"{text}\ndataset = 'analytic'" if "block = 3" not in text else text)
    done = CliRunner().invoke(app, ["sweep", str(path)])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep"], "nothing to sweep"),
        (["sweep", "status"], "nothing to sweep"),
        (["sweep", "none.toml"], "No such file"),
        (["sweep", "a.toml", "b.toml"], "one plan at a time"),
        (["sweep", "a.toml", "--committed"], "not both"),
        (["sweep", "--methods", "vanilla", "--jobs", "0"], "--jobs must lie in 1"),
        (["sweep", "--methods", "vanilla,"], "--methods must be all"),
        (["sweep", "--methods", "vanilla", "--seeds", "x"], "--seeds must be numbers"),
        (["sweep", "--methods", "vanilla", "--engine", "loacl"], "did you mean local"),
        (["sweep", "--methods", "vanilla", "--results", "nope://x"], "nope"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


def test_a_run_that_is_wrong_by_itself_is_named_before_any_work() -> None:
    plan = plan_of(
        {
            "dataset": "analytic",
            "methods": ["vanilla", "distribution_guidance"],
            "parameters": {"distribution_guidance": {"trajectories": "many"}},
        },
        "here",
    )
    with pytest.raises(InputError, match=r"distribution_guidance .*--param trajectories must be"):
        ask(plan.runs, place_of("results"), Reporter())


def test_combinations_that_dont_go_together_are_left_out(sweep_of: Callable[..., Sweep]) -> None:
    both = sweep_of(methods=["vanilla", "prompt_append"], backbones="all")
    assert len(both.asked) == 2 * 2 + 2
    assert len(both.left_out) == 1
    assert both.left_out[0].startswith("prompt_append needs a text-to-image backbone")
    with pytest.raises(InputError, match="no run of this plan can be made: prompt_append needs"):
        sweep_of(methods=["prompt_append"], backbones=["analytic-plain"])


def test_settings_that_are_defaults_are_the_same_run(sweep_of: Callable[..., Sweep]) -> None:
    blocks = [{"methods": ["vanilla"]}, {"methods": ["vanilla"], "steps": 40}]
    assert len(sweep_of(block=blocks, tasks=["tone"]).asked) == 1


def test_the_committed_plan_is_that_of_the_committed_records() -> None:
    whole = Sweep.of(read_plan(COMMITTED), str(RESULTS), Reporter(), device="cpu")
    committed = {record.key for record in read_records(RESULTS, pytest.fail)}
    answered = [committed.intersection(one.keys) for one in whole.asked]
    assert all(len(keys) == 1 for keys in answered)
    assert set().union(*answered) == committed
    assert whole.counts() == {"done": len(committed), "running": 0, "failed": 0, "missing": 0}
    assert not whole.steps(retry_failed=True)


def test_the_plan_of_the_documentation_can_be_run() -> None:
    page = (RESULTS.parent / "docs" / "gpu_and_scale.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    plan = plan_of(tomllib.loads(text), "the page")
    found = ask(plan.runs, place_of("results"), Reporter())
    assert len(found.asked) == 3 * 2 * (1 + 2 + 1)
    assert not found.left_out
    assert plan.engines.keys() == {"slurm", "ray"}


def test_the_file_of_the_committed_plan_is_up_to_date() -> None:
    from fairbench.build.committed_plan import plan_text

    assert COMMITTED.read_text(encoding="utf-8") == plan_text(RESULTS)


def test_a_dry_run_lists_steps_and_hours_and_makes_nothing(tmp_path: Path) -> None:
    words = ["sweep", "--methods", "vanilla", "--seeds", "5,6", "--dry-run", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["missing"] == 2
    assert [step["kind"] for step in told["steps"]] == ["run", "run"]
    assert told["hours_left"] > 0  # by the records that come with fairbench
    assert not (tmp_path / "results").exists()
