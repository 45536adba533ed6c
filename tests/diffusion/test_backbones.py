from __future__ import annotations

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from fairbench.backbones.base import load_backbone
from fairbench.backbones.mixture import GaussianMixture
from fairbench.build.train_sd import tokenizer
from fairbench.core.errors import AssetError, ContractError
from fairbench.core.method import Request, SamplingConfig
from fairbench.core.task import Prompt
from fairbench.diffusion.denoisers import conditioned, guided
from fairbench.diffusion.sampling import DDIMSampler, Stream, ddim, generator
from fairbench.diffusion.schedule import Prediction, Schedule

# scheduler_config.json of the published Stable Diffusion 1.5 and 2.1 folders.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD1 = PNDMScheduler(
    **BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, trained_betas=None
)
SD2 = DDIMScheduler(
    **BETAS,
    prediction_type="v_prediction",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
DDPM = DDPMScheduler()
WIDTH = 8


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def requests(count, subject="person", **changes):
    return [
        Request(Prompt(subject, template="a photo of {}"), 0, i, 3, **changes)
        for i in range(count)
    ]


def start(count, shape):
    return torch.stack(
        [torch.randn(shape, generator=generator(r, Stream.INITIAL_NOISE)) for r in requests(count)]
    )


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- noise levels -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    return DDIMScheduler(**BETAS, clip_sample=False)


@pytest.fixture(scope="module")
def schedule(reference):
    return Schedule(reference.alphas_cumprod, "epsilon")


def test_schedule_keeps_the_table_and_unit_variance(schedule, reference):
    every = torch.arange(1000)
    assert len(schedule) == 1000
    assert torch.equal(schedule._alpha_squared(every), reference.alphas_cumprod.double())
    torch.testing.assert_close(schedule.alpha(every) ** 2, reference.alphas_cumprod.double())
    fine = torch.linspace(0, 999, 4321, dtype=torch.float64)
    torch.testing.assert_close(
        schedule.alpha(fine) ** 2 + schedule.sigma(fine) ** 2,
        torch.ones_like(fine),
        rtol=0,
        atol=1e-14,
    )
    assert schedule.alpha(7).shape == ()
    assert schedule.alpha(7).dtype == torch.float64


def test_schedule_is_monotone_between_its_integers(schedule):
    fine = torch.linspace(0, 999, 9991, dtype=torch.float64)
    assert (schedule.alpha(fine).diff() < 0).all()
    assert (schedule.sigma(fine).diff() > 0).all()
    for t in (0, 1, 500, 998):
        assert schedule.alpha(t) > schedule.alpha(t + 0.25) > schedule.alpha(t + 0.75)
        assert schedule.alpha(t + 0.75) > schedule.alpha(t + 1)


def test_snr_is_the_ratio_of_variances(schedule):
    at = torch.tensor([0, 10.5, 640, 999])
    torch.testing.assert_close(schedule.snr(at), (schedule.alpha(at) / schedule.sigma(at)) ** 2)
    assert schedule.snr(0) > 1000 * schedule.snr(999)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 7, 25, 30, 50, 999, 1000])
