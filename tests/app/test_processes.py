"""The command that the page on several processes gives really starts two."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "gpu_and_scale.md"
QUICK = "--num-images 100 --steps 2 --param steps=2 --param batch=8 --json"
RATIO = "--param ratio_steps=2 --param ratio_batch=8 --device cpu"


@pytest.mark.slow
def test_the_page_s_command_starts_two_processes(tmp_path: Path) -> None:
    (line,) = re.findall(r"^python -m torch.distributed.run .*$", PAGE.read_text(), re.MULTILINE)
    words = shlex.split(line)
    words[0] = sys.executable
    done = subprocess.run(
        [*words, *shlex.split(QUICK), *shlex.split(RATIO)],
        cwd=tmp_path,
        env=os.environ | {"FAIRBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["status"] == "complete"
    assert record["config"]["processes"] == 2
