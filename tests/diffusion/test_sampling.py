from __future__ import annotations

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from fairbench.backbones.diffusers_pipelines import DiffusersBackbone
from fairbench.backbones.mixture import GaussianMixture
from fairbench.backbones.small import text_network
from fairbench.core.errors import InputError
from fairbench.core.method import Preparation, Request, SamplingConfig, TrainingData
from fairbench.core.task import Prompt
from fairbench.datasets.base import get_dataset
from fairbench.diffusion import sampling
from fairbench.diffusion.sampling import (
    DDIMSampler,
    Stream,
    ddim,
    gaussian,
    generator,
    indicator_rng,
)
from fairbench.methods import make_method

STD = 0.1
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counting(GaussianMixture):
    """Keeps what every network call was given."""

    seen: list

    def predict(self, x_t, t, context):
        self.seen.append((x_t.clone(), t))
        return super().predict(x_t, t, context)


def mixture(words=None, weights=(0.8, 0.2)):
    means = torch.randn((2, 3, 2, 2), generator=torch.Generator().manual_seed(5))
    backbone = Counting(means.clamp(-0.9, 0.9), weights, STD, words)
    backbone.seen = []
    return backbone


def config(steps=12, **changes):
    return SamplingConfig(**{"steps": steps, "guidance": 1.0, "eta": 0.0, **changes})


def request(image=0, prompt=0, seed=0, subject="person"):
    return Request(Prompt(subject, template="a photo of {}"), prompt, image, seed)


def many(count):
    return [request(i) for i in range(count)]


def latents(backbone, asked, chosen):
    with torch.inference_mode():
        return ddim(backbone, lambda x, t: backbone.predict(x, t, None), asked, chosen)


# --- the loop itself ---------------------------------------------------------------------------


def small_text(device="cpu"):
    return DiffusersBackbone(
        "tiny",
        copy.deepcopy(text_network()),
        sha256="tiny",
        device=torch.device(device),
        dtype=torch.float32,
        network_batch=4,
    )


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("count", [2, 4])
def test_the_loop_copies_nothing_back_from_the_device(monkeypatch, eta, count):
    with pytest.raises((NotImplementedError, RuntimeError)):
        float(torch.zeros(1, device="meta"))  # nothing can be read from this device
    monkeypatch.setattr(sampling, "_finite", lambda x, backbone: x)  # looked at once, behind it
    backbone = small_text("meta")
    sampler = DDIMSampler(backbone, config(5, guidance=3.0, eta=eta))
    denoise, _ = sampler.denoiser(many(count), [None] * count)
    with torch.inference_mode():
        found = ddim(backbone, denoise, many(count), sampler.config)
    assert (found.device.type, found.shape) == ("meta", (count, 3, 4, 4))


def test_both_branches_of_guidance_share_a_call_that_holds_them(monkeypatch):
    backbone = small_text()
    calls = []
    network = DiffusersBackbone._network

    def counted(self, x_t, t, context):
        calls.append(len(x_t))
        return network(self, x_t, t, context)

    monkeypatch.setattr(DiffusersBackbone, "_network", counted)
    sampler = DDIMSampler(backbone, config(5, guidance=3.0))
    together = sampler(many(2))
    assert calls == [4] * 5  # of one shape always
    calls.clear()
    monkeypatch.setattr(sampling, "guided_at_once", lambda *arguments: None)
    apart = sampler(many(2))
    assert calls == [4] * 10
    np.testing.assert_array_equal(together.images, apart.images)
    np.testing.assert_array_equal(together.network_calls, apart.network_calls)