def test_timesteps_are_those_of_diffusers(schedule, spacing, steps):
    theirs = DDIMScheduler(**BETAS, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    ours = schedule.timesteps(steps, spacing)
    assert ours == theirs.timesteps.tolist()
    assert all(type(t) is int for t in ours)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_every_number_of_steps_starts_at_pure_noise_and_descends(schedule, spacing):
    for steps in range(1, 1001):
        times = schedule.timesteps(steps, spacing)
        assert len(times) == steps
        assert times[0] == 999
        assert times[-1] >= 0
        assert (np.diff(times) < 0).all()


def test_add_noise_is_that_of_diffusers(schedule, reference):
    clean, noise = randn(5, 4, 3, 3), randn(5, 4, 3, 3, seed=1)
    t = torch.tensor([0, 3, 400, 998, 999])
    expected = reference.add_noise(clean, noise, t)
    torch.testing.assert_close(schedule.add_noise(clean, noise, t), expected)
    torch.testing.assert_close(
        schedule.add_noise(clean, noise, 400)[:1],
        reference.add_noise(clean[:1], noise[:1], torch.tensor([400])),
    )


# --- predictions ------------------------------------------------------------------------------


def place(schedule, t=(3, 400, 900)):
    t = torch.tensor(t)
    clean, noise = randn(3, 4, 2, 2, dtype=torch.float64), randn(3, 4, 2, 2, seed=1).double()
    alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    return clean, noise, alpha, sigma, alpha * clean + sigma * noise


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_prediction_conversions_round_trip(schedule, kind):
    clean, noise, alpha, sigma, x_t = place(schedule)
    velocity = alpha * noise - sigma * clean
    given = {"epsilon": noise, "sample": clean, "v_prediction": velocity}
    seen = Prediction(x_t, alpha, sigma, kind, given[kind])
    for value, expected in (
        (seen.noise, noise),
        (seen.clean, clean),
        (seen.velocity, velocity),
    ):
        assert (value - expected).abs().max() < 1e-10
    for other, value in (
        ("epsilon", seen.noise),
        ("sample", seen.clean),
        ("v_prediction", seen.velocity),
    ):
        again = Prediction(x_t, alpha, sigma, other, value)
        back = {"epsilon": again.noise, "sample": again.clean, "v_prediction": again.velocity}
        assert (back[kind] - given[kind]).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_predictions_agree_with_diffusers(schedule, kind):
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, prediction_type=kind)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(25)
    x_t, value = randn(2, 4, 2, 2, dtype=torch.float64), randn(2, 4, 2, 2, seed=1).double()
    for t in (39, 479, 959):
        seen = Prediction(x_t, schedule.alpha(t), schedule.sigma(t), kind, value)
        theirs = scheduler.step(value, t, x_t).pred_original_sample
        torch.testing.assert_close(seen.clean, theirs, rtol=1e-10, atol=1e-10)
        velocity = scheduler.get_velocity(seen.clean, seen.noise, torch.tensor([t, t]))
        torch.testing.assert_close(seen.velocity, velocity, rtol=1e-10, atol=1e-10)


def test_clipping_bounds_the_clean_image_and_keeps_x_t(schedule):
    clean, noise, alpha, sigma, x_t = place(schedule)
    seen = Prediction(x_t, alpha, sigma, "epsilon", noise)
    assert seen.clipped(None) is seen
    cut = seen.clipped(0.5)
    assert clean.abs().max() > 0.5
    torch.testing.assert_close(cut.clean, clean.clamp(-0.5, 0.5))
    torch.testing.assert_close(alpha * cut.clean + sigma * cut.noise, x_t)


def test_with_value_forgets_what_was_computed(schedule):
    _, noise, alpha, sigma, x_t = place(schedule)
    seen = Prediction(x_t, alpha, sigma, "epsilon", noise)
    before = seen.clean
    assert not torch.equal(seen.with_value(2 * noise).clean, before)
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.value = noise


# --- the mixture whose denoiser is a formula --------------------------------------------------


STD = 0.1
WORDS = {"female": (0,), "male": (1, 2), "old": (0, 2)}


def mixture(weights=(0.5, 0.3, 0.2), words=None):
    means = randn(len(weights), 3, 2, 2, seed=5).clamp(-0.9, 0.9)
    return GaussianMixture(means, weights, STD, words)


def components(backbone, images):
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    away = (pixels[:, None] - backbone.means).flatten(2).square().sum(-1)
    return away.argmin(1)


def shares(backbone, sampler, count):
    found = components(backbone, sampler(requests(count, sampler.subject)).images)
    return np.bincount(found, minlength=len(backbone.means)) / count


def mixture_sampler(backbone, subject="", **changes):
    sampler = DDIMSampler(backbone, SamplingConfig(**{"steps": 50, "guidance": 1.0, **changes}))
    sampler.subject = subject
    return sampler


@pytest.mark.parametrize("t", [0, 20, 300, 700, 999])
def test_mixture_denoiser_is_the_score_of_the_noised_density(t):
    backbone, weights = mixture(), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    alpha, sigma = float(backbone.schedule.alpha(t)), float(backbone.schedule.sigma(t))
    x = (alpha * backbone.means.repeat(2, 1, 1, 1) + 0.7 * randn(6, 3, 2, 2).double()).detach()
    x.requires_grad_()
    scale = (alpha**2 * STD**2 + sigma**2) ** 0.5
    each = torch.distributions.Normal(alpha * backbone.means, scale).log_prob(x[:, None])
    density = torch.logsumexp(weights.log() + each.sum((-3, -2, -1)), dim=1)
    (score,) = torch.autograd.grad(density.sum(), x)
    with torch.no_grad():
        predicted = backbone.predict(x.detach(), t, None)
    torch.testing.assert_close(predicted.noise, -sigma * score, rtol=1e-8, atol=1e-8)


