from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

from fairbench import methods as registry
from fairbench.build.stand_ins import write_stand_in
from fairbench.core.errors import AssetError, ContractError, InputError
from fairbench.core.method import MethodCard, SamplingConfig
from fairbench.core.parameters import parameters_of
from fairbench.core.prompts import Phrase
from fairbench.core.task import parse_target
from fairbench.datasets.base import get_dataset
from fairbench.diffusion.devices import (
    is_main_process,
    peak_memory_mib,
    resolve_device,
    resolve_dtype,
)
from fairbench.instruments import cartoonfaces as judges
from fairbench.methods import get_method, make_method, method_names
from fairbench.runs.config import RunConfig
from fairbench.runs.plan import find_backbone
from fairbench.runs.provenance import environment
from fairbench.storage import cache
from fairbench.storage.cache import cache_folder, load_arrays, save_arrays
from fairbench.storage.files import atomic_write, check_writable, remove

DATASET = get_dataset("cartoonfaces")


def refused(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def task(name):
    return DATASET.task(name, conditional=True)


# --- targets ----------------------------------------------------------------------------------


def test_uniform_is_the_default_target():
    for name, groups in (("gender", 2), ("race", 4), ("gender_race", 8), ("gender_by_role", 2)):
        made = task(name)
        assert parse_target("uniform", made) is made
        assert made.target == (1 / groups,) * groups


@pytest.mark.parametrize(
    ("name", "text", "target"),
    [
        ("gender", "female=0.3,male=0.7", (0.3, 0.7)),
        ("gender", " male=.7, female=3e-1 ", (0.3, 0.7)),
        ("gender", "male=1", (0.0, 1.0)),
        ("race", "white=0.25,asian=0.75", (0.75, 0.0, 0.0, 0.25)),
        ("gender", "female=0.3333333,male=0.6666667", (0.3333333, 0.6666667)),
        (
            "gender_race",
            "female/asian=0.5,male/white=0.25,female/black=0.25",
            (0.5, 0.25, 0, 0, 0, 0, 0, 0.25),
        ),
    ],
)
def test_targets_are_read_by_group_name(name, text, target):
    made = parse_target(text, task(name))
    assert made.target == target
    assert replace(made, target=task(name).target) == task(name)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gender", "woman=0.5,male=0.5", ("unknown target group 'woman'", "known: female, male")),
        ("gender", "Female=0.5,male=0.5", ("'Female'", "did you mean female")),
        ("gender", "female=0.5,mael=0.5", ("'mael'", "did you mean male")),
        ("race", "asien=0.5,white=0.5", ("'asien'", "did you mean asian?")),
        ("gender_race", "female=0.5,male=0.5", ("'female'", "did you mean female/")),
        ("gender_race", "asian/female=1", ("'asian/female'",)),
        ("gender", "female=0.5,female=0.5", ("'female' twice",)),
        ("gender", "female=0.5,male=0.6", ("sum to 1.1",)),
        ("gender", "female=0.5", ("sum to 0.5",)),
        ("gender", "female=1.5,male=-0.5", ("non-negative; that of 'male' is -0.5",)),
        ("gender", "female=-0.5,male=1.5", ("non-negative; that of 'female' is -0.5",)),
        ("gender", "female=nan,male=0.5", ("'female'", "number", "'nan'")),
        ("gender", "female=inf,male=-inf", ("'female'", "number", "'inf'")),
        ("gender", "female=inf", ("'female'", "number", "'inf'")),
        ("gender", "female=half,male=0.5", ("'female'", "number", "'half'")),
        ("gender", "female=,male=1", ("number",)),
        ("gender", "female", ("uniform", "female=0.5")),
        ("gender", "", ("uniform",)),
        ("gender", "female=0.5,male=0.5,", ("uniform",)),
    ],
)
def test_bad_targets_are_refused(name, text, words):
    refused(lambda: parse_target(text, task(name)), *words)


def test_a_task_itself_holds_its_target_to_the_groups():
    made = task("gender")
    for target in ((0.5, 0.25, 0.25), (0.5, 0.6), (1.5, -0.5), (float("nan"), 1.0)):
        with pytest.raises(ContractError):
            replace(made, target=target)


# --- tasks and backbones of a data set --------------------------------------------------------


