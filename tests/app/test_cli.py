"""The command line as a user meets it: exit codes, streams, one clear line for bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from fairbench.app import cli
from fairbench.app.cli import app
from fairbench.app.commands.list import Kind
from fairbench.app.outcome import print_outcome
from fairbench.runs.baselines import SHIPPED, shipped_records
from fairbench.runs.running import Outcome

QUICK = ("--steps", "4", "--num-images", "100")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def fairbench(tmp_path: Path) -> Run:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"FAIRBENCH_CACHE": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, "-m", "fairbench", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


def one_line(*arguments: str) -> str:
    """The only line on stderr of a command that the user got wrong; run in this process."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("fairbench: ")
    return line


def test_a_run_prints_one_table_and_is_found_the_second_time(
    fairbench: Run, tmp_path: Path
) -> None:
    first = fairbench("run", "--method", "vanilla", *QUICK)
    second = fairbench("run", "--method", "vanilla", *QUICK)
    third = fairbench("run", "--method", "prompt_append", *QUICK)

    assert first.returncode == second.returncode == third.returncode == 0, first.stderr
    for shown in ("fairness discrepancy", "floor", "female", "female/asian", "frechet", "record"):
        assert shown in first.stdout
    assert first.stderr == ""
    assert "nothing computed" not in first.stdout
    assert "nothing computed" in second.stdout
    assert "vanilla is " in first.stdout.splitlines()[0]
    assert "without a method it was" in third.stdout.splitlines()[0]
    assert "a perfectly fair model would" in third.stdout.splitlines()[0]
    header = next(line for line in third.stdout.splitlines() if "or floor" in line)
    assert "vanilla" in header
    (record,) = (tmp_path / "results" / "cartoonfaces" / "vanilla").glob("*.json")
    assert record.with_suffix(".png").is_file()


def test_json_is_one_document_and_nothing_else(fairbench: Run) -> None:
    one = fairbench("run", "--method", "vanilla", *QUICK, "--json")
    two = fairbench("run", "--method", "vanilla", *QUICK, "--seeds", "0,1", "--json")

    assert json.loads(one.stdout)["status"] == "complete"
    assert [record["config"]["seed"] for record in json.loads(two.stdout)] == [0, 1]