def test_mixture_samples_have_the_shares_and_the_deviation():
    backbone = mixture((0.8, 0.2))
    sampler = mixture_sampler(backbone)
    images = sampler(requests(2000)).images
    found = components(backbone, images)
    share = (found == 0).double().mean()
    assert abs(share - 0.8) < 4 * (0.8 * 0.2 / 2000) ** 0.5
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    inside = backbone.means[found].abs() < 0.6  # where decoding to [-1, 1] can't cut
    spread = (pixels - backbone.means[found])[inside].std()
    # Far from the other component everything is linear, so that each step scales the deviation.
    expected, times = 1.0, [*backbone.schedule.timesteps(50, "trailing"), None]
    for t, following in itertools.pairwise(times):
        alpha, sigma = float(backbone.schedule.alpha(t)), float(backbone.schedule.sigma(t))
        to, left = 1.0, 0.0
        if following is not None:
            to = float(backbone.schedule.alpha(following))
            left = float(backbone.schedule.sigma(following))
        shrink = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        expected *= to * shrink + left * (1 - alpha * shrink) / sigma
    assert expected < STD  # 50 steps are too few to keep all of it
    assert spread == pytest.approx(expected, rel=0.03)


def test_prompt_words_restrict_the_components():
    backbone = mixture(words=WORDS)
    context = backbone.embed(["a photo of a person", "a male", "an old male", "female"])
    assert context.shape == (4, 1, 3)
    expected = torch.tensor([[0.5, 0.3, 0.2], [0, 0.6, 0.4], [0, 0, 1], [1, 0, 0]])
    torch.testing.assert_close(context[:, 0].exp().float(), expected)
    assert shares(backbone, mixture_sampler(backbone, "old male"), 60)[2] == 1
    male = shares(backbone, mixture_sampler(backbone, "male", steps=20), 1000)
    assert male[0] == 0
    assert abs(male[1] - 0.6) < 4 * (0.6 * 0.4 / 1000) ** 0.5
    assert mixture().embed(["male"]) is None


def test_bottleneck_edits_move_the_share_compose_and_end():
    backbone = mixture((0.8, 0.2))
    sampler = mixture_sampler(backbone, steps=20)
    before = shares(backbone, sampler, 200)
    push = torch.tensor([-1.5, 1.5], dtype=torch.float64).reshape(1, 2, 1, 1)
    with backbone.edit_bottleneck(lambda h, t: h + push):
        moved = shares(backbone, sampler, 200)
        with backbone.edit_bottleneck(lambda h, t: h - push):
            undone = shares(backbone, sampler, 200)
        after_inner = shares(backbone, sampler, 200)
    assert moved[1] > before[1] + 0.2
    np.testing.assert_array_equal(undone, before)
    np.testing.assert_array_equal(after_inner, moved)
    np.testing.assert_array_equal(shares(backbone, sampler, 200), before)


def test_an_edit_sees_finite_numbers_and_revives_nothing_that_a_prompt_rules_out():
    backbone, seen = mixture(words=WORDS), []

    def pushed(h, t):
        seen.append(h)
        return h + torch.tensor([200.0, 0, 0], dtype=torch.float64).reshape(1, 3, 1, 1)

    with backbone.edit_bottleneck(lambda h, t: h):
        male = shares(backbone, mixture_sampler(backbone, "male", steps=20), 100)
    np.testing.assert_array_equal(
        male, shares(backbone, mixture_sampler(backbone, "male", steps=20), 100)
    )
    with backbone.edit_bottleneck(pushed):
        assert shares(backbone, mixture_sampler(backbone, "male", steps=20), 100)[0] == 0
    assert torch.isfinite(torch.cat(seen)).all()


def test_guidance_one_is_the_conditional_prediction():
    backbone = mixture(words=WORDS)
    context, empty = backbone.embed(["male"] * 4), backbone.embed([""] * 4)
    x = randn(4, 3, 2, 2)
    with torch.no_grad():
        conditional = backbone.predict(x, 600, context).value
        for w in (0.0, 1.0, 3.0):
            branches = conditioned(backbone, context), conditioned(backbone, empty)
            value = guided(*branches, w)(x, 600).value
            unconditional = backbone.predict(x, 600, empty).value
            expected = (1 - w) * unconditional + w * conditional
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(conditional, unconditional, atol=1e-3)


def test_mixture_rejects_weights_that_are_no_shares():
    for weights in ((0.5, 0.2), (0.5, 0.3, 0.2)):
        with pytest.raises(ContractError, match=f"seen {len(weights)} summing to"):
            GaussianMixture(torch.zeros(2, 3, 2, 2), weights, STD)


