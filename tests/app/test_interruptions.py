"""Ctrl-C and SIGTERM, at any moment: one line, exit code 130, and no second word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

BOTH = pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])

STOP_AT = """\
import signal, sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            {strike}
sys.meta_path.insert(0, Stop())
"""


def told(folder: Path, start: str, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in whose process some Python is run first."""
    (folder / "sitecustomize.py").write_text(start)
    searched = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "fairbench", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": searched, "FAIRBENCH_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@BOTH
@pytest.mark.parametrize("module", ["typer", "fairbench.runs.config"])
def test_an_interrupted_import_is_one_line(
    tmp_path: Path, module: str, by: signal.Signals
) -> None:
    start = STOP_AT.format(module=module, strike=f"signal.raise_signal({by:d})")
    code, out, err = told(tmp_path, start, "list", "methods")
    assert (code, out) == (130, "")
    assert err == "fairbench: interrupted\n"


@BOTH
def test_a_signal_that_strikes_within_an_executed_string_ends_with_the_usual_code(
    tmp_path: Path, by: signal.Signals
) -> None:
    strike = f"exec('signal.raise_signal({by:d})')"  # as a dataclass or a named tuple is made
    start = STOP_AT.format(module="fairbench.runs.rescoring", strike=strike)
    (tmp_path / "results").mkdir()
    code, out, err = told(tmp_path, start, "rescore", "results")
    assert (code, out) == (130, "")
    (line,) = err.splitlines()
    assert line.startswith("fairbench: interrupted")


@BOTH
def test_a_signal_after_the_end_changes_nothing(tmp_path: Path, by: signal.Signals) -> None:
    start = f"import atexit, signal\natexit.register(signal.raise_signal, {by:d})\n"
    code, out, err = told(tmp_path, start, "list", "methods")
    assert (code, err) == (0, "")
    assert "vanilla" in out


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_of_one_moment_are_one(tmp_path: Path, second: signal.Signals) -> None:
    """As `timeout` sends them, to a command and then to its group."""
    start = STOP_AT.format(module="fairbench.runs.generation", strike="strike()") + (
        "def strike():\n"
        "    try:\n"
        f"        signal.raise_signal({signal.SIGTERM:d})\n"
        "    finally:\n"  # what a command does before it ends
        f"        signal.raise_signal({second:d})\n"
        "        print('tidied')\n"
    )
    code, out, err = told(tmp_path, start, "run", "--method", "vanilla", "--dataset", "analytic")
    assert (code, out) == (130, "tidied\n")
    (line,) = err.splitlines()
    assert line.startswith("fairbench: interrupted")


HELPED = """\
import os
import time
from fairbench.core.interrupts import listen, no_more
from fairbench.leaderboards import helpers
def work(items):
    os.write(1, b"at it\\n")  # at once, since others write there, too
    time.sleep(60)
listen()
try:
    list(helpers.mapped(work, range(1000)))
except KeyboardInterrupt:
    no_more()
    print("ended", flush=True)
"""


@BOTH
@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_helpers_end_without_a_word(by: signal.Signals) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core has no helpers")
    with subprocess.Popen(
        [sys.executable, "-c", HELPED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "at it\n"
        time.sleep(0.1)
        os.killpg(running.pid, by)  # as a terminal sends Ctrl-C
        out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "ended"