def test_a_network_is_compiled_where_that_works(monkeypatch):
    backbone, calls = small_text(), []
    sampler = DDIMSampler(backbone, config(3, guidance=2.0))
    expected = sampler(many(2)).images

    def compiled(module):
        def call(*arguments, **options):
            calls.append(1)
            return module._call_impl(*arguments, **options)

        module._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    assert backbone.compile() == ""
    assert calls == [1]  # tried at once
    np.testing.assert_array_equal(sampler(many(2)).images, expected)
    assert len(calls) == 4

    def broken(module):
        def call(*arguments, **options):
            raise RuntimeError("no compiler\nas a long trace says")

        module._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    assert backbone.compile() == "RuntimeError: no compiler"
    np.testing.assert_array_equal(sampler(many(2)).images, expected)  # goes on without
    assert "no network" in mixture().compile()


# --- randomness -------------------------------------------------------------------------------


@pytest.mark.parametrize(("eta", "guidance"), [(0.0, 1.0), (0.6, 2.0)])
def test_an_image_depends_on_its_request_alone(eta, guidance):
    backbone = mixture(words={"female": (0,), "male": (1,)})
    sampler = DDIMSampler(backbone, config(3, eta=eta, guidance=guidance))
    # More than one network batch, several prompts, two seeds.
    subjects = ("person", "female", "male")
    asked = [request(i, p, s, subjects[p]) for i in range(12) for p in range(3) for s in (0, 9)]
    assert len(asked) > backbone.network_batch
    together = sampler(asked).images
    assert len(np.unique(together, axis=0)) == len(asked)
    turned = np.random.default_rng(0).permutation(len(asked))
    np.testing.assert_array_equal(sampler([asked[i] for i in turned]).images, together[turned])
    for size in (1, 7, 50):
        parts = sampler.batches(asked, size)
        assert [len(p) for p in parts[:-1]] == [size] * (len(parts) - 1)
        assert list(itertools.chain.from_iterable(parts)) == asked
        apart = np.concatenate([sampler(part).images for part in parts])
        np.testing.assert_array_equal(apart, together)


def test_every_part_of_a_request_changes_its_noise():
    def draw(asked, stream):
        return torch.randn(8, generator=generator(asked, stream))

    places = [request(i, p, s) for i, p, s in itertools.product(range(3), repeat=3)]
    drawn = torch.stack([draw(r, stream) for r in places for stream in Stream])
    assert len(torch.unique(drawn, dim=0)) == len(places) * 4
    for stream in Stream:
        assert torch.equal(draw(request(4, 1, 7), stream), draw(request(4, 1, 7), stream))
    # The prompt's words are no part of the seed: paired rows share their noise.
    assert torch.equal(draw(request(1), Stream(0)), draw(request(1, subject="santa"), Stream(0)))


def test_streams_are_independent():
    shape, count = (4, 2, 2), 2000
    streams = [Stream.INITIAL_NOISE, Stream.SAMPLER_NOISE]
    first, second = (gaussian([generator(r, s) for r in many(count)], shape, CPU) for s in streams)
    assert first.shape == (count, *shape)
    assert first.dtype == torch.float32
    for noise in (first, second):
        values = noise.flatten(1)
        number = values.numel()
        assert abs(values.mean()) < 4 / number**0.5
        assert abs(values.var() - 1) < 4 * (2 / number) ** 0.5
        correlation = (values[:-1] * values[1:]).mean()  # between neighbouring images
        assert abs(correlation) < 4 / number**0.5
    assert abs((first * second).mean()) < 4 / first.numel() ** 0.5
    uniform = np.array([indicator_rng(r).random() for r in many(count)])
    assert abs(uniform.mean() - 0.5) < 4 * (1 / 12 / count) ** 0.5
    assert abs(np.corrcoef(uniform, first[:, 0, 0, 0])[0, 1]) < 4 / count**0.5


def test_indicator_draws_repeat_and_differ_between_images():
    assert indicator_rng(request(3)).random() == indicator_rng(request(3)).random()
    assert indicator_rng(request(3)).random() != indicator_rng(request(4)).random()