def test_tasks_have_their_groups_and_prompts():
    assert DATASET.task(None, conditional=True).name == "gender"
    assert task("gender_race").groups[:5] == (
        "female/asian",
        "female/black",
        "female/brown",
        "female/white",
        "male/asian",
    )
    assert task("gender_race").group_phrases(4) == (Phrase("male"), Phrase("asian"))
    assert [p.text for p in task("gender").prompts] == ["a photo of a person"]
    assert [p.subject for p in task("gender_by_role").prompts] == list(DATASET.attributes["role"])
    assert task("gender_by_role").per_prompt
    unconditional = DATASET.task("gender", conditional=False)
    assert [(p.text, p.stratum) for p in unconditional.prompts] == [("", {})]
    refused(lambda: DATASET.task("gender_by_role", conditional=False), "gender_race")
    refused(lambda: task("gendr"), "'gendr'", "did you mean gender")


def test_backbones_are_found_by_name_or_folder(tmp_path):
    assert DATASET.backbone(None).name == "cartoonfaces-sd"
    refused(lambda: DATASET.backbone("cartoonfaces-ds"), "did you mean cartoonfaces-sd")
    refused(lambda: find_backbone(DATASET, "cartoonfaces"), "unknown backbone")
    with pytest.raises(AssetError, match=r"found none; give --backbone a folder"):
        find_backbone(DATASET, str(tmp_path))
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(AssetError, match="is a DDPMPipeline without a scheduler"):
        find_backbone(DATASET, str(tmp_path))
    pixels, text = (write_stand_in(kind, tmp_path / kind) for kind in ("ddpm", "sd1"))
    found = find_backbone(DATASET, str(pixels))
    assert (found.folder, found.conditional, found.sampling.guidance) == (pixels, False, 1.0)
    assert find_backbone(DATASET, str(text)).conditional
    assert find_backbone(DATASET, str(text)).sampling.guidance == 7.5
    index.write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(AssetError, match="is a NoSuchPipeline, which diffusers"):
        find_backbone(DATASET, str(tmp_path))


def test_unknown_data_sets_are_named():
    refused(lambda: get_dataset("cartoonface"), "did you mean cartoonfaces")
    refused(lambda: get_dataset("zzz"), "known: analytic, cartoonfaces")


# --- runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"num_images": 99}, "--num-images"),
        ({"num_images": -1}, "--num-images"),
        ({"seed": -1}, "--seed"),
        ({"num_images": 10**12}, "at most 1000000"),
        ({"seed": 10**20}, "--seed"),
        ({"guidance": 1e300}, "--guidance"),
        ({"network_batch": 0}, "--network-batch"),
        ({"network_batch": 10**9}, "1…4096"),
        ({"decode_batch": -4}, "--decode-batch"),
        ({"batch_size": 0}, "--network-batch"),
    ],
)
def test_runs_out_of_bounds_are_refused(changes, flag):
    (value,) = changes.values()
    refused(lambda: RunConfig("vanilla", **changes), flag, str(value))


def test_runs_at_the_bounds_are_fine():
    made = RunConfig("vanilla", num_images=100, seed=0, network_batch=1)
    assert (made.num_images, made.seed, made.network_batch) == (100, 0, 1)
    assert RunConfig("vanilla").num_images == 1000


def test_older_configurations_call_the_network_batch_otherwise():
    assert RunConfig("vanilla", batch_size=7).network_batch == 7


def test_sampling_takes_what_the_user_gave_and_defaults_for_the_rest():
    default = SamplingConfig(steps=25, guidance=3.0, eta=0.1)
    plain = RunConfig("vanilla")
    assert plain.sampling(default, conditional=True) == default
    given = RunConfig("vanilla", steps=10, guidance=0.0, eta=0.0)
    assert given.sampling(default, conditional=True) == SamplingConfig(10, 0.0, 0.0)
    unguided = SamplingConfig(steps=25, guidance=1.0)
    refused(
        lambda: RunConfig("vanilla", guidance=2.0).sampling(unguided, conditional=False),
        "--guidance 2",
        "text-to-image",
    )
    same = RunConfig("vanilla", guidance=1.0).sampling(unguided, conditional=False)
    assert same == unguided


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"steps": 0}, "--steps"),
        ({"steps": 1001}, "--steps"),
        ({"guidance": -0.1}, "--guidance"),
        ({"guidance": float("nan")}, "--guidance"),
        ({"guidance": float("inf")}, "--guidance"),
        ({"eta": -0.1}, "--eta"),
        ({"eta": 1.1}, "--eta"),
        ({"eta": float("nan")}, "--eta"),
    ],
)
def test_sampling_out_of_bounds_is_refused(changes, flag):
    default = SamplingConfig(steps=25, guidance=3.0)
    refused(lambda: RunConfig("vanilla", **changes).sampling(default, conditional=True), flag)
    SamplingConfig(steps=1, guidance=0.0, eta=1.0)
    SamplingConfig(steps=1000, guidance=0.0, eta=0.0)