def test_mixture_hash_follows_what_it_is():
    hashes = {mixture().weights_sha256, mixture((0.5, 0.2, 0.3)).weights_sha256}
    hashes.add(mixture(words=WORDS).weights_sha256)
    assert len(hashes) == 3
    assert mixture().weights_sha256 in hashes


# --- diffusers pipelines ----------------------------------------------------------------------


def small_unet(kind, **changes):
    return kind(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        **changes,
    )


def save_stable_diffusion(folder, scheduler):
    words = tokenizer(folder)
    end = words.eos_token_id
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.7,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=words,
        unet=small_unet(
            UNet2DConditionModel,
            cross_attention_dim=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def save_ddpm(folder):
    unet = small_unet(
        UNet2DModel,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPM).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def load(folder):
    return load_backbone(
        "tiny",
        folder,
        device=torch.device("cpu"),
        dtype=torch.float32,
        network_batch=WIDTH,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "sd1": save_stable_diffusion(tmp_path_factory.mktemp("sd1"), SD1),
            "sd2": save_stable_diffusion(tmp_path_factory.mktemp("sd2"), SD2),
            "ddpm": save_ddpm(tmp_path_factory.mktemp("ddpm")),
        }


@pytest.fixture(scope="module")
def backbones(folders):
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture(params=["sd1", "sd2", "ddpm"])
def backbone(request, backbones):
    return backbones[request.param]


def test_loaded_backbones_say_what_they_are(backbones):
    for name, latent, size, kind, clip, conditional in (
        ("sd1", (4, 8, 8), 16, "epsilon", None, True),
        ("sd2", (4, 8, 8), 16, "v_prediction", None, True),
        ("ddpm", (3, 8, 8), 8, "epsilon", 1.0, False),
    ):
        made = backbones[name]
        assert (made.latent_shape, made.image_size) == (latent, size)
        assert (made.schedule.prediction_type, made.schedule.clip) == (kind, clip)
        assert made.conditional is conditional
        assert len(made.schedule) == 1000
        assert not any(p.requires_grad for p in made.unet.parameters())
        assert not made.unet.training


def test_hash_follows_the_weights_not_the_place(folders, tmp_path, backbones):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folders["ddpm"], copy)
    assert load(copy).weights_sha256 == backbones["ddpm"].weights_sha256
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load(copy).weights_sha256 != backbones["ddpm"].weights_sha256


def test_shapes_of_encode_decode_and_embed(backbone):
    size, count = backbone.image_size, 11  # more than one network batch
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    latents = backbone.encode(images)
    assert latents.shape == (count, *backbone.latent_shape)
    assert latents.dtype == torch.float32
    decoded = backbone.decode(latents)
    assert decoded.shape == images.shape
    assert decoded.dtype == np.uint8
    prompts = ["a photo of a person", "", "a photo of a santa"] * 4
    context = backbone.embed(prompts)
    if not backbone.conditional:
        assert context is None
        np.testing.assert_array_equal(decoded, images)
        return
    assert context.shape == (12, 16, 16)
    assert torch.equal(context[:3], context[3:6])
    assert not torch.equal(context[0], context[2])


def test_every_pixel_value_survives_a_pixel_model(backbones):
    values = np.arange(256, dtype=np.uint8)
    images = np.resize(values, (2, 8, 8, 3))
    np.testing.assert_array_equal(np.unique(images), values)
    made = backbones["ddpm"]
    np.testing.assert_array_equal(made.decode(made.encode(images)), images)
    outside = torch.full((1, 3, 8, 8), 1.7)
    assert (made.decode(outside) == 255).all()
    assert (made.decode(-outside) == 0).all()