def test_initial_noise_is_shared_by_samplers_and_methods(tmp_path):
    asked = many(5)
    expected = gaussian([generator(r, Stream.INITIAL_NOISE) for r in asked], (3, 2, 2), CPU)
    words = {"female": (0,), "male": (1,)}
    first = []
    for chosen in (
        config(3),
        config(9, eta=1.0),
        config(3, guidance=4.0),
        config(3, spacing="linspace"),
    ):
        backbone = mixture(words)
        DDIMSampler(backbone, chosen)(asked)
        first.append(backbone.seen[0])
    task = get_dataset("cartoonfaces").task("gender", conditional=True)
    preparation = Preparation(0, config(3), (5,), tmp_path, lambda what, done, total: None)
    for name in ("vanilla", "prompt_append"):
        backbone = mixture(words)
        method, _ = make_method(name, [])
        method.prepare(task, backbone, TrainingData(), preparation)(asked)
        first.append(backbone.seen[0])
    for x, t in first:
        assert t == 999
        assert torch.equal(x[:5], expected)


def test_no_global_randomness_is_touched():
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    first = DDIMSampler(mixture(), config(eta=0.5))(many(3)).images
    assert torch.equal(torch.get_rng_state(), before[0])
    now = np.random.get_state()  # noqa: NPY002
    assert now[0] == before[1][0]
    np.testing.assert_array_equal(now[1], before[1][1])
    assert now[2:] == before[1][2:]
    assert random.getstate() == before[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        again = DDIMSampler(mixture(), config(eta=0.5))(many(3)).images
    np.testing.assert_array_equal(again, first)


# --- the loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_each_step_is_that_of_diffusers(eta, spacing):
    backbone, asked = mixture(), many(6)
    chosen = config(10, eta=eta, spacing=spacing)
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.alphas_cumprod = backbone.schedule.alphas_cumprod
    times = backbone.schedule.timesteps(10, spacing)
    noises = [generator(r, Stream.SAMPLER_NOISE) for r in asked]
    x = gaussian([generator(r, Stream.INITIAL_NOISE) for r in asked], (3, 2, 2), CPU)
    for t, following in itertools.pairwise([*times, -1]):
        # diffusers finds the following timestep by this division.
        scheduler.register_to_config(num_train_timesteps=(t - following) * 10)
        scheduler.num_inference_steps = 10
        fresh = gaussian(noises, (3, 2, 2), CPU)
        with torch.no_grad():
            value = backbone.predict(x, t, None).noise
        x = scheduler.step(value, t, x, eta=eta, variance_noise=fresh).prev_sample.float()
    torch.testing.assert_close(latents(backbone, asked, chosen), x, rtol=0, atol=1e-4)


def test_full_noise_keeps_shares_and_deviation():
    backbone, count, steps = mixture(), 1000, 40
    x = latents_in_parts(backbone, many(count), config(steps, eta=1.0)).double()
    found = (x[:, None] - backbone.means).flatten(2).square().sum(-1).argmin(1)
    share = (found == 0).double().mean()
    assert abs(share - 0.8) < 4 * (0.8 * 0.2 / count) ** 0.5
    away = x - backbone.means[found]
    # Close to a component each step is linear: variance follows a recursion.
    variance = 1.0
    times = backbone.schedule.timesteps(steps, "trailing")
    level = [(float(backbone.schedule.alpha(t)), float(backbone.schedule.sigma(t))) for t in times]
    for (alpha, sigma), (to, left) in itertools.pairwise([*level, (1.0, 0.0)]):
        shrink = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        fresh2 = (left / sigma) ** 2 * (1 - (alpha / to) ** 2)
        kept = max(left**2 - fresh2, 0) ** 0.5
        scale = to * shrink + kept * (1 - alpha * shrink) / sigma
        variance = scale**2 * variance + fresh2
    assert away.std() == pytest.approx(variance**0.5, rel=0.03)
    assert variance**0.5 < STD  # 40 steps are too few to keep all of it
    # Fresh noise was used: the same starts without it end elsewhere.
    plain = latents_in_parts(backbone, many(64), config(steps))
    assert (plain - x[:64]).abs().mean() > 0.02


def latents_in_parts(backbone, asked, chosen):
    width = backbone.network_batch
    parts = [asked[i : i + width] for i in range(0, len(asked), width)]
    return torch.cat([latents(backbone, part, chosen) for part in parts])


def test_one_step_is_the_clean_prediction_at_the_noisiest_level():
    backbone, asked = mixture(), many(4)
    start = gaussian([generator(r, Stream.INITIAL_NOISE) for r in asked], (3, 2, 2), CPU)
    with torch.no_grad():
        expected = backbone.predict(start, 999, None).clean
    for eta in (0.0, 1.0):
        assert torch.equal(latents(backbone, asked, config(1, eta=eta)), expected)
    samples = DDIMSampler(backbone, config(1))(asked)
    np.testing.assert_array_equal(samples.images, backbone.decode(expected))


def test_the_clean_prediction_is_clipped_where_the_schedule_says_so():
    free, bound = mixture(), mixture()
    bound.schedule.clip = 0.3
    asked, chosen = many(4), config(5)
    assert latents(free, asked, chosen).abs().max() > 0.5
    assert latents(bound, asked, chosen).abs().max() <= 0.3 + 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_no_numbers_are_an_error_and_not_black(bad):
    backbone, asked = mixture(), many(3)

    def denoise(x, t):
        seen = backbone.predict(x, t, None)
        value = seen.value.clone()
        value[1, 0, 0, 0] = bad
        return seen.with_value(value)

    with pytest.raises(InputError, match="aren't finite numbers"):
        ddim(backbone, denoise, asked, config(4))


def test_the_loop_can_be_observed():
    backbone, asked, seen = mixture(), many(2), []
    denoise = lambda x, t: backbone.predict(x, t, None)  # noqa: E731
    with torch.inference_mode():
        ddim(backbone, denoise, asked, config(4), observe=lambda x, t: seen.append((x.clone(), t)))
    starts = gaussian(
        [generator(r, Stream.INITIAL_NOISE) for r in asked], backbone.latent_shape, backbone.device
    )
    assert torch.equal(seen[0][0], starts)
    assert not torch.equal(seen[1][0], starts)
    assert [t for _, t in seen] == backbone.schedule.timesteps(4, "trailing")


@pytest.mark.parametrize(
    ("words", "guidance", "a_step"),
    [(None, 3.0, 1), ({"female": (0,)}, 1.0, 1), ({"female": (0,)}, 3.0, 2)],
)
def test_network_calls_are_those_that_were_made(words, guidance, a_step):
    backbone = mixture(words)
    asked = many(backbone.network_batch + 3)
    samples = DDIMSampler(backbone, config(7, guidance=guidance))(asked)
    assert samples.network_calls.tolist() == [7 * a_step] * len(asked)
    assert samples.network_calls.dtype == np.int64
    assert sum(len(x) for x, _ in backbone.seen) == samples.network_calls.sum()


def test_samples_have_one_entry_a_request():
    samples = DDIMSampler(mixture(), config(2))(many(70))
    assert samples.images.shape == (70, 2, 2, 3)
    assert samples.images.dtype == np.uint8
    assert samples.requested is None
    assert len(np.unique(samples.batch_id)) == 70


def test_a_sampler_can_ask_for_groups_and_write_them():
    class Alternating(DDIMSampler):
        def group(self, request):
            return request.image_index % 2

        def text(self, request, group):
            return ("female", "male")[group]

    backbone = mixture({"female": (0,), "male": (1,)})
    samples = Alternating(backbone, config(20))(many(10))
    assert samples.requested.tolist() == [0, 1] * 5
    pixels = torch.from_numpy(samples.images).permute(0, 3, 1, 2) / 127.5 - 1
    away = (pixels[:, None] - backbone.means).flatten(2).square().sum(-1)
    assert away.argmin(1).tolist() == [0, 1] * 5
