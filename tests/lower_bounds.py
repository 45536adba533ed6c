"""Installs the lowest versions that pyproject.toml allows in a fresh environment, runs the tests.

By hand, from the root of the source tree; takes minutes and downloads packages:

    python tests/lower_bounds.py [--python python3.11] [--instead NAME==VERSION] [-- PYTEST ARGS]

Says which version of each package was installed, and whether the tests pass with them.
``--instead`` takes another version of a package whose lowest can't be had here; it is said, too.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


TOOLS = ("build", "mypy", "pandas-stubs", "ruff")
"""What no test imports."""


def lowest(requirement: str) -> str:
    """A requirement with its lower bound as the only version, such as ``"numpy==1.26"``."""
    found = re.match(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)", requirement)
    if found is None:
        return requirement
    return "{}=={}".format(*found.groups())  # 2.4 is 2.4.0, too


def settings(instead: Sequence[str] = ()) -> dict[str, list[str]]:
    """The requirements of the package itself and of its tests.

    Args:
        instead: Requirements that take the place of those of the same names.
    """
    others = {one.partition("==")[0]: one for one in instead}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [lowest(one) for one in project["dependencies"]]
    dev = project["optional-dependencies"]["dev"]
    tested = [one for one in dev if not one.startswith(TOOLS)]
    for name in others.keys() - {one.partition("==")[0] for one in needed}:
        raise SystemExit(f"--instead {others[name]}: pyproject.toml needs no {name}")
    needed = [others.get(one.partition("==")[0], one) for one in needed]
    return {"needed": needed, "tested": [*map(lowest, tested)]}


def main() -> None:
    """Make the environment and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="of the fresh environment")
    parser.add_argument(
        "--instead", action="append", default=[], metavar="NAME==VERSION", help="may be repeated"
    )
    parser.add_argument("tests", nargs="*", help="arguments of pytest")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        place = Path(work) / "lowest"
        subprocess.run([asked.python, "-m", "venv", str(place)], check=True)
        python = str(place / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        pinned = settings(asked.instead)
        install = [python, "-m", "pip", "install", "--quiet"]
        done = subprocess.run([*install, *pinned["needed"], *pinned["tested"]], check=False)
        if done.returncode:
            print("the lower bounds can't be installed together: raise what pip names above")
            raise SystemExit(1)
        editable = ["--no-deps", "-C", "editable_mode=strict", "-e", str(ROOT)]
        subprocess.run([*install, *editable], check=True)
        subprocess.run([python, "-m", "pip", "list"], check=True)
        done = subprocess.run([python, "-m", "pytest", "-q", *asked.tests], cwd=ROOT, check=False)
    verdict = "pass" if done.returncode == 0 else "fail"
    other = f", but for {', '.join(asked.instead)}" if asked.instead else ""
    print(f"the tests {verdict} with the lowest versions{other}")
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