# --- methods and their parameters -------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A method with a parameter of every type."""

    count: int = field(default=3, metadata={"help": "how many", "minimum": 1})
    scale: float = field(default=0.5, metadata={"help": "how much", "minimum": 0})
    free: float = field(default=1.0, metadata={"help": "without bounds"})
    merged: bool = field(default=False, metadata={"help": "whether"})
    branch: Literal["cond", "both"] = field(default="cond", metadata={"help": "which"})
    phrase: str = field(default="as is", metadata={"help": "in words"})

    card: ClassVar[MethodCard] = MethodCard("probe", "", "", "none")
    version: ClassVar[int] = 1
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "large": {"count": 9, "branch": "both"},
        "small": {"count": 1},
    }


@dataclass(frozen=True)
class Bare:
    """A method without parameters or presets."""

    card: ClassVar[MethodCard] = MethodCard("bare", "", "", "none")
    version: ClassVar[int] = 1
    presets: ClassVar[dict[str, dict[str, object]]] = {}


@pytest.fixture
def probe(monkeypatch):
    known = {"probe": Probe, "bare": Bare}
    scanner = SimpleNamespace(files=lambda: sorted(known), foreign=dict, load=known.get)
    monkeypatch.setattr(registry, "METHODS", scanner)


def test_every_method_file_is_a_method():
    names = method_names()
    assert {"fairgen", "prompt_append", "vanilla"} <= set(names)
    assert names == sorted(names)
    assert not any(name.startswith("_") for name in names)
    for name in names:
        method = get_method(name)
        assert method.card.name == name
        made, preset = make_method(name, [])
        assert isinstance(made, method)
        assert preset is None
        assert all(p.help for p in parameters_of(method))
        for preset in method.presets:
            assert make_method(name, [f"preset={preset}"])[1] == preset


def test_unknown_methods_suggest_near_names():
    refused(lambda: get_method("fairgan"), "unknown method 'fairgan'", "did you mean fairgen")
    message = refused(lambda: get_method("zzzz"), "known: ")
    assert all(name in message for name in method_names())
    refused(lambda: get_method("_adapters"), "unknown method '_adapters'")


@pytest.mark.usefixtures("probe")
def test_parameters_are_listed_with_their_types():
    assert [(p.name, p.type, p.default) for p in parameters_of(Probe)] == [
        ("count", "int", 3),
        ("scale", "float", 0.5),
        ("free", "float", 1.0),
        ("merged", "bool", False),
        ("branch", "cond|both", "cond"),
        ("phrase", "str", "as is"),
    ]


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], Probe()),
        (["count=1"], Probe(count=1)),
        (["scale=0", "free=-1e3"], Probe(scale=0.0, free=-1000.0)),
        (["scale=2"], Probe(scale=2.0)),
        (["merged=true"], Probe(merged=True)),
        (["merged=false"], Probe()),
        (["branch=both"], Probe(branch="both")),
        (["phrase= a = b, c: été "], Probe(phrase="a = b, c: été")),
    ],
)
def test_parameters_are_parsed_by_type(given, expected):
    made, preset = make_method("probe", given)
    assert made == expected
    assert preset is None
    assert type(made.scale) is float
    assert type(made.count) is int


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["count=2.5"], ("count must be int", "'2.5'")),
        (["count="], ("count must be int",)),
        (["count=0"], ("count must be at least 1", "0")),
        (["count=1e3"], ("count must be int",)),
        (["scale=much"], ("scale must be float", "'much'")),
        (["scale=-0.1"], ("scale must be at least 0", "-0.1")),
        (["scale=nan"], ("scale must be a finite number", "'nan'")),
        (["free=inf"], ("free must be a finite number", "'inf'")),
        (["free=-inf"], ("free must be a finite number",)),
        (["merged=True"], ("merged must be true or false", "'True'")),
        (["merged=1"], ("merged must be true or false",)),
        (["branch=all"], ("branch must be cond|both", "'all'")),
        (["branch="], ("branch must be cond|both",)),
        (["phrase="], ("phrase must be a text", "''")),
        (["phrase=  "], ("phrase must be a text",)),
        (["count"], ("key=value", "'count'")),
        (["=3"], ("unknown parameter of probe ''",)),
        (["cuont=3"], ("unknown parameter of probe 'cuont'", "did you mean count")),
        (["card=3"], ("unknown parameter of probe 'card'",)),
        (["count=3", "count=3"], ("count is given twice",)),
        (["preset=large", "preset=small"], ("preset is given twice",)),
        (["preset=larg"], ("unknown preset of probe 'larg'", "did you mean large")),
        (["preset="], ("unknown preset of probe ''",)),
    ],
)
def test_bad_parameters_are_refused(given, words):
    refused(lambda: make_method("probe", given), *words)