def test_the_leaderboard_reads_records_alone(fairbench: Run, tmp_path: Path) -> None:
    fairbench("run", "--method", "vanilla", *QUICK, "--seeds", "0,1")
    (tmp_path / "results" / "cartoonfaces" / "vanilla" / "broken.json").write_text("{")

    table = fairbench("leaderboard", "--format", "csv")
    written = fairbench("leaderboard", "--format", "markdown", "--output", "board.md")

    assert table.returncode == written.returncode == 0
    assert "broken.json" in table.stderr
    (row,) = csv.DictReader(io.StringIO(table.stdout))
    assert row["method"] == "vanilla"
    assert row["seeds"] == "2"
    assert "fairness_discrepancy" in (tmp_path / "board.md").read_text()
    assert fairbench("leaderboard", "--format", "json").returncode == 0
    shown = fairbench("leaderboard").stdout
    assert "vanilla" in shown
    assert "all columns: --format" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--method", "fairgne"), "did you mean fairgen or fairgen_distilled?"),
        (("--method", "vanilla", "--dataset", "cartoonface"), "did you mean cartoonfaces?"),
        (("--method", "vanilla", "--task", "gendr"), "gender"),
        (("--method", "vanilla", "--backbone", "cartoonfaces-sdd"), "cartoonfaces-sd"),
        (("--method", "fairgen", "--param", "iteration=3"), "did you mean iterations?"),
        (("--method", "fairgen", "--param", "iterations=many"), "must be int"),
        (("--method", "fairgen", "--param", "preset=released"), "as_released"),
        (("--method", "vanilla", "--param", "x=1"), "has no parameters"),
        (("--method", "vanilla", "--target", "female=0.7,male=0.7"), "sum to 1.4"),
        (("--method", "vanilla", "--target", "woman=0.5,man=0.5"), "female, male"),
        (("--method", "vanilla", "--target", "femal=0.5,male=0.5"), "did you mean female"),
        (("--method", "vanilla", "--target", "female=-0.5,male=1.5"), "'female' is -0.5"),
        (("--method", "fairgen", "--param", "learning_rate=nan"), "finite number; seen 'nan'"),
        (("--method", "vanilla", "--num-images", "99"), "at least 100"),
        (("--method", "vanilla", "--device", "cuda:7"), "cuda:7"),
        (("--method", "vanilla", "--device", "gpu"), "auto, cpu, cuda"),
        (("--method", "vanilla", "--dtype", "float16"), "float32"),
        (("--method", "vanilla", "--results", "/proc/nowhere"), "/proc/nowhere"),
        (("--method", "vanilla", "--steps", "0"), "--steps"),
        (("--method", "vanilla", "--eta", "2"), "--eta"),
        (("--method", "vanilla", "--seeds", "1,x"), "--seeds"),
        (("--method", "vanilla", "--seeds", "1,1"), "twice"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in one_line("run", *arguments)


def of_main(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int | str | None, str, str]:
    """Exit code, stdout and stderr of the installed command's entry point; in this process."""
    monkeypatch.setattr(sys, "argv", ["fairbench", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("list methdos", ("unknown kind 'methdos'", "did you mean methods")),
        ("list", ("missing argument", "methods|datasets", "see fairbench list --help")),
        ("list tasks methods", ("extra argument", "see fairbench list --help")),
        ("leaderboard --format xls", ("--format 'xls'", "json, latex, markdown, table")),
        ("leaderboard --format markdwon", ("did you mean markdown?",)),
        ("run", ("missing option '--method'", "see fairbench run --help")),
        ("run --method vanilla --num-images abc", ("--num-images", "integer", "run --help")),
        ("run --mehtod vanilla", ("no such option", "--mehtod", "--method", "run --help")),
        ("run --method", ("--method", "requires an argument", "--help")),
        ("evaluate", ("missing argument", "see fairbench evaluate --help")),
        ("leaderbord", ("no such command 'leaderbord'", "'leaderboard'", "see fairbench --help")),
    ],
)
def test_a_mistyped_command_is_one_clear_line(
    arguments: str,
    expected: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = of_main(tuple(arguments.split()), monkeypatch, capsys)

    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("fairbench: ")
    assert all(word in line for word in expected), line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("run --method vanilla --batch-size 8", "--network-batch 8"),
        ("evaluate x --batch-size 8", "--network-batch 8"),
        ("run --method vanilla --num-images 1000000000000", "at most 1000000"),
        ("run --method vanilla --network-batch 100000", "--network-batch"),
        ("run --method fairgen --param batch=1000000000", "at most 4096"),
        ("run --method vanilla --seed 99999999999999999999", "--seed"),
        ("run --method fairgen --grid strength", "--grid must be key=value,value"),
        ("run --method fairgen --grid strength=1,1", "twice"),
        ("run --method fairgen --grid strength=1,2 --param strength=1", "not both"),
        ("run --method fairgen --grid strengt=1,2", "did you mean strength?"),
        ("run --method vanilla --encoder inceptoin", "did you mean inception"),
        ("run --method vanilla --dry-run --task gendr", "did you mean gender"),
        ("leaderboard --task gendr --results RECORDS", "did you mean gender"),
        ("leaderboard --dataset cartoonface --results RECORDS", "did you mean cartoonfaces"),
        ("leaderboard --results RECORDS --output x.txt", "give --format"),
        ("leaderboard --results RECORDS --format table --output x.md", "--output needs --format"),
        ("leaderboard --results RECORDS --output /proc/none/x.csv", "--output"),
        ("leaderboard --results RECORDS --plot /proc/none/x.png", "--plot"),
        ("leaderboard --results RECORDS --output RECORDS", "--output"),
        ("evaluate RECORDS --labels nowhere.csv", "no such file"),
        ("evaluate RECORDS --baseline nowhere.json", "nowhere.json"),
        ("evaluate RECORDS --name vanilla", "method's name"),
        ("cache prune", "name kinds"),
        ("cache prune imges", "did you mean images"),
    ],
)
def test_options_are_checked_before_any_work(
    arguments: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    words = [str(SHIPPED) if word == "RECORDS" else word for word in arguments.split()]
    if "leaderboard" in words:
        words[words.index(str(SHIPPED))] = str(shelved(tmp_path))
    assert expected in one_line(*words)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("leaderboard", "--results", ""),
        ("leaderboard", "--format", "csv", "--output="),
        ("leaderboard", "--plot="),
        ("run", "--method", "vanilla", "--results", ""),
        ("run", "--method", "vanilla", "--data-root", ""),
        ("evaluate", ""),
        ("evaluate", "x", "--labels", " "),
        ("rescore", ""),
    ],
)
def test_an_empty_path_is_none(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = of_main(arguments, monkeypatch, capsys)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    kind = "folder or an address" if "--results" in arguments else "path"
    assert f"expected a {kind}, seen nothing" in line


def shelved(folder: Path) -> Path:
    """The shipped records as a folder of results."""
    shelf = folder / "shelf" / "cartoonfaces" / "vanilla"
    shelf.mkdir(parents=True)
    for path in SHIPPED.glob("*.json"):
        shutil.copy(path, shelf)
    return folder / "shelf"


def test_version_help_and_completion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = of_main(("--version",), monkeypatch, capsys)
    assert not code
    assert re.fullmatch(r"fairbench \d+\.\d+\.\d+\S*\n", out)
    for arguments in (("-h",), ("run", "-h"), ("cache", "prune", "-h")):
        code, out, _ = of_main(arguments, monkeypatch, capsys)
        assert not code
        assert out.startswith(f"Usage: {' '.join(('fairbench', *arguments[:-1]))}")
    code, out, _ = of_main(("--help",), monkeypatch, capsys)
    assert "--install-completion" in out


def test_the_leaderboard_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf = shelved(tmp_path)
    code, out, _ = of_main(("leaderboard", "--results", str(shelf), "--json"), monkeypatch, capsys)
    assert not code
    assert {row["method"] for row in json.loads(out)} == {"vanilla"}


def test_tables_in_a_pipe_have_no_padding_and_in_80_columns_no_broken_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [
        *(("list", kind) for kind in Kind),
        ("leaderboard", "--results", str(shelved(tmp_path))),
    ]
    for command in commands:
        monkeypatch.delenv("COLUMNS", raising=False)
        _, piped, _ = of_main(command, monkeypatch, capsys)
        assert all(line == line.rstrip() for line in piped.splitlines())
        monkeypatch.setenv("COLUMNS", "80")
        _, narrow, _ = of_main(command, monkeypatch, capsys)
        assert max(map(len, narrow.splitlines())) <= 80
        names = [line.split(None, 1)[0] for line in piped.splitlines() if line.strip()]
        for name in names:
            assert name in narrow


def test_warnings_about_hostile_records_are_one_harmless_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf = shelved(tmp_path)
    hostile = shelf / "cartoonfaces" / "a\x1b[2J\nb"
    hostile.mkdir()
    (hostile / "x.json").write_text("{")
    code, _, err = of_main(("leaderboard", "--results", str(shelf)), monkeypatch, capsys)
    assert not code
    (line,) = err.splitlines()
    assert r"a\x1b[2J\nb" in line


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize(
    "ending", [">&-", "2>&-", ">&- 2>&- <&-", "| head -1", "| true", "2>&1 | true"]
)
@pytest.mark.parametrize("command", ["list methods", "leaderboard --results shelf --format csv"])
def test_closed_pipes_end_quietly(tmp_path: Path, command: str, ending: str) -> None:
    shelved(tmp_path)
    line = f"{sys.executable} -m fairbench {command} {ending}; echo ${{PIPESTATUS[0]}} >code"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "code").read_text().strip() in ("0", "141")
    assert done.stderr == ""


