"""Which folders, files and hub ids are backbones, what is hashed of them, and what is refused."""

from __future__ import annotations

import json
import shutil

import diffusers
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fairbench.backbones.base import (
    describe,
    find_family,
    folder_spec,
    load_backbone,
    weights_sha256,
)
from fairbench.backbones.folders import PipelineFolder, resolve_folder
from fairbench.build.stand_ins import write_stand_in
from fairbench.core.errors import AssetError
from fairbench.core.method import Request, SamplingConfig
from fairbench.core.task import Prompt
from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES
from fairbench.diffusion.sampling import DDIMSampler, Stream, generator

MODELS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
MODELS["text_encoder"] = "model"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return {
        kind: write_stand_in(kind, tmp_path_factory.mktemp(kind) / kind)
        for kind in ("sd1", "ddpm", "sdxl")
    }


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written["sd1"], tmp_path / "folder")


def images(folder, dtype=torch.float32):
    backbone = load_backbone(
        "tiny", folder, device=torch.device("cpu"), dtype=dtype, network_batch=2
    )
    prompt = Prompt("person") if backbone.conditional else Prompt("")
    sampler = DDIMSampler(backbone, SamplingConfig(2, 1.0))
    return sampler([Request(prompt, 0, i, 0) for i in range(2)]).images


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(call, *words):
    with pytest.raises(AssetError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message


def weights(folder):
    for part, stem in MODELS.items():
        path = folder / part / f"{stem}.safetensors"
        if path.is_file():
            yield path


def pickled(path):
    """The same weights as a .bin beside the safetensors."""
    name = "pytorch_model" if path.stem == "model" else path.stem
    torch.save(load_file(path), path.with_name(f"{name}.bin"))


def halved(path):
    """The same weights in float16 beside those in full precision."""
    half = {name: value.half() for name, value in load_file(path).items()}
    save_file(half, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})


def sharded(path):
    """The same weights in two files and a list of them."""
    values = load_file(path)
    names, where = sorted(values), {}
    for number in (1, 2):
        shard = f"{path.stem}-{number:05d}-of-00002.safetensors"
        mine = {name: values[name] for name in names[number - 1 :: 2]}
        save_file(mine, path.with_name(shard), metadata={"format": "pt"})
        where |= dict.fromkeys(mine, shard)
    path.with_name(f"{path.name}.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": where})
    )


# Formats


def test_twins_in_other_formats_change_nothing(folder):
    before, made = weights_sha256(folder), images(folder)
    for path in weights(folder):
        halved(path)
        pickled(path)
    (folder / "README.md").write_text("A card.")
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"other")
    (folder / "v1-5-pruned.ckpt").write_bytes(b"a whole checkpoint")
    assert weights_sha256(folder) == before
    np.testing.assert_array_equal(images(folder), made)


def test_weights_in_float16_alone_are_loaded_and_hashed(folder):
    before, made = weights_sha256(folder), images(folder)
    for path in weights(folder):
        halved(path)
        path.unlink()
    assert weights_sha256(folder) != before
    assert np.abs(images(folder).astype(int) - made).max() <= 3
    component = PipelineFolder.read(folder).component("text_encoder")
    assert component.weights().variant == "fp16"


@pytest.mark.parametrize("form", [pickled, sharded])
def test_pickled_and_sharded_weights_are_the_same_images(form, folder):
    before, made = weights_sha256(folder), images(folder)
    for path in weights(folder):
        form(path)
        path.unlink()
    after = weights_sha256(folder)
    assert after != before
    np.testing.assert_array_equal(images(folder), made)
    loaded = [path for path in folder.rglob("*") if path.suffix in (".bin", ".safetensors")]
    changed = bytearray(loaded[0].read_bytes())
    changed[-1] ^= 1
    loaded[0].write_bytes(changed)
    assert weights_sha256(folder) != after