def test_vae_is_used_as_its_pipeline_uses_it(backbones, folders):
    made = backbones["sd1"]
    pipeline = quiet(DiffusionPipeline.from_pretrained(folders["sd1"]))
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels = pipeline.image_processor.preprocess(images / 255.0).float()
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mean * 0.7
        image = pipeline.vae.decode(latents / 0.7).sample
    torch.testing.assert_close(made.encode(images), latents, rtol=1e-4, atol=1e-4)
    theirs = pipeline.image_processor.postprocess(image, output_type="np") * 255
    assert np.abs(made.decode(latents) - theirs).max() <= 0.51


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", ["sd1", "sd2"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_trajectory_is_that_of_the_stable_diffusion_pipeline(name, guidance, backbones, folders):
    made, count = backbones[name], 3
    pipeline = quiet(DiffusionPipeline.from_pretrained(folders[name]))
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config,
        timestep_spacing="trailing",
        set_alpha_to_one=True,  # the trajectory ends at the clean image
        clip_sample=False,
    )
    asked = {
        "prompt": ["a photo of a person"] * count,
        "guidance_scale": guidance,
        "num_inference_steps": 10,
        "eta": 0.0,
        "height": 16,
        "width": 16,
        "latents": start(count, made.latent_shape),
    }
    config = SamplingConfig(steps=10, guidance=guidance)
    sampler = DDIMSampler(made, config)
    with torch.inference_mode():
        denoise, calls = sampler.denoiser(requests(count), [None] * count)
        ours = ddim(made, denoise, requests(count), config)
    assert calls == (1 if guidance == 1 else 2)
    theirs = pipeline(**asked, output_type="latent").images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    pixels = pipeline(**asked, output_type="np").images * 255
    images = sampler(requests(count)).images
    assert np.abs(images - pixels).max() <= 0.55
    other = sampler(
        [
            dataclasses.replace(r, prompt=Prompt("santa", template="a photo of {}"))
            for r in requests(count)
        ]
    )
    assert (other.images != images).any()


def test_trajectory_is_that_of_the_ddim_pipeline(folders):
    made, pipeline = load(folders["ddpm"]), DiffusionPipeline.from_pretrained(folders["ddpm"])
    made.network_batch = 3  # as the pipeline's calls: CPUs' sums depend on the number of rows
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    assert scheduler.config.clip_sample
    theirs = quiet(DDIMPipeline(pipeline.unet, scheduler))(
        batch_size=3,
        generator=[generator(r, Stream.INITIAL_NOISE) for r in requests(3)],
        num_inference_steps=10,
        output_type="np",
    ).images
    config = SamplingConfig(steps=10, guidance=1.0)
    with torch.inference_mode():
        ours = ddim(made, lambda x, t: made.predict(x, t, None), requests(3), config)
    torch.testing.assert_close(
        (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1),
        torch.from_numpy(theirs),
        rtol=0,
        atol=1e-4,
    )


def test_a_row_is_the_same_alone_and_in_any_company(backbone):
    x = randn(7, *backbone.latent_shape)
    prompts = ["a photo of a person", "a photo of a santa", "", "woman", "man", "face", "black"]
    context = backbone.embed(prompts)
    with torch.inference_mode():
        together = backbone.predict(x, 500, context).value
        for i in range(7):
            own = None if context is None else context[i : i + 1]
            assert torch.equal(backbone.predict(x[i : i + 1], 500, own).value[0], together[i])
        turned = [3, 6, 0, 5, 1, 4, 2]
        moved = backbone.predict(
            x[turned], 500, None if context is None else context[turned]
        ).value
    assert torch.equal(moved, together[turned])
    assert not torch.equal(together[0], together[1])


def test_embeddings_are_the_same_in_any_company(backbones):
    made = backbones["sd2"]
    prompts = [
        f"a photo of a {word}" for word in ["woman", "man", "face", "person", "santa", "tennis"]
    ]
    together = made.embed(prompts)
    for i, prompt in enumerate(prompts):
        assert torch.equal(made.embed([prompt])[0], together[i])