def test_help_is_shown_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code in (((), 2), (("--help",), 0), (("run", "--help"), 0)):
        seen, out, err = of_main(arguments, monkeypatch, capsys)
        assert not seen if code == 0 else seen == code
        assert "Usage: fairbench" in (out or err)
        assert len((out or err).splitlines()) > 5


@pytest.mark.parametrize("names", ["methods", "datasets"])
def test_commands_that_went_well_exit_with_0(
    names: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = of_main(("list", names), monkeypatch, capsys)
    assert not code
    assert out
    assert err == ""


def test_too_few_images_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "few"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32)).save(folder / f"{i}.png")

    for least in ((), ("--num-images", "100")):
        line = one_line("evaluate", "few", *least)
        assert line.endswith("few holds 3 images, expected at least 100; add images")
    line = one_line("evaluate", "few", "--num-images", "101")
    assert line.endswith("few holds 3 images, expected at least 101; add images or ask for fewer")


def test_a_missing_folder_of_images_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "nowhere" in one_line("evaluate", "nowhere")
    assert "empty" in one_line("evaluate", "empty")
    assert "mean over prompts" in one_line("evaluate", "empty", "--task", "gender_by_role")


def test_evaluate_takes_a_folder(fairbench: Run, tmp_path: Path) -> None:
    from fairbench.datasets.cartoonfaces import load_split

    folder = tmp_path / "real"
    folder.mkdir()
    larger = []
    for i, image in enumerate(load_split("evaluation").images[:150]):
        larger.append(Image.fromarray(np.asarray(image)).resize((64, 64)))
        larger[i].save(folder / f"{i}.png")

    done = fairbench("evaluate", "real", "--task", "race", "--name", "real-faces", "--json")

    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["method"] == "real-faces"
    assert record["config"]["num_images"] == 150
    assert record["config"]["size"] == [64, 64]  # as they are: instruments resize for themselves

    np.savez(tmp_path / "faces.npz", np.stack([np.asarray(image) for image in larger]))
    done = fairbench("evaluate", "faces.npz", "--task", "race", "--json")

    assert done.returncode == 0, done.stderr
    array = json.loads(done.stdout)
    assert array["method"] == "faces"
    assert array["config"]["images"] == record["config"]["images"]


