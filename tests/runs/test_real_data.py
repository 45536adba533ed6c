"""A run and an evaluation on CelebA's layout, with a judge and an encoder that cost nothing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

from fairbench.core.specs import InstrumentNames, InstrumentSpec
from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES
from fairbench.datasets.celeba import ATTRIBUTES, CelebA
from fairbench.instruments import catalogue
from fairbench.runs.config import RunConfig
from fairbench.runs.external import evaluate
from fairbench.runs.running import run

DDPM = str(CARTOONFACES.backbone("cartoonfaces-ddpm").folder)
SEEN = []


class Judge:
    name, kind, dtype = "bright", "judge", "float32"
    weights_sha256 = hashlib.sha256(b"no weights").hexdigest()
    preprocessing = "brightness"
    attributes = MappingProxyType({name: ATTRIBUTES[name] for name in ("gender", "age")})
    outputs = MappingProxyType(dict.fromkeys(attributes, np.float32))
    confusion = MappingProxyType(
        {
            "gender": np.array([[97, 3], [2, 98]]),
            "age": np.array([[95, 5], [4, 96]]),
            "gender/age": 45 * np.eye(4, dtype=int) + 1,
        }
    )

    def __call__(self, images):
        SEEN.append(("judge", images.shape))
        means = images.reshape(len(images), -1, 3).mean(1)
        found = {}
        for name, values in (("gender", means[:, 0] - 150), ("age", means[:, 2] - 140)):
            share = 1 / (1 + np.exp(-np.clip(values, -20, 20)))
            found[name] = np.stack([1 - share, share], 1).astype(np.float32)
        return found


class Encoder:
    name, kind, dtype, dimension = "nine", "encoder", "float32", 9
    weights_sha256 = hashlib.sha256(b"none").hexdigest()
    preprocessing = "means of nine parts"
    outputs = MappingProxyType({"features": np.float32})

    def __call__(self, images):
        SEEN.append(("encoder", images.shape))
        bands = [np.array_split(b, 3, axis=2) for b in np.array_split(images, 3, axis=1)]
        means = [[part.mean((1, 2, 3)) for part in band] for band in bands]
        flat = [part for band in means for part in band]
        return {"features": (np.stack(flat, 1) / 64).astype(np.float32)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory, stand_ins):
    root = tmp_path_factory.mktemp("photographs")
    stand_ins.make(root, "torchvision")
    return root


@pytest.fixture
def cheap(own_cache, monkeypatch):
    """CelebA with instruments of the test's own."""
    specs, faults = catalogue._scan()
    own = {
        "tests/judge": InstrumentSpec("tests/judge", "judge", "", lambda **_: Judge()),
        "tests/encoder": InstrumentSpec("tests/encoder", "encoder", "", lambda **_: Encoder()),
    }
    monkeypatch.setattr(catalogue, "_scan", lambda: ({**specs, **own}, faults))
    monkeypatch.setattr(
        CelebA,
        "instruments",
        lambda self: InstrumentNames(("tests/judge",), ("tests/encoder",), trained=True),
    )
    SEEN.clear()
    return own_cache


def names(record):
    return {score.name for score in record.scores}


def test_a_run_is_measured_against_the_test_partition(cheap, tree, tmp_path, stand_ins):
    config = RunConfig(
        "vanilla",
        dataset="celeba",
        data_root=tree,
        task="gender",
        backbone=DDPM,
        num_images=100,
        steps=1,
        device="cpu",
        results=tmp_path / "results",
    )
    outcome = run(config)
    record = outcome.record
    assert record.status == "complete"
    assert {"fairness_discrepancy", "kernel_nine_balanced"} <= names(record)
    assert {"gender", "age", "gender/age"} <= record.groups.keys()
    assert not any("black_hair" in name for name in [*record.groups, *names(record)])
    # The reference was read at the size that suits a backbone of 32 pixels, by no judge.
    assert {(who, shape[1]) for who, shape in SEEN} == {
        *(("judge", 32), ("encoder", 32), ("encoder", 64))
    }
    count = int((stand_ins.faces()[2] == 2).sum())
    assert sum(shape[0] for _, shape in SEEN if shape[1] == 64) == count
    assert record.facts["data"]["crop"] == "central square of 178 pixels"
    assert record.facts["data"]["side"] == 64
    assert run(config).found

    # No picture of the data set is in anything that was written.
    real = CelebA(tree)
    hashes = set()
    for side in (64, 128, 256):
        sized = real.sized(side)
        for role in ("pool", "method_reference", "judge", "evaluation"):
            hashes |= {*sized.split(role).listing.sha256}
    assert not hashes & {digest for _, _, digest in outcome.manifest}
    for path in [*tmp_path.rglob("*"), *cheap.rglob("*")]:
        if path.suffix == ".npz":
            with np.load(path) as stored:
                for array in (stored[name] for name in stored.files):
                    if array.ndim == 4 and array.shape[3] == 3:
                        seen = {hashlib.sha256(one.tobytes()).hexdigest() for one in array}
                        assert not hashes & seen
        assert path.suffix not in (".jpg", ".jpeg")


