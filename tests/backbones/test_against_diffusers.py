"""Images of every family against those of diffusers' own pipeline, from the same latents."""

from __future__ import annotations

import copy
import dataclasses
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
)

from fairbench.backbones.base import describe, load_backbone
from fairbench.build.stand_ins import STAND_INS, write_stand_in
from fairbench.core.errors import InputError
from fairbench.core.method import Request, SamplingConfig
from fairbench.core.task import Prompt
from fairbench.diffusion.sampling import DDIMSampler, Stream, generator

# Of NumPy, on what diffusers' schedulers do.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COUNT, STEPS, WIDTH = 3, 5, 4
TEXT = ["sd1", "sd2", "sd_zero_snr", "sdxl"]
PIXELS = ["ddpm", "ddim", "thresholding"]
WHOLE = ["lcm", "sdxl_turbo", "sd3"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = write_stand_in(kind, tmp_path_factory.mktemp(kind) / kind)
        return made[kind]

    return folder


def load(folder, dtype=torch.float32):
    return load_backbone(
        "tiny", folder, device=torch.device("cpu"), dtype=dtype, network_batch=WIDTH
    )


@pytest.fixture(scope="module")
def backbone_of(folder_of):
    made = {}

    def backbone(kind):
        if kind not in made:
            made[kind] = load(folder_of(kind))
        return copy.copy(made[kind])

    return backbone


@pytest.fixture(scope="module")
def pipeline_of(folder_of):
    made = {}

    def pipeline(kind):
        if kind not in made:
            # Optional parts that a folder doesn't name are to be named here.
            none = {"text_encoder_3": None, "tokenizer_3": None} if kind == "sd3" else {}
            found = DiffusionPipeline.from_pretrained(folder_of(kind), **none)
            found.set_progress_bar_config(disable=True)
            made[kind] = found, found.scheduler
        found, scheduler = made[kind]
        found.scheduler = copy.deepcopy(scheduler)
        return found

    return pipeline


def requests(subject="person", count=COUNT):
    prompt = Prompt(subject, template="a photo of {}") if subject else Prompt("")
    return [Request(prompt, 0, i, 3) for i in range(count)]


def generators(stream=Stream.INITIAL_NOISE, count=COUNT):
    return [generator(request, stream) for request in requests(count=count)]


def starts(backbone):
    return torch.stack([torch.randn(backbone.latent_shape, generator=g) for g in generators()])


def ours(backbone, subject="person", **config):
    config = SamplingConfig(**{"steps": STEPS, "guidance": 1.0, **config})
    return DDIMSampler(backbone, config)(requests(subject)).images


def close(images, theirs):
    theirs = np.asarray(theirs)
    if theirs.dtype != np.uint8:
        theirs = (theirs * 255).round()
    assert images.shape == theirs.shape
    assert np.abs(images.astype(int) - theirs.astype(int)).max() <= 1
    assert images.std() > 5  # else nothing was compared


def with_ddim(pipeline, **changes):
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, **changes
    )
    return pipeline


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_text_to_image_by_ddim(kind, guidance, backbone_of, pipeline_of):
    backbone = backbone_of(kind)
    theirs = with_ddim(pipeline_of(kind), clip_sample=False)(
        ["a photo of a person"] * COUNT,
        guidance_scale=guidance,
        num_inference_steps=STEPS,
        latents=starts(backbone),
        output_type="np",
    ).images
    close(ours(backbone, guidance=guidance), theirs)
    assert (ours(backbone, "santa", guidance=guidance) != theirs).any()


@pytest.mark.parametrize("kind", TEXT)
def test_text_to_image_by_the_folders_own_scheduler(kind, backbone_of, pipeline_of):
    backbone = backbone_of(kind)
    theirs = pipeline_of(kind)(
        ["a photo of a person"] * COUNT,
        guidance_scale=3.0,
        num_inference_steps=STEPS,
        latents=starts(backbone),
        output_type="np",
    ).images
    close(ours(backbone, guidance=3.0, scheduler="own"), theirs)


@pytest.mark.parametrize("scheduler", [EulerAncestralDiscreteScheduler, HeunDiscreteScheduler])
def test_an_own_scheduler_draws_noise_for_each_image_and_may_stop_often(
    scheduler, monkeypatch, backbone_of, pipeline_of
):
    backbone, pipeline = backbone_of("sd1"), pipeline_of("sd1")
    backbone.scheduler = pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    theirs = pipeline(
        ["a photo of a person"] * COUNT,
        guidance_scale=1.0,
        num_inference_steps=STEPS,
        latents=starts(backbone),
        generator=generators(Stream.SAMPLER_NOISE),
        output_type="np",
    ).images
    sampler = DDIMSampler(backbone, SamplingConfig(STEPS, 1.0, scheduler="own"))
    made = sampler(requests())
    close(made.images, theirs)
    alone = sampler(requests()[2:])
    np.testing.assert_array_equal(alone.images[0], made.images[2])
    stops = 2 * STEPS - 1 if scheduler is HeunDiscreteScheduler else STEPS
    assert made.network_calls.tolist() == [stops] * COUNT


def test_what_an_own_scheduler_lacks_is_refused(backbone_of):
    backbone = backbone_of("sdxl")
    with pytest.raises(InputError, match=r"--eta 0.5: EulerDiscreteScheduler of tiny has none"):
        ours(backbone, scheduler="own", eta=0.5)


@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_pixels_by_ddim(kind, eta, backbone_of, pipeline_of):
    backbone, pipeline = backbone_of(kind), pipeline_of(kind)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    theirs = DDIMPipeline(pipeline.unet, scheduler)
    step, noise = theirs.scheduler.step, generators(Stream.SAMPLER_NOISE)
    theirs.scheduler.step = lambda *args, **options: step(*args, **options | {"generator": noise})
    theirs.set_progress_bar_config(disable=True)
    images = theirs(
        batch_size=COUNT,
        generator=generators(),
        num_inference_steps=STEPS,
        eta=eta,
        output_type="np",
    ).images
    close(ours(backbone, "", eta=eta), images)