@pytest.mark.parametrize(
    "kind",
    ["methods", "datasets", "tasks", "backbones", "metrics", "instruments", "families", "formats"],
)
def test_lists(fairbench: Run, kind: str) -> None:
    plain, as_json = fairbench("list", kind), fairbench("list", kind, "--json")

    assert plain.returncode == as_json.returncode == 0
    rows = json.loads(as_json.stdout)
    assert rows
    assert all(row["name"].split("<")[0] in plain.stdout for row in rows)


def test_listed_methods_say_type_default_and_meaning(fairbench: Run) -> None:
    rows = {row["name"]: row for row in json.loads(fairbench("list", "methods", "--json").stdout)}

    parameter = next(p for p in rows["fairgen"]["parameters"] if p["name"] == "cfg_branch")
    assert parameter["type"] == "cond|both"
    assert parameter["default"] == "cond"
    assert parameter["help"]
    assert rows["fairgen"]["presets"]["as_released"]["parameters"]["neutral"] == "empty"
    assert rows["fairgen"]["supervision"] == ["prompts"]
    assert rows["vanilla"]["supervision"] == []


def test_doctor_finds_everything_that_is_shipped(fairbench: Run) -> None:
    done = fairbench("doctor", "--verify", "--json")
    findings = {row["what"]: row for row in json.loads(done.stdout)}

    assert findings["split pool"]["ok"]
    assert findings["weights judge_primary"]["ok"]
    assert done.returncode == (
        0 if all(row["ok"] or row["optional"] for row in findings.values()) else 2
    )