def test_images_from_elsewhere_are_evaluated(cheap, tree, tmp_path):
    rng = np.random.default_rng(1)
    folder = tmp_path / "made"
    folder.mkdir()
    for i in range(100):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    found = evaluate(
        folder,
        dataset="celeba",
        data_root=tree,
        task="gender_age",
        name="made",
        device="cpu",
        results=tmp_path / "results",
    )
    assert "fairness_discrepancy" in names(found.record)
    assert {shape[1] for _, shape in SEEN} == {64}


def test_a_task_that_no_judge_reads_is_refused_before_anything_is_made(cheap, tree, tmp_path):
    from fairbench.core.errors import InputError

    config = RunConfig(
        "vanilla",
        dataset="celeba",
        data_root=tree,
        task="black_hair",
        backbone=DDPM,
        num_images=100,
        device="cpu",
        results=tmp_path,
    )
    with pytest.raises(InputError, match="fairbench train-judge --dataset celeba --data-root"):
        run(config)
    assert not (cheap / "images").exists()


# --- the command line -----------------------------------------------------------------------


@pytest.fixture
def fairbench(own_cache, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "FAIRBENCH_DATA"}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "FAIRBENCH_CACHE": str(own_cache)}

    def call(*arguments, code=0, **more):
        done = subprocess.run(
            [sys.executable, "-m", "fairbench", *arguments],
            env=environment | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done

    return call


def test_what_is_missing_is_named_at_once(fairbench, tree, tmp_path):
    began = time.process_time(), os.times().children_user
    line = fairbench("run", "--method", "fairgen", "--dataset", "celeba", code=2).stderr
    assert os.times().children_user - began[1] < 2  # of the CPU: others may use it, too
    assert len(line.splitlines()) == 1
    for part in (
        "--data-root",
        "FAIRBENCH_DATA",
        "img_align_celeba",
        "list_attr_celeba.txt",
        "fairbench data prepare celeba --data-root PATH",
        "stable-diffusion-v1-5/stable-diffusion-v1-5 not found",
        str(tmp_path / "hub" / "hub" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"),
        "hf download",
        "--allow-download",
    ):
        assert part in line
    line = fairbench(
        *("run", "--method", "fairgen", "--dataset", "celeba", "--data-root", str(tree)), code=2
    ).stderr
    assert "not found: looked in" in line
    assert "list_attr" not in line
    line = fairbench(
        *("run", "--method", "vanilla", "--dataset", "celeba", "--backbone", DDPM), code=2
    ).stderr
    assert "list_attr_celeba.txt" in line
    assert "not found: looked in" not in line
    line = fairbench(
        *("run", "--method", "vanilla", "--backbone", "someone/something"), code=2
    ).stderr
    assert "someone/something not found" in line
    line = fairbench("evaluate", str(tree), "--dataset", "celeba", code=2).stderr
    assert "list_attr_celeba.txt" in line


def test_data_is_prepared_and_listed(fairbench, tree):
    done = fairbench("data", "prepare", "celeba", "--data-root", str(tree))
    assert "celeba is ready: pool" in done.stdout
    assert "evaluation" in done.stdout
    rows = json.loads(fairbench("data", "list", "--json", FAIRBENCH_DATA=str(tree)).stdout)
    by_name = {row["name"]: row for row in rows}
    assert by_name["celeba"]["found"] == "ready"
    assert sum(by_name["celeba"]["splits"].values()) == 160
    assert by_name["celeba"]["images_may_be_published"] is False
    assert "non-commercial" in by_name["celeba"]["licence"]
    assert by_name["cartoonfaces"]["images_may_be_published"] is True
    shown = fairbench("data", "list").stdout
    assert "celeba" in shown
    assert "FAIRBENCH_DATA" in shown


def test_problems_are_listed_with_steps(fairbench, tmp_path, stand_ins):
    root = tmp_path / "tree"
    pictures, _, partition = stand_ins.make(root, "torchvision", 30)
    partition.unlink()
    for path in list(pictures.iterdir())[:3]:
        path.unlink()
    done = fairbench("data", "prepare", "celeba", "--data-root", str(root), code=2)
    assert "no list_eval_partition.txt" in done.stdout
    assert "1. get img_align_celeba.zip" in done.stdout
    found = json.loads(
        fairbench("data", "prepare", "celeba", "--data-root", str(root), "--json", code=2).stdout
    )
    assert found["problems"]
    for unknown in ("celebb", ""):
        assert "unknown data set" in fairbench("data", "prepare", unknown, code=2).stderr