def from_starts(monkeypatch, pipeline, backbone):
    """Have a pipeline that takes no latents begin with ours."""
    module = sys.modules[type(pipeline).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: starts(backbone))


@pytest.mark.parametrize("kind", ["ddpm", "learned_variance", "thresholding"])
def test_pixels_by_the_folders_own_scheduler(kind, monkeypatch, backbone_of, pipeline_of):
    backbone, pipeline = backbone_of(kind), pipeline_of(kind)
    from_starts(monkeypatch, pipeline, backbone)
    theirs = pipeline(
        batch_size=COUNT,
        generator=generators(Stream.SAMPLER_NOISE),
        num_inference_steps=STEPS,
        output_type="np",
    ).images
    close(ours(backbone, "", scheduler="own"), theirs)


def by_hand(backbone, unet, scheduler, **options):
    """The loop of diffusers' pixel pipelines for a network that none of them calls."""
    scheduler = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    x = starts(backbone)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, **options).sample[:, :3], t, x).prev_sample
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def test_learned_variance_by_ddim_is_left_alone(backbone_of, pipeline_of):
    backbone, pipeline = backbone_of("learned_variance"), pipeline_of("learned_variance")
    close(ours(backbone, ""), by_hand(backbone, pipeline.unet, pipeline.scheduler))


def test_classes_are_prompts(backbone_of, pipeline_of):
    backbone, pipeline = backbone_of("classes"), pipeline_of("classes")
    assert backbone.conditional
    for number in (0, 2):
        labels = torch.full((COUNT,), number)
        theirs = by_hand(backbone, pipeline.unet, pipeline.scheduler, class_labels=labels)
        close(ours(backbone, f"{number}"), theirs)
    with pytest.raises(InputError, match="names no class of tiny; its 4 class names are 0, 1"):
        ours(backbone)
    with pytest.raises(InputError, match="no empty class"):
        ours(backbone, "1", guidance=2.0)


def test_classes_have_names_and_the_one_without_is_empty(backbone_of):
    backbone = backbone_of("classes")
    backbone.name_classes({"person": 0, "tennis player": 1, "player": 2})
    found = backbone.embed(["a photo of a tennis player", "a Person", "a player", ""])
    assert found.flatten().tolist() == [1, 0, 2, 3]
    assert ours(backbone, guidance=2.0).shape == (COUNT, 8, 8, 3)


@pytest.mark.parametrize("scheduler", ["ddim", "own"])
def test_unconditional_latents(scheduler, monkeypatch, backbone_of, pipeline_of):
    backbone, pipeline = backbone_of("ldm"), pipeline_of("ldm")
    from_starts(monkeypatch, pipeline, backbone)
    if scheduler == "ddim":
        with_ddim(pipeline)
    theirs = pipeline(batch_size=COUNT, num_inference_steps=STEPS, output_type="np").images
    close(ours(backbone, "", scheduler=scheduler), theirs)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vqvae.encode(pixels).latents * 0.5
    torch.testing.assert_close(backbone.encode(images), latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", WHOLE)
def test_pipelines_that_are_called_as_a_whole(kind, folder_of, backbone_of, pipeline_of):
    family, said = describe(folder_of(kind))
    assert family.name == "black_box"
    backbone, sampling = backbone_of(kind), dataclasses.replace(said.sampling, steps=2)
    made = DDIMSampler(backbone, sampling)(requests())
    for i in range(COUNT):  # one image a call: the company that an image is made in has no part
        theirs = pipeline_of(kind)(
            ["a photo of a person"],
            generator=generators()[i],
            num_inference_steps=2,
            output_type="np",
            **({} if kind == "lcm" else {"guidance_scale": sampling.guidance}),
        ).images
        close(made.images[i : i + 1], theirs)
    a_step = 1 if kind == "lcm" else 2  # a model that is told the scale needs no second branch
    assert made.network_calls.tolist() == [2 * a_step] * COUNT
    alone = DDIMSampler(backbone, sampling)(requests()[1:2])
    np.testing.assert_array_equal(alone.images[0], made.images[1])


@pytest.mark.parametrize("kind", sorted({*STAND_INS} - {*WHOLE}))
def test_an_image_is_the_same_in_any_company(kind, backbone_of):
    backbone = backbone_of(kind)
    text = {"classes": "1"}.get(kind, "person" if backbone.conditional else "")
    sampler = DDIMSampler(backbone, SamplingConfig(2, 1.0))
    many = sampler(requests(text, 6)).images
    some = sampler([requests(text, 6)[i] for i in (5, 1)]).images
    np.testing.assert_array_equal(some, many[[5, 1]])


def test_a_vae_that_must_stays_in_float32(folder_of):
    backbone = load(folder_of("sdxl"), dtype=torch.bfloat16)
    assert {p.dtype for p in backbone._vae.parameters()} == {torch.float32}
    assert {p.dtype for p in backbone.unet.parameters()} == {torch.bfloat16}
    assert ours(backbone, guidance=3.0).std() > 5


def test_clean_images_are_cut_where_the_folder_says_so(backbone_of):
    assert backbone_of("ddpm").schedule.clip == 1
    threshold = backbone_of("thresholding").schedule.threshold
    assert (threshold.ratio, threshold.largest) == (0.995, 1.5)
    clean = 2 * torch.randn((3, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    theirs = DDPMScheduler(thresholding=True, sample_max_value=1.5)._threshold_sample(clean)
    torch.testing.assert_close(threshold(clean), theirs)