def test_a_pickle_with_code_isnt_run(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    torch.save({"weight": pytest.raises}, path.with_suffix(".bin"))
    refused(lambda: images(folder), "'tiny'", folder, "can't be loaded")


def test_weights_at_the_root_of_a_folder(written, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(written["ddpm"] / "model_index.json", flat)
    for part in ("unet", "scheduler"):
        for path in (written["ddpm"] / part).iterdir():
            shutil.copy(path, flat)
    np.testing.assert_array_equal(images(flat), images(written["ddpm"]))
    first, other = weights_sha256(flat), shutil.copytree(flat, tmp_path / "other")
    values = load_file(other / "diffusion_pytorch_model.safetensors")
    values["conv_in.bias"] += 1
    save_file(values, other / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    assert weights_sha256(other) != first
    change(flat / "scheduler_config.json", beta_end=0.03)
    assert weights_sha256(flat) != first


# What is hashed


def test_the_hash_is_of_what_is_loaded(folder):
    before = weights_sha256(folder)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    (folder / "unet" / "notes.json").write_text("{}")
    (folder / "text_encoder" / "pytorch_model.fp16.bin").write_bytes(b"twin")
    assert weights_sha256(folder) == before
    seen = {before}
    change(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    seen.add(weights_sha256(folder))
    change(folder / "scheduler" / "scheduler_config.json", beta_end=0.013)
    seen.add(weights_sha256(folder))
    (folder / "tokenizer" / "added_tokens.json").write_text("{}")
    seen.add(weights_sha256(folder))
    change(folder / "vae" / "config.json", scaling_factor=0.5)
    seen.add(weights_sha256(folder))
    assert len(seen) == 5


@pytest.mark.parametrize("spec", CARTOONFACES.backbones, ids=lambda spec: spec.name)
def test_shipped_backbones_keep_the_hash_of_their_records(spec, tmp_path):
    assert weights_sha256(spec.folder) == spec.expected_sha256()
    copy = shutil.copytree(spec.folder, tmp_path / "copy")
    assert weights_sha256(copy) == spec.expected_sha256()
    change(copy / "unet" / "config.json", sample_size=64)
    assert weights_sha256(copy) not in (None, spec.expected_sha256())


# Hub ids and paths


def hub(cache, name, source):
    """Put a folder into a hub cache, as a download does."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123456789")
    return shutil.copytree(source, place / "snapshots" / "0123456789")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path / "hub"), raising=False)
    return tmp_path / "hub"


def test_a_hub_id_is_found_in_the_hubs_cache(hub_cache, written):
    snapshot = hub(hub_cache, "google/ddpm-tiny-8", written["ddpm"])
    assert resolve_folder("google/ddpm-tiny-8") == snapshot
    assert resolve_folder("google/ddpm-tiny-8", allow_download=True) == snapshot
    assert weights_sha256(snapshot) == weights_sha256(written["ddpm"])


def test_a_hub_id_that_isnt_there_is_refused_or_downloaded(hub_cache, written, monkeypatch):
    refused(lambda: resolve_folder("google/ddpm-tiny-8"), "google/ddpm-tiny-8", "--allow-download")
    snapshot = hub(hub_cache, "google/ddpm-tiny-8", written["ddpm"])
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused(
        lambda: resolve_folder("google/ddpm-tiny-8"), "only a part", "unet", "--allow-download"
    )
    asked = []

    def download(name):
        asked.append(name)
        return str(written["ddpm"])

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    assert resolve_folder("google/ddpm-tiny-8", allow_download=True) == written["ddpm"]
    assert asked == ["google/ddpm-tiny-8"]

    def fail(name):
        raise OSError("no network\nat all")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", fail)
    refused(
        lambda: resolve_folder("google/ddpm-tiny-8", allow_download=True),
        "can't be downloaded: OSError: no network",
    )


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/such/folder", "a/b/c", "~nobody/x"])
def test_wrong_paths_are_refused(name, hub_cache):
    refused(lambda: resolve_folder(name), name, "there is no folder", "--backbone")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_single_files_are_refused_with_what_to_do(suffix, tmp_path):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"weights")
    refused(lambda: resolve_folder(file), file, "from_single_file(FILE).save_pretrained(FOLDER)")
    refused(lambda: resolve_folder(tmp_path), "found none but the single checkpoint", file.name)


def test_parts_and_neighbours_of_pipelines_are_named(written, tmp_path):
    refused(lambda: resolve_folder(written["sd1"] / "unet"), "the config.json of one part")
    refused(lambda: resolve_folder(written["sd1"].parent), f"did you mean {written['sd1']}?")
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    refused(lambda: resolve_folder(tmp_path), "LoRA")
    (tmp_path / "list.txt").write_text("not a folder")
    refused(lambda: resolve_folder(tmp_path / "list.txt"), "is a file; expected a diffusers")


# What can't be run


def test_missing_parts_are_named(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    refused(lambda: images(folder), "vae has no weights of the vae (AutoencoderKL)")
    shutil.rmtree(folder / "vae")
    refused(lambda: images(folder), "no config.json of the vae (AutoencoderKL)")
    shutil.rmtree(folder / "tokenizer")
    shutil.rmtree(folder / "scheduler")
    refused(lambda: images(folder), "folder")


def test_weights_that_lack_a_tensor_are_refused(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    values = load_file(path)
    del values["conv_out.weight"]
    save_file(values, path, metadata={"format": "pt"})
    refused(lambda: images(folder), "lacks 1 of the unet's weights, such as conv_out.weight")


def test_a_missing_shard_is_named(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    sharded(path)
    path.unlink()
    second = folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    second.unlink()
    refused(lambda: images(folder), second, "is missing")


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("unet", {"in_channels": 9}, ["takes 9 channels", "inpainting"]),
        ("unet", {"out_channels": 7}, ["puts out 7"]),
        ("unet", {"sample_size": [8, 16]}, ["sample_size=[8, 16]"]),
        ("unet", {"class_embed_type": "timestep"}, ["class_embed_type='timestep'"]),
        ("unet", {"num_class_embeds": 1000}, ["num_class_embeds=1000"]),
        ("unet", {"addition_embed_type": "image"}, ["addition_embed_type='image'"]),
        ("scheduler", {"prediction_type": "flow_prediction"}, ["predicts flow_prediction"]),
        ("scheduler", {"rescale_betas_zero_snr": True}, ["epsilon at zero terminal SNR"]),
        (
            "scheduler",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            ["FlowMatchEulerDiscreteScheduler", "alphas_cumprod"],
        ),
        ("scheduler", {"_class_name": "EDMEulerScheduler"}, ["EDMEulerScheduler"]),
    ],
)
def test_what_has_no_place_in_the_loop_is_refused_by_name(part, values, words, folder):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    change(folder / part / name, **values)
    refused(lambda: describe(folder), folder, "StableDiffusionPipeline", *words)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("StableDiffusionInpaintPipeline", ["starts from a picture"]),
        ("StableDiffusionImg2ImgPipeline", ["starts from a picture"]),
        ("StableDiffusionControlNetPipeline", ["starts from a picture"]),
        ("StableVideoDiffusionPipeline", ["StableVideoDiffusionPipeline"]),
        ("AudioLDMPipeline", ["single images"]),
        ("DiTPipeline", ["no text-to-image pipeline"]),
        ("NoSuchPipeline", ["doesn't know"]),
    ],
)
def test_other_classes_are_refused_by_name(kind, words, folder):
    change(folder / "model_index.json", _class_name=kind)
    refused(lambda: find_family(folder), kind, "StableDiffusionPipeline", *words)


def test_code_of_the_folders_own_isnt_run(folder):
    change(folder / "model_index.json", _class_name=["my_pipeline", "MyPipeline"])
    refused(lambda: find_family(folder), "MyPipeline", "code of its own")


@pytest.mark.parametrize(
    ("part", "values", "word"),
    [
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ("scheduler", {"_class_name": "LCMScheduler"}, "LCMScheduler"),
        ("scheduler", {"_class_name": "TCDScheduler"}, "TCDScheduler"),
        (
            "scheduler",
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
            "as Turbo's",
        ),
    ],
)
def test_models_of_few_steps_are_called_as_a_whole(part, values, word, folder):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    change(folder / part / name, **values)
    family, said = describe(folder)
    assert family.name == "black_box"
    assert word in said.notes[0]
    assert said.sampling.scheduler == "own"
    assert (said.sampling.steps, said.sampling.guidance) == (50, 7.5)
    assert said.settings["pipeline"] == "StableDiffusionPipeline"


def test_a_safety_checker_is_said_to_be_left_out(folder):
    change(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    _, said = describe(folder)
    assert said.facts["safety_checker"] == "not applied"
    assert "safety checker of folder isn't applied" in said.notes[0]
    assert images(folder).std() > 5


# Damage that its own files show, told before anything is loaded

UNET = "unet/diffusion_pytorch_model.safetensors"


def cut(folder, name=UNET, keep=0.5):
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])


def cut_shard(folder):
    sharded(folder / UNET)
    (folder / UNET).unlink()
    cut(folder, "unet/diffusion_pytorch_model-00002-of-00002.safetensors", 0.99)


def pointer(folder):
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:01\n")


def linked(folder, name, target):
    (folder / name).unlink()
    (folder / name).symlink_to(folder / target)


def without_vocabulary(folder):
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)


def described(folder, name, **values):
    change(folder / name, **values)


DAMAGE = {
    "cut": (cut, ["bytes long, expected", "cut off"]),
    "cut vae": (lambda f: cut(f, "vae/diffusion_pytorch_model.safetensors"), ["cut off", "vae"]),
    "cut text": (lambda f: cut(f, "text_encoder/model.safetensors", 0.99), ["text_encoder"]),
    "cut header": (lambda f: cut(f, keep=0.001), ["no header of the safetensors format"]),
    "empty file": (lambda f: cut(f, keep=0), ["is empty"]),
    "cut shard": (cut_shard, ["-00002-of-00002.safetensors", "cut off"]),
    "twice": (
        lambda f: (f / UNET).write_bytes(2 * (f / UNET).read_bytes()),
        ["bytes long, expected"],
    ),
    "pointer": (pointer, ["pointer of Git LFS", "git lfs pull"]),
    "broken link": (lambda f: linked(f, UNET, "gone"), ["can't be read", "complete the folder"]),
    "loop": (lambda f: linked(f, UNET, UNET), ["can't be read", "complete the folder"]),
    "vocabulary": (without_vocabulary, ["no vocabulary of the tokenizer (CLIPTokenizer)"]),
    "card": (lambda f: (f / "training.json").write_text("{"), ["training.json", "JSON"]),
    "card list": (lambda f: (f / "training.json").write_text("[]"), ["training.json", "JSON"]),
    "other class": (
        lambda f: described(f, "model_index.json", unet=["diffusers", "UNet2DModel"]),
        ["unet/config.json is of a UNet2DConditionModel", "names a UNet2DModel"],
    ),
    "prompts": (
        lambda f: described(f, "unet/config.json", cross_attention_dim=32),
        ["reads prompts of 32 channels", "make 16"],
    ),
    "no size": (lambda f: described(f, "unet/config.json", sample_size=0), ["sample_size=0"]),
    "scaling": (
        lambda f: described(f, "vae/config.json", scaling_factor=None),
        ["scaling_factor=None"],
    ),
    "control": (
        lambda f: described(f, "model_index.json", controlnet=["diffusers", "ControlNetModel"]),
        ["lists a controlnet (ControlNetModel)", "doesn't use"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_before_anything_is_loaded(damage, folder, monkeypatch):
    def loaded(*arguments, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr("diffusers.ModelMixin.from_pretrained", loaded)
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", loaded)
    harm, words = DAMAGE[damage]
    harm(folder)
    message = refused(lambda: folder_spec(folder), folder, *words)
    assert any(
        word in message for word in ("complete", "anew", "use another", "run git", "correct")
    )


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("sdxl", {"requires_aesthetics_score": True}, ["a refiner"]),
        (
            "sdxl",
            {"text_encoder": [None, None], "tokenizer": [None, None]},
            ["reads prompts of 40 channels", "make 24"],
        ),
        ("sdxl", {"_class_name": "StableDiffusionPipeline"}, ["lists a text_encoder_2"]),
        ("sd1", {"_class_name": "StableDiffusionXLPipeline"}, ["without a text_encoder_2"]),
        ("ldm", {"_class_name": "DDPMPipeline"}, ["lists a vqvae (VQModel)"]),
        ("ddpm", {"_class_name": "LDMPipeline"}, ["without a vqvae"]),
    ],
)
def test_an_index_of_another_kind_is_refused(kind, values, words, tmp_path):
    folder = write_stand_in(kind, tmp_path / kind)
    assert folder_spec(folder).folder == folder
    change(folder / "model_index.json", **values)
    refused(lambda: folder_spec(folder), folder, "use another --backbone", *words)


@pytest.mark.parametrize("file", [True, False])
def test_adapters_under_any_name_are_no_checkpoint(file, tmp_path):
    path = tmp_path / "style.safetensors"
    save_file({"lora_unet_mid.lora_down.weight": torch.zeros(2)}, path)
    message = refused(lambda: resolve_folder(path if file else tmp_path), "LoRA", "fused")
    assert "from_single_file" not in message


def test_weights_that_are_no_numbers_are_refused(folder):
    values = load_file(folder / UNET)
    values["conv_out.weight"][0] = float("nan")
    save_file(values, folder / UNET, metadata={"format": "pt"})
    refused(lambda: images(folder), "aren't finite numbers, such as conv_out.weight")


def test_weights_of_other_shapes_name_their_part(folder):
    values = load_file(folder / UNET)
    values["conv_out.weight"] = values["conv_out.weight"][:2].clone()
    save_file(values, folder / UNET, metadata={"format": "pt"})
    refused(lambda: images(folder), "the unet (UNet2DConditionModel)", "conv_out.weight", "anew")
    change(folder / "text_encoder" / "config.json", vocab_size=5)
    values["conv_out.weight"] = torch.zeros(4, 8, 3, 3)
    save_file(values, folder / UNET, metadata={"format": "pt"})
    refused(lambda: images(folder), "the text_encoder (CLIPTextModel)", "other shapes")


# What is unusual and works, against diffusers' own pipeline


def half_of_one(folder):
    halved(folder / UNET)
    (folder / UNET).unlink()


def more_weights(folder):
    values = load_file(folder / UNET) | {"another.weight": torch.zeros(3)}
    save_file(values, folder / UNET, metadata={"format": "pt"})


def linked_from_elsewhere(folder):
    (folder / "unet").rename(folder.parent / "elsewhere")
    (folder / "unet").symlink_to(folder.parent / "elsewhere")


UNUSUAL = {
    "half of one part": half_of_one,
    "more weights": more_weights,
    "linked": linked_from_elsewhere,
    "few timesteps": lambda f: described(
        f, "scheduler/scheduler_config.json", num_train_timesteps=40
    ),
    "another version": lambda f: described(f, "model_index.json", _diffusers_version="0.1.0"),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_folders_make_the_images_of_diffusers(kind, folder):
    UNUSUAL[kind](folder)
    variant = {"unet": "fp16"} if kind == "half of one part" else {}
    backbone = load_backbone(
        "tiny",
        folder,
        device=torch.device("cpu"),
        dtype=torch.float32,
        network_batch=2,
    )
    requests = [Request(Prompt("person"), 0, i, 0) for i in range(2)]
    made = DDIMSampler(backbone, SamplingConfig(4, 3.0))(requests).images
    loaded = {
        name: diffusers.UNet2DConditionModel.from_pretrained(folder / name, variant=value)
        for name, value in variant.items()
    }
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, **loaded)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    starts = [
        torch.randn(backbone.latent_shape, generator=generator(request, Stream.INITIAL_NOISE))
        for request in requests
    ]
    theirs = pipeline(
        [request.prompt.text for request in requests],
        guidance_scale=3.0,
        num_inference_steps=4,
        latents=torch.stack(starts),
        output_type="np",
    ).images
    difference = (theirs * 255).round().astype(int) - made.astype(int)
    assert np.abs(difference).max() <= 1
    assert made.std() > 5
