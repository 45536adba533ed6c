"""SLURM by submitit and Ray: the same bytes as on one machine, and a node that dies."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fairbench.app.cli import app
from fairbench.core.errors import InputError
from fairbench.core.progress import Reporter
from fairbench.runs.running import run
from fairbench.sweep.engine import ENGINES, Crew, load_engine
from fairbench.sweep.sweeping import Sweep

# A machine that is busy takes longer to begin a node than Ray waits; read when it is imported.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")

WORDS = ("sweep", "--methods", "vanilla", "--dataset", "analytic", "--num-images", "100")


def compare_with_one_machine(
    whole: Sweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[Path], dict[str, Any]],
) -> None:
    # Workers have one thread; sums of two differ in their last digits.
    assert os.environ.get("OMP_NUM_THREADS") == "1", "set OMP_NUM_THREADS=1, as tests/run.sh does"
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "another"))
    for one in whole.asked:
        run(replace(one.config, results=tmp_path / "alone"))
    assert left(tmp_path / "results") == left(tmp_path / "alone")


def test_every_engine_is_found() -> None:
    entries, broken = ENGINES.entries()
    assert entries.keys() >= {"local", "slurm", "ray"}
    assert not broken


def test_no_heavy_package_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, fairbench.app.cli; from fairbench.sweep.engine import load_engine; "
        "[load_engine(name) for name in ('local', 'slurm', 'ray')]; "
        "print([name for name in ('ray', 'submitit', 'torch', 's3fs') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize(("engine", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_one_line_and_exit_code_2(
    engine: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = CliRunner().invoke(app, [*WORDS, "--engine", engine])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        f"fairbench: --engine {engine} needs {package}, which isn't installed; "
        f"pip install 'fairbench-diffusion[{engine}]'"
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "needs sbatch"),
        ({"cluster": "pbs"}, "cluster must be slurm, local or debug"),
        ({"cluster": "local", "timeout_min": "long"}, "timeout_min must be of type int"),
        ({"cluster": "local", "partion": "gpu"}, "partion"),
    ],
)
def test_a_wrong_setting_of_slurm_is_one_line(
    settings: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="pip install submitit")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=told) as error:
        load_engine("slurm")(Crew(str(tmp_path), settings=settings))
    assert "\n" not in str(error.value)


def test_a_wrong_setting_of_ray_is_one_line() -> None:
    pytest.importorskip("ray", reason="pip install ray")
    with pytest.raises(InputError, match="knows address, num_cpus"):
        load_engine("ray")(Crew("results", settings={"adress": "auto"}))


def test_a_preempted_job_is_submitted_again_as_it_was(
    sweep_of: Callable[..., Sweep], tmp_path: Path
) -> None:
    submitit = pytest.importorskip("submitit", reason="pip install submitit")
    from fairbench.sweep.engines.slurm import Work

    step = sweep_of(methods=["vanilla"], tasks=["tone"]).steps(retry_failed=False)[0]
    work = Work(step.text(), str(tmp_path / "results"), "sweep step")
    again = work.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == work
    assert pickle.loads(pickle.dumps(work)) == work
    assert work()[:3] == (step.key, "done", "")
    assert again.function()[:3] == (step.key, "done", "found")


def test_time_limits_follow_the_records(sweep_of: Callable[..., Sweep]) -> None:
    from fairbench.sweep.engines import slurm

    step = sweep_of(methods=["vanilla"], tasks=["tone"]).steps(retry_failed=False)[0]
    short, long = replace(step, hours=0.01), replace(step, hours=2.0)
    assert slurm._minutes([short]) == slurm.LEAST_MINUTES
    assert slurm._minutes([short, long]) == 360
    assert slurm._minutes([long, replace(step, hours=None)]) == slurm.LIMIT_MINUTES


@pytest.mark.slow
def test_jobs_of_submitit_leave_what_one_machine_leaves(
    sweep_of: Callable[..., Sweep],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[Path], dict[str, Any]],
) -> None:
    pytest.importorskip("submitit", reason="pip install submitit")
    whole = sweep_of()
    tally = whole.run(
        load_engine("slurm"), jobs=2, settings={"cluster": "local"}, report=Reporter()
    )
    assert tally.lost == 0
    assert whole.counts()["done"] == len(whole.asked) == 4
    compare_with_one_machine(whole, tmp_path, monkeypatch, left)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_three_engines_leave_the_same_bytes(
    sweep_of: Callable[..., Sweep],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[Path], dict[str, Any]],
) -> None:
    pytest.importorskip("submitit", reason="pip install submitit")
    pytest.importorskip("ray", reason="pip install ray")
    settings = {"local": {}, "slurm": {"cluster": "local"}, "ray": {"address": "local"}}
    found = {}
    for engine, said in settings.items():
        monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / f"cache of {engine}"))
        whole = sweep_of(engine, methods=["vanilla"])
        make = load_engine(engine)
        whole.run(make, jobs=2, device="cpu", settings=said, report=Reporter())
        assert whole.counts()["done"] == len(whole.asked) == 2
        found[engine] = left(tmp_path / engine)
    assert len(found["local"]) == 3 * 2  # a record, its sidecar and its picture each
    assert found["slurm"] == found["local"]
    assert found["ray"] == found["local"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_ray_cluster_of_three_nodes_loses_one_and_leaves_the_same(
    sweep_of: Callable[..., Sweep],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[Path], dict[str, Any]],
) -> None:
    pytest.importorskip("ray", reason="pip install ray")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    nodes = [cluster.add_node(**small) for _ in range(2)]
    cluster.wait_for_nodes()
    killed: list[str] = []

    def kill() -> None:
        claims = tmp_path / "results" / ".sweep" / "claims"
        until = time.monotonic() + 600
        while time.monotonic() < until:
            if len(list(claims.glob("*.json"))) >= 3:  # all three nodes are at work
                cluster.remove_node(nodes[0], allow_graceful=False)
                killed.append("a node")
                return
            time.sleep(0.2)

    killer = threading.Thread(target=kill)
    try:
        whole = sweep_of(seeds=[0, 1])
        killer.start()
        whole.run(load_engine("ray"), settings={"address": cluster.address}, report=Reporter())
        killer.join()
    finally:
        cluster.shutdown()
    assert killed
    assert whole.counts()["done"] == len(whole.asked) == 8
    compare_with_one_machine(whole, tmp_path, monkeypatch, left)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no SLURM here: sbatch isn't found")
def test_an_array_of_a_real_cluster_loses_a_job_and_leaves_the_same(
    sweep_of: Callable[..., Sweep],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[Path], dict[str, Any]],
) -> None:
    pytest.importorskip("submitit", reason="pip install submitit")
    whole = sweep_of(seeds=[0, 1])
    requeued: list[str] = []

    def requeue() -> None:
        until = time.monotonic() + 200
        while time.monotonic() < until:
            words = ["squeue", "--me", "--states=R", "--noheader", "--format=%i"]
            told = subprocess.run(words, capture_output=True, text=True, check=True)
            if jobs := told.stdout.split():
                time.sleep(5)
                subprocess.run(["scontrol", "requeue", jobs[0]], check=True)
                requeued.append(jobs[0])
                return
            time.sleep(0.5)

    thread = threading.Thread(target=requeue)
    thread.start()
    whole.run(load_engine("slurm"), settings={"cpus_per_task": 1}, report=Reporter())
    thread.join()
    assert requeued
    assert whole.counts()["done"] == len(whole.asked) == 8
    compare_with_one_machine(whole, tmp_path, monkeypatch, left)
