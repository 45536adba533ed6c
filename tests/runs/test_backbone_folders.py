"""Folders and hub ids as backbones of a run: what is planned, refused, said and kept."""

from __future__ import annotations

import json

import pytest

from fairbench.build.stand_ins import write_stand_in
from fairbench.core.errors import AssetError, InputError
from fairbench.core.method import SamplingConfig
from fairbench.core.progress import Reporter
from fairbench.runs.config import RunConfig
from fairbench.runs.plan import backbone_facts, backbone_notes, generation_config, plan_run
from fairbench.runs.running import run


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = write_stand_in(kind, tmp_path_factory.mktemp(kind) / kind)
        return made[kind]

    return folder


@pytest.fixture
def planned(folder_of, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))

    def plan(kind, method="vanilla", **values):
        return plan_run(
            RunConfig(
                method,
                **{
                    "backbone": str(folder_of(kind)),
                    "device": "cpu",
                    "num_images": 100,
                    "results": tmp_path / "results",
                    **values,
                },
            )
        )

    return plan


def refused(call, *words, error=InputError):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_another_scheduler_is_said_in_one_line_and_both_are_kept(planned):
    plan = planned("sdxl")
    (note,) = backbone_notes(plan)
    assert "scheduler of sdxl is EulerDiscreteScheduler; images are made with DDIM" in note
    facts = backbone_facts(plan)["backbone"]
    assert facts["scheduler"] == {"own": "EulerDiscreteScheduler", "used": "ddim"}
    assert facts["family"] == "sdxl"
    own = planned("sdxl", scheduler="own")
    assert backbone_notes(own) == []
    assert backbone_facts(own)["backbone"]["scheduler"]["used"] == "own"
    assert backbone_notes(planned("sd2")) == []


def test_the_data_sets_own_backbones_have_nothing_to_say(planned):
    plan = planned("sd1", backbone=None)
    assert backbone_notes(plan) == []
    assert backbone_facts(plan) == {}
    assert plan.backbone.settings == {}


def test_what_is_new_is_left_out_of_keys_at_its_default(planned):
    config = generation_config(planned("sd1"), "hash")
    assert config["sampling"] == {
        "steps": 25,
        "guidance": 7.5,
        "eta": 0.0,
        "spacing": "trailing",
    }
    assert "backbone_settings" not in config
    own = generation_config(planned("sd1", scheduler="own"), "hash")
    assert own["sampling"]["scheduler"] == "own"
    assert SamplingConfig(25, 7.5).content() == config["sampling"]


def test_a_pipeline_called_as_a_whole_has_its_call_in_the_key(planned):
    plan = planned("sd3")
    assert (plan.sampling.steps, plan.sampling.guidance) == (28, 7.0)
    settings = generation_config(plan, "hash")["backbone_settings"]
    assert settings["pipeline"] == "StableDiffusion3Pipeline"
    assert settings["call"]["max_sequence_length"] == 256
    assert settings["diffusers"].count(".") == 1
    assert "called as a whole" in backbone_notes(plan)[0]
    refused(lambda: planned("sd3", scheduler="ddim"), "--scheduler ddim", "as a whole")
    refused(lambda: planned("sd3", eta=0.5), "--eta 0.5", "as a whole")
    assert planned("sd3", steps=4, guidance=1.0).sampling.steps == 4


@pytest.mark.parametrize(
    ("kind", "method", "words"),
    [
        ("sd3", "fairgen", ["cross-attention", "families sdxl, stable_diffusion"]),
        ("sd3", "tiw", ["a network to train", "families ddpm, latent, sdxl, stable_diffusion"]),
        ("sd3", "sample_guidance", ["a bottleneck", "DDIM's timesteps", "families ddpm, latent"]),
        ("classes", "fairgen", ["cross-attention", "families sdxl, stable_diffusion"]),
        ("ldm", "prompt_append", ["needs a text-to-image backbone"]),
    ],
)
def test_a_method_is_refused_before_anything_is_loaded(kind, method, words, planned):
    refused(lambda: planned(kind, method), method, kind, "--backbone", *words)


@pytest.mark.parametrize("method", ["vanilla", "prompt_append", "fair_prompt", "rejection"])
def test_methods_that_need_images_alone_run_on_whole_pipelines(method, planned):
    assert planned("sd3", method).method.card.name == method


def test_an_own_scheduler_is_for_methods_that_only_need_predictions(planned):
    assert planned("sd1", "fairgen", scheduler="own").sampling.scheduler == "own"
    refused(
        lambda: planned("sd1", "latent_editing", scheduler="own"),
        "--scheduler own",
        "latent_editing",
    )
    refused(lambda: RunConfig("vanilla", scheduler="euler"), "--scheduler", "'euler'")


def test_what_is_no_backbone_is_refused_in_one_line(planned, tmp_path):
    for name in ("no/such/folder", str(tmp_path)):
        refused(lambda name=name: planned("sd1", backbone=name), name, error=AssetError)
    refused(lambda: planned("sd1", backbone="owner/name"), "owner/name not found")
    refused(lambda: planned("sd1", backbone="cartoonfaces-ds"), "did you mean cartoonfaces-sd")


@pytest.mark.slow
def test_the_record_of_a_run_says_which_scheduler_made_its_images(planned, tmp_path, folder_of):
    seen = []

    outcome = run(
        RunConfig(
            "vanilla",
            backbone=str(folder_of("ddpm")),
            device="cpu",
            num_images=100,
            steps=2,
            results=tmp_path / "results",
        ),
        Reporter(note=seen.append),
    )
    assert any("scheduler of ddpm is DDPMScheduler" in line for line in seen)
    record = json.loads(outcome.path.read_text())
    assert record["facts"]["backbone"]["scheduler"] == {"own": "DDPMScheduler", "used": "ddim"}
    assert record["facts"]["network_batch"] == 64
    assert record["config"]["dtype"] == "float32"