def test_tokens_are_those_of_the_tokenizer(backbones):
    backbone = backbones["sd1"]
    assert backbones["ddpm"].tokens("a photo") is None
    assert mixture().tokens("a photo") is None
    pieces = backbone.tokens("a photo")
    ids = backbone._tokenizer("a photo").input_ids
    assert pieces == backbone._tokenizer.convert_ids_to_tokens(ids)[1:-1]
    # What lies beyond the limit changes nothing, what lies within it does.
    fits = ["a"] * (backbone.token_limit // len(backbone.tokens("a")))
    whole = backbone.embed([" ".join(fits)])
    assert torch.equal(backbone.embed([" ".join([*fits, "photo"])]), whole)
    assert not torch.equal(backbone.embed([" ".join([*fits[:-1], "photo"])]), whole)


def test_rows_may_have_timesteps_of_their_own(backbone):
    x, context = randn(3, *backbone.latent_shape), backbone.embed(["", "man", "woman"])
    times = [10, 500, 999]
    with torch.no_grad():
        together = backbone.predict(x, torch.tensor(times), context)
        for i, t in enumerate(times):
            own = None if context is None else context[i : i + 1]
            alone = backbone.predict(x[i : i + 1], t, own)
            assert torch.equal(alone.value[0], together.value[i])
            torch.testing.assert_close(alone.clean[0], together.clean[i])


def test_more_rows_than_the_network_batch_are_refused(backbone):
    x = randn(WIDTH + 1, *backbone.latent_shape)
    context = backbone.embed([""] * (WIDTH + 1))
    with torch.no_grad(), pytest.raises(ContractError, match=f"at most {WIDTH} rows.*seen 9"):
        backbone.predict(x, 5, context)
    with torch.no_grad():
        fitting = None if context is None else context[:WIDTH]
        assert backbone.predict(x[:WIDTH], 5, fitting).value.shape == x[:WIDTH].shape


def hooks(backbone):
    modules = (backbone.unet, backbone.unet.mid_block)
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_bottleneck_is_seen_edited_and_left_alone_again(backbone):
    x, context = randn(2, *backbone.latent_shape), backbone.embed(["man", "woman"])
    seen = []

    def look(h, t):
        seen.append((tuple(h.shape), t))
        return h

    with torch.no_grad():
        plain = backbone.predict(x, 321, context).value
        with backbone.edit_bottleneck(look):
            assert torch.equal(backbone.predict(x, 321, context).value, plain)
            backbone.predict(x, torch.tensor([7, 7]), context)
        with backbone.edit_bottleneck(lambda h, t: h + 1):
            changed = backbone.predict(x, 321, context).value
        assert hooks(backbone) == 0
        assert torch.equal(backbone.predict(x, 321, context).value, plain)
    assert seen == [((WIDTH, 32, 4, 4), 321), ((WIDTH, 32, 4, 4), 7)]
    assert (changed - plain).abs().max() > 1e-3


def test_bottleneck_edits_compose_and_end_after_an_error(backbone):
    x, context = randn(2, *backbone.latent_shape), backbone.embed(["man", "woman"])
    with torch.no_grad():
        plain = backbone.predict(x, 50, context).value
        with (
            backbone.edit_bottleneck(lambda h, t: h * 2),
            backbone.edit_bottleneck(lambda h, t: h / 2),
        ):
            assert torch.equal(backbone.predict(x, 50, context).value, plain)
    with pytest.raises(ZeroDivisionError), backbone.edit_bottleneck(lambda h, t: h):
        raise ZeroDivisionError
    assert hooks(backbone) == 0


def test_gradients_reach_x_t_and_the_bottleneck(backbone):
    context = backbone.embed(["man", "woman"])
    x = randn(2, *backbone.latent_shape).requires_grad_()
    push = torch.zeros(1, 32, 1, 1, requires_grad=True)
    with backbone.edit_bottleneck(lambda h, t: h + push):
        predicted = backbone.predict(x, 321, context)
    predicted.clean[0].square().sum().backward()
    assert x.grad[0].abs().max() > 0
    assert x.grad[1].abs().max() == 0  # the other row has no part in it
    assert push.grad.abs().max() > 0
    with torch.no_grad():
        padded = backbone.predict(x, 321, context).value
    torch.testing.assert_close(predicted.value.detach(), padded, rtol=1e-3, atol=1e-4)


# --- folders that can't be loaded -------------------------------------------------------------


def refused(folder, *words):
    with pytest.raises(AssetError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("'tiny'", str(folder), *words):
        assert word in message
    return message


def test_missing_and_foreign_folders_are_asset_errors(tmp_path):
    refused(tmp_path / "nowhere", "model_index.json", "--backbone")
    (tmp_path / "notes.txt").write_text("not a pipeline")
    refused(tmp_path, "model_index.json", "found none")


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"_class_name": "NoSuchPipeline"}', '{"_class_name": "DDPMPipeline"}'],
)
def test_a_model_index_that_is_none_is_an_asset_error(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    refused(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["truncated", "zeros", "missing"])
def test_damaged_weights_are_asset_errors(tmp_path, folders, part, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(folders["sd1"], folder)
    (weights,) = (folder / part).glob("*.safetensors")
    content = weights.read_bytes()
    if damage == "missing":
        weights.unlink()
    else:
        half = len(content) // 2
        weights.write_bytes(content[:half] if damage == "truncated" else bytes(half))
    refused(folder)


def test_weights_of_another_shape_are_an_asset_error(tmp_path, folders):
    folder = tmp_path / "other"
    shutil.copytree(folders["ddpm"], folder)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [16, 64]}))
    refused(folder, "shape")