@pytest.mark.usefixtures("probe")
def test_presets_set_parameters_and_others_override_them():
    assert make_method("probe", ["preset=large"]) == (Probe(count=9, branch="both"), "large")
    for given in (["preset=large", "count=4"], ["count=4", "preset=large"]):
        assert make_method("probe", given) == (Probe(count=4, branch="both"), "large")


@pytest.mark.usefixtures("probe")
def test_methods_without_parameters_say_so():
    assert make_method("bare", []) == (Bare(), None)
    refused(lambda: make_method("bare", ["count=3"]), "bare has no parameters")
    refused(lambda: make_method("bare", ["preset=large"]), "bare has no presets")


# --- devices ----------------------------------------------------------------------------------


def without_accelerators(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_absent_devices_are_input_errors(monkeypatch):
    without_accelerators(monkeypatch)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    refused(lambda: resolve_device("cuda"), "--device cuda isn't there", "0 CUDA", "auto")
    refused(lambda: resolve_device("cuda:1"), "--device cuda:1 isn't there")
    refused(lambda: resolve_device("mps"), "--device mps isn't there")


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "CUDA", "meta", "cuda:-1"]
)
def test_unknown_devices_are_input_errors(name):
    refused(lambda: resolve_device(name), "--device must be auto, cpu, cuda", repr(name))


def test_present_devices_are_found(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    refused(lambda: resolve_device("cuda:2"), "2 CUDA devices found")


def test_each_of_several_processes_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_main_process()
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    refused(lambda: resolve_device("auto"), "--device cuda:2 isn't there", "2 CUDA devices found")
    for other in ("-1", ""):
        monkeypatch.setenv("LOCAL_RANK", other)
        assert resolve_device("auto") == torch.device("cuda")


def test_number_formats_follow_the_device(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("auto", cpu) is torch.float32
    assert resolve_dtype("bfloat16", cpu) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kinds: True)
    assert resolve_dtype("auto", cuda) is torch.float32
    assert resolve_dtype("bfloat16", cuda) is torch.bfloat16
    assert resolve_dtype("float32", cuda) is torch.float32
    assert resolve_dtype("auto", cuda, embedded=False) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kinds: False)
    assert resolve_dtype("auto", cuda) is torch.float32
    refused(lambda: resolve_dtype("bfloat16", cuda), "isn't supported by cuda", "float32")
    refused(lambda: resolve_dtype("float8", cpu), "--dtype", "'float8'")
    refused(lambda: resolve_dtype("float16", cpu), "--dtype float16", "cpu", "float32")
    assert resolve_dtype("auto", cpu, embedded=False) is torch.float32
    assert resolve_dtype("auto", cuda, embedded=False) is torch.float16


def test_a_record_made_on_a_gpu_names_the_card(monkeypatch):
    cards = {"cuda": "NVIDIA A", "cuda:1": "NVIDIA B"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: cards[str(device)])
    for device, name in cards.items():
        made = environment(torch.device(device))
        assert (made["device"], made["gpu"]) == (device, name)
    made = environment(torch.device("cpu"))
    assert made["device"] == "cpu"
    assert "gpu" not in made


def test_peak_memory_is_in_mib():
    # An interpreter with torch holds more than 100 MiB; kilobytes or bytes would be far off.
    assert 100 < peak_memory_mib(torch.device("cpu")) < 1e5


# --- shipped judges ----------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A copy of the judges' folder that may be damaged."""
    folder = shutil.copytree(judges.FOLDER, tmp_path / "judges")
    monkeypatch.setattr(judges, "FOLDER", folder)
    return folder


def not_shipped(load, *words):
    with pytest.raises(AssetError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("reinstall fairbench-diffusion")
    for word in words:
        assert word in message


def test_weights_of_another_architecture_are_not_the_shipped_ones(shipped):
    other = json.loads((shipped / "primary.json").read_text())["weights"]
    path = shipped / "second.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": other}))
    not_shipped(lambda: judges.load_judge("second"), other["file"], "MixerJudge")
    (shipped / other["file"]).write_bytes(b"no weights")
    other["sha256"] = hashlib.sha256(b"no weights").hexdigest()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": other}))
    not_shipped(lambda: judges.load_judge("second"), other["file"], "MixerJudge")