def test_an_internal_failure_is_one_line_and_a_log(fairbench: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import fairbench.methods\n"
        "def broken(name, given): raise RuntimeError('broken on purpose')\n"
        "fairbench.methods.make_method = broken\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "fairbench", "run", "--method", "vanilla"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 3
    (line,) = done.stderr.strip().splitlines()
    assert "broken on purpose" in line
    log = Path(line.split("traceback in ")[1].split(",")[0])
    assert "RuntimeError" in log.read_text()
    log.unlink()


# --- stopped half-way -------------------------------------------------------------------------

SLOW = ("run", "--method", "vanilla", *QUICK, "--network-batch", "20", "--device", "cpu")


def record_in(folder: Path) -> dict[str, object]:
    """The only record of a folder, which holds no half-written file beside it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".npz", ".png"}
    (path,) = (path for path in files if path.suffix == ".json")
    return dict(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The record of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    environment = os.environ | {"FAIRBENCH_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "fairbench", *SLOW]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    return record_in(folder / "results")


def stop_after_a_batch(folder: Path, by: signal.Signals) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a run that is sent a signal once a batch is stored."""
    running = subprocess.Popen(
        [sys.executable, "-m", "fairbench", *SLOW],
        cwd=folder,
        env=os.environ | {"FAIRBENCH_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((folder / "cache").glob("images/*/batch-*.npz")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline, "no batch was stored"
        time.sleep(0.005)
    running.send_signal(by)
    out, err = running.communicate(timeout=60)
    return running.returncode, out, err


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_goes_on(
    fairbench: Run, tmp_path: Path, undisturbed: dict[str, object], by: signal.Signals
) -> None:
    code, out, err = stop_after_a_batch(tmp_path, by)

    assert (code, out) == (130, "")
    (line,) = err.splitlines()
    assert line.startswith("fairbench: interrupted; the same command")
    left = record_in(tmp_path / "results")
    assert (left["status"], left["error"]) == ("interrupted", "interrupted")
    assert left["sidecar"] is None
    again = fairbench(*SLOW)
    assert (again.returncode, again.stderr) == (0, "")
    done = record_in(tmp_path / "results")
    assert (done["status"], done["key"]) == ("complete", left["key"])
    assert done["sidecar"] == undisturbed["sidecar"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_run_goes_on_to_the_same_images(
    fairbench: Run, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    code, _, _ = stop_after_a_batch(tmp_path, signal.SIGKILL)
    stored = list((tmp_path / "cache").glob("images/*/batch-*.npz"))

    assert code == -signal.SIGKILL
    assert stored
    assert not list((tmp_path / "results").rglob("*.json"))
    again = fairbench(*SLOW)
    assert (again.returncode, again.stderr) == (0, "")
    done = record_in(tmp_path / "results")
    assert done["status"] == "complete"
    assert done["scores"] == undisturbed["scores"]
    assert done["sidecar"] == undisturbed["sidecar"]


@pytest.mark.parametrize("left", [130, typer.Abort()])
def test_an_interruption_between_commands_is_one_line(
    left: int | typer.Abort, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**options: object) -> int:
        if isinstance(left, int):
            return left
        raise left

    monkeypatch.setattr(cli, "app", interrupted)
    code, out, err = of_main(("list",), monkeypatch, capsys)
    assert (code, out) == (130, "")
    assert err == f"{cli.INTERRUPTED}\n"


# --- the cache --------------------------------------------------------------------------------


def test_the_cache_says_its_size_and_is_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path))
    kept = tmp_path / "images" / "k" / "all.npz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(bytes(2**20))
    for command in (("cache",), ("cache", "size")):
        code, out, _ = of_main(command, monkeypatch, capsys)
        assert not code
        assert "images" in out
        assert "1.0 MiB" in out
    code, out, _ = of_main(("cache", "--json"), monkeypatch, capsys)
    assert json.loads(out)["kinds"][0]["bytes"] == 2**20
    _, out, _ = of_main(("cache", "prune", "images", "--dry-run"), monkeypatch, capsys)
    assert out == "would remove 1 files, 1.0 MiB\n"
    assert kept.is_file()
    of_main(("cache", "prune", "images"), monkeypatch, capsys)
    assert not kept.exists()


def test_a_quiet_run_prints_where_its_record_lies_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = next(shipped_records())
    path = SHIPPED / f"{record.key}.json"
    outcome = Outcome(record, path, found=True)
    print_outcome(outcome, None, quiet=True)
    assert capsys.readouterr().out == f"{path}\n"
    print_outcome(outcome, None, quiet=False)
    loud = capsys.readouterr().out.splitlines()
    assert "nothing computed" in loud[0]
    assert "from the target" in loud[1]