@pytest.mark.parametrize(
    ("load", "card", "name"),
    [
        (judges.load_judge, "primary", "weights"),
        (judges.load_judge, "primary", "weights.sha256"),
        (judges.load_judge, "primary", "held_out.gender"),
        (judges.load_judge, "primary", "held_out.gender/race.confusion"),
        (judges.load_encoder, "cartoonfaces", "weights.file"),
        (judges.load_validity, "validity", "threshold"),
    ],
)
def test_a_card_that_lacks_something_is_not_the_shipped_one(shipped, load, card, name):
    path = shipped / f"{card}.json"
    content = json.loads(path.read_text())
    *parents, last = name.split(".")
    holder = content
    for parent in parents:
        holder = holder[parent]
    del holder[last]
    path.write_text(json.dumps(content))
    arguments = [card] if load is not judges.load_validity else []
    not_shipped(lambda: load(*arguments), str(path), f"lacks {name}")
    path.write_text("[]")
    not_shipped(lambda: load(*arguments), str(path), "lacks weights.file")


# --- folders and the cache --------------------------------------------------------------------


def test_a_folder_that_could_be_made_is_not_made_yet(tmp_path):
    check_writable(tmp_path / "a" / "b", "--results")
    check_writable(tmp_path, "--results")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_an_input_error(tmp_path):
    file = tmp_path / "results"
    file.write_text("mine")
    refused(
        lambda: check_writable(file, "--results"), f"--results {file} can't", "Not a directory"
    )
    refused(lambda: check_writable(file / "sub", "--results"), "Not a directory", "another folder")
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_an_input_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        refused(lambda: check_writable(tmp_path, "--results"), "Permission denied")
        refused(lambda: check_writable(tmp_path / "sub", "--results"), "Permission denied")
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_file_system_is_an_input_error(tmp_path, monkeypatch):
    def fail(**kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(kwargs["dir"]))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    refused(lambda: check_writable(tmp_path, "--results"), "Read-only file system")


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "deep" / "cache"))
    assert cache_folder() == tmp_path / "deep" / "cache"
    assert cache_folder().is_dir()
    monkeypatch.setattr(
        cache.platformdirs, "user_cache_dir", lambda name: tmp_path / "user" / name
    )
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("FAIRBENCH_CACHE")
        else:
            monkeypatch.setenv("FAIRBENCH_CACHE", unset)
        assert cache_folder() == tmp_path / "user" / "fairbench"
    (tmp_path / "file").touch()
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "file"))
    refused(cache_folder, "FAIRBENCH_CACHE", "File exists")


def test_an_atomic_write_appears_whole(tmp_path):
    path = tmp_path / "new" / "data.bin"
    with atomic_write(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b"whole")
    assert path.read_bytes() == b"halfwhole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path, error):
    fresh, old = tmp_path / "fresh", tmp_path / "old"
    old.write_bytes(b"before")
    for path in (fresh, old):
        with pytest.raises(error), atomic_write(path) as file:  # noqa: PT012
            file.write(b"half")
            raise error
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"before"


def test_a_failed_rename_leaves_nothing(tmp_path):
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"), atomic_write(tmp_path / "taken") as file:
        file.write(b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def arrays():
    rng = np.random.default_rng(0)
    return {"images": rng.integers(0, 256, (20, 8, 8, 3), np.uint8), "p": rng.random((20, 2))}


def test_arrays_come_back_as_they_were(tmp_path):
    path = tmp_path / "sub" / "arrays.npz"
    save_arrays(path, arrays())
    again = load_arrays(path)
    assert set(again) == {"images", "p"}
    for name, values in arrays().items():
        np.testing.assert_array_equal(again[name], values)
        assert again[name].dtype == values.dtype
    assert path.exists()


def test_missing_arrays_are_none(tmp_path):
    assert load_arrays(tmp_path / "none.npz") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.99])
def test_truncated_arrays_are_none_and_removed(tmp_path, keep):
    path = tmp_path / "arrays.npz"
    save_arrays(path, arrays())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert load_arrays(path) is None
    assert not path.exists()


def test_damaged_arrays_are_none_and_removed(tmp_path):
    path = tmp_path / "arrays.npz"
    save_arrays(path, arrays())
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    objects = tmp_path / "objects.npz"
    np.savez(objects, x=np.array([{}], dtype=object))
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    damaged = {
        "one bit": bytes(flipped),
        "text": b"not an archive at all",
        "pickle": objects.read_bytes(),
        "one array": single.read_bytes(),
    }
    for what, content in damaged.items():
        path.write_bytes(content)
        assert load_arrays(path) is None, what
        assert not path.exists(), what


def test_remove_takes_files_folders_and_nothing(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    file = Path(tmp_path / "file")
    file.touch()
    for path in (folder, file, tmp_path / "none"):
        remove(path)
        assert not path.exists()
