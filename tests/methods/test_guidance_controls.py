"""The controls of distribution guidance, rejection, and the classifier that they share."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fairbench.core.errors import InputError
from fairbench.core.method import Request, SamplingConfig
from fairbench.core.task import Prompt
from fairbench.diffusion.sampling import DDIMSampler, Stream, ddim, generator
from fairbench.diffusion.schedule import Schedule
from fairbench.methods.latent_editing import LatentEditing
from fairbench.methods.parts import classifier as _classifier
from fairbench.methods.parts.bottleneck import Heads
from fairbench.methods.parts.classifier import AttributeClassifier, augmented, train_classifier
from fairbench.methods.parts.indicator import Indicator
from fairbench.methods.parts.latent_editing import EditingSampler, directions, edit_shares
from fairbench.methods.parts.rejection import RejectionSampler, attempt_of
from fairbench.methods.parts.sample_guidance import SampleSampler, sample_gradient
from fairbench.methods.parts.universal_guidance import clean_gradient, guided_noise
from fairbench.methods.rejection import Rejection
from fairbench.methods.sample_guidance import SampleGuidance
from fairbench.methods.universal_guidance import UniversalGuidance

CPU = torch.device("cpu")
QUICK = {"classifier_steps": 2}
MEANS = {**QUICK, "trajectories": 12}
HEADS = {**MEANS, "weight_decay": 0.01}


def requests(n, prompt=0):
    return [Request(Prompt("person", template="a photo of {}"), prompt, i, 0) for i in range(n)]


class Brightness(AttributeClassifier):
    """Knows the groups of the tests' images exactly: women dark, men bright."""

    def __init__(self):
        super().__init__({"gender": ("female", "male")}, 4)
        self.requires_grad_(False)

    def log_probabilities(self, pixels):
        mean = pixels.mean((1, 2, 3))
        return {"gender": torch.stack([-9 * mean, 9 * mean], 1).log_softmax(1)}


@pytest.fixture
def classifier():
    return Brightness()


# The classifier


def test_classifier_learns_what_it_is_shown(make_task, make_preparation, data):
    method, preparation = Rejection(classifier_steps=60), make_preparation()
    classifier, facts = train_classifier(method, make_task(), data, preparation, CPU)
    assert facts["held_out_images"] == 5
    assert facts["held_out_accuracy"] == {"gender": 1.0}
    images = data.training.images
    found = classifier.probabilities(images)["gender"]
    assert found.shape == (48, 2)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found.argmax(1) == data.training.labels["gender"]).mean() > 0.9
    # An image's probabilities depend on itself alone.
    alone = np.concatenate([classifier.probabilities(image[None])["gender"] for image in images])
    assert np.array_equal(found, alone)
    again, same = train_classifier(method, make_task(), data, preparation, CPU)
    assert same == facts
    assert np.array_equal(again.probabilities(images)["gender"], found)


def test_crossed_probabilities_are_products_in_declared_order(data):
    attributes = {"gender": ("female", "male"), "race": ("asian", "black", "white")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = AttributeClassifier(attributes, 4).requires_grad_(False)
    images = data.training.images[:3]
    one = classifier.probabilities(images)
    both = classifier.group_probabilities(images, ["gender", "race"])
    expected = one["gender"][:, [0, 0, 0, 1, 1, 1]] * one["race"][:, [0, 1, 2, 0, 1, 2]]
    np.testing.assert_allclose(both, expected)
    logs = classifier.group_log_probabilities(_classifier._pixels(images), ["gender", "race"])
    np.testing.assert_allclose(logs.exp(), expected, rtol=1e-5)


def test_large_images_are_reduced_first():
    classifier = AttributeClassifier({"gender": ("female", "male")}, 512).requires_grad_(False)
    assert classifier.log_probabilities(torch.zeros(1, 3, 512, 512))["gender"].shape == (1, 2)
    assert sum(p.numel() for p in classifier.parameters()) < 300_000


def test_augmentation_mirrors_and_shifts_a_little():
    image = torch.arange(32.0).expand(3, 32, 32)[None]
    seen = set()
    for seed in range(40):
        row = augmented(image, np.random.default_rng(seed))[0, 0, 16]
        mirrored = bool(row[0] > row[-1])
        row = row.flip(0) if mirrored else row
        assert torch.equal(row[4:28], row[16] + torch.arange(-12.0, 12))
        seen.add((mirrored, float(row[16]) - 16))
    assert {m for m, _ in seen} == {False, True}
    assert {s for _, s in seen} <= {-2, -1, 0, 1, 2, -3}


def test_an_attribute_without_labels_is_an_error(make_task, make_preparation, data):
    without = dataclasses.replace(data, attributes={"race": data.attributes["race"]})
    with pytest.raises(InputError, match="needs labels of 'gender'"):
        train_classifier(Rejection(), make_task(), without, make_preparation(), CPU)


# Sample guidance


def test_sample_gradient_is_that_of_autograd():
    g = torch.Generator().manual_seed(0)
    h, weight = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((5, 7), (3, 7)))
    bias, wanted = torch.randn(3, generator=g, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    leaf = h.clone().requires_grad_(True)
    pi = ((leaf @ weight.T + bias) / 8).softmax(1)
    (-pi[torch.arange(5), wanted].sum()).backward()
    _, gradient = sample_gradient(h, weight, bias, wanted, 8)
    torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=1e-12)


def mixture_heads(times):
    """The mixture's bottleneck is the log posterior itself."""
    eye = torch.eye(2).expand(len(times), 2, 2)
    zeros = torch.zeros(len(times), 2)
    return Heads(tuple(times), eye, zeros, eye, torch.ones(len(times)), np.array([[0.1, 0.9]]))


def dark(images):
    return images.mean((1, 2, 3)) < 127


def test_sample_guidance_makes_the_drawn_group(make_mixture, make_preparation):
    backbone, preparation = (
        make_mixture(),
        make_preparation(sampling=SamplingConfig(8, 1.0)),
    )
    heads = mixture_heads(backbone.schedule.timesteps(8, "trailing"))
    indicator = Indicator("iid", (0.5, 0.5), 0, (64,))
    hits = {}
    for scale in (0.0, 15.0):
        method = SampleGuidance(max_rel=0.0, skip_first=0, temperature=1.0, scale=scale)
        sampler = SampleSampler(backbone, preparation, method, {"cond": heads}, indicator, {})
        samples = sampler(requests(64))
        hits[scale] = ((samples.requested == 0) == dark(samples.images)).mean()
    assert hits[0.0] < 0.8
    assert hits[15.0] > 0.95


# Universal guidance


def test_universal_gradient_is_that_by_the_state_with_the_noise_held(
    classifier, make_unconditional, make_text_unet
):
    backbone = make_unconditional("epsilon")
    x = torch.randn((3, 3, 4, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        predicted = backbone.predict(x, 600, None)
    wanted = torch.tensor([0, 1, 0])
    leaf = x.clone().requires_grad_(True)
    clean = (leaf - predicted.sigma * predicted.noise) / predicted.alpha
    logits = classifier.log_probabilities(clean)["gender"]
    (-(logits / 2).softmax(1)[torch.arange(3), wanted].sum()).backward()
    gradient = clean_gradient(backbone, classifier, ["gender"], predicted.clean, wanted, 2.0)
    guided = guided_noise(predicted, gradient, 5.0)
    expected = predicted.noise + predicted.sigma * 5.0 * leaf.grad
    torch.testing.assert_close(guided.noise, expected, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in classifier.parameters())


def test_universal_guidance_goes_through_a_decoder(classifier, make_text_unet):
    backbone = make_text_unet()

    def pixels(latents):
        return 0.5 * latents.flip(-1)

    backbone.pixels = pixels
    clean = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(2))
    wanted = torch.tensor([0, 1])
    leaf = clean.clone().requires_grad_(True)
    found = classifier.log_probabilities(pixels(leaf))["gender"].softmax(1)
    (-found[torch.arange(2), wanted].sum()).backward()
    with torch.inference_mode():  # as when sampling
        gradient = clean_gradient(backbone, classifier, ["gender"], clean, wanted, 1.0)
    torch.testing.assert_close(gradient, leaf.grad)


def test_universal_guidance_makes_the_drawn_group(
    make_mixture, make_task, make_preparation, data, classifier
):
    from fairbench.methods.parts.universal_guidance import UniversalSampler

    backbone, preparation = make_mixture(), make_preparation(sampling=SamplingConfig(8, 1.0))
    indicator = Indicator("iid", (0.5, 0.5), 0, (64,))
    hits = {}
    for scale in (0.0, 100.0):
        method = UniversalGuidance(scale=scale, temperature=1.0)
        sampler = UniversalSampler(
            backbone, preparation, method, make_task(), classifier, indicator, {}
        )
        samples = sampler(requests(64))
        hits[scale] = ((samples.requested == 0) == dark(samples.images)).mean()
    assert hits[0.0] < 0.8
    assert hits[100.0] > 0.9


def test_universal_guidance_refuses_a_schedule_that_starts_without_signal(
    make_unconditional, make_task, make_preparation, data
):
    backbone, preparation = make_unconditional("v_prediction"), make_preparation()
    table = backbone.schedule.alpha(torch.arange(len(backbone.schedule))) ** 2
    table[-1] = 0
    backbone.schedule = Schedule(table, "v_prediction")
    with pytest.raises(InputError, match="none at its first timestep 999"):
        UniversalGuidance(**QUICK).prepare(make_task(), backbone, data, preparation)
    assert not list(preparation.cache.rglob("*.*"))


def test_without_scale_nothing_changes(make_unconditional, make_task, make_preparation, data):
    backbone, preparation = make_unconditional(), make_preparation()
    plain = DDIMSampler(backbone, preparation.sampling)(requests(3)).images
    for method in (
        UniversalGuidance(**QUICK, scale=0.0),
        SampleGuidance(**HEADS, scale=0.0),
        LatentEditing(**MEANS, strength=0.0),
    ):
        sampler = method.prepare(make_task(), backbone, data, preparation)
        # The noise is derived anew from a shifted one: equal up to rounding of float32.
        off = np.abs(sampler(requests(3)).images.astype(int) - plain)
        assert off.max() <= (1 if method.card.name == "universal_guidance" else 0)


# Latent editing


@pytest.mark.parametrize(
    ("natural", "target", "alone"),
    [
        ((0.2, 0.8), (0.5, 0.5), 0.625),
        ((0.5, 0.5), (0.5, 0.5), 1.0),
        ((0.0, 1.0), (0.3, 0.7), 0.7),
        ((0.7, 0.2, 0.1), (1 / 3, 1 / 3, 1 / 3), (1 / 3) / 0.7),
    ],
)
def test_as_few_edits_as_reach_the_target(natural, target, alone):
    found = edit_shares(np.array(natural), np.array(target))
    assert found.sum() == pytest.approx(1)
    assert found[0] == pytest.approx(alone)
    assert (found >= 0).all()
    np.testing.assert_allclose(found[0] * np.array(natural) + found[1:], target, atol=1e-12)


def test_directions_lead_from_the_other_groups_to_each():
    means = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [2.0, 6.0]]])
    heads = Heads((9,), means, means[..., 0], means, torch.ones(1), np.ones((1, 3)) / 3)
    found = directions(heads)[0]
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    for group in range(3):
        others = [g for g in range(3) if g != group]
        away = means[0, group] - means[0, others].mean(0)
        torch.testing.assert_close(found[group], away / away.norm())


def test_editing_changes_the_drawn_images_alone(make_mixture, make_preparation):
    backbone, preparation = make_mixture(), make_preparation(sampling=SamplingConfig(8, 1.0))
    heads = mixture_heads(backbone.schedule.timesteps(8, "trailing"))
    indicator = Indicator("iid", (0.5, 0.5, 0.0), 0, (64,))
    method = LatentEditing(strength=30.0, skip_first=0)
    sampler = EditingSampler(backbone, preparation, method, {"cond": heads}, [indicator], {})
    samples = sampler(requests(64))
    plain = DDIMSampler(backbone, preparation.sampling)(requests(64)).images
    drawn = np.array([indicator(request) for request in requests(64)])
    assert 10 < (drawn == 1).sum() < 54
    assert np.array_equal(samples.images[drawn == 0], plain[drawn == 0])
    assert dark(samples.images)[drawn == 1].all()


def test_edited_share_follows_the_natural_one(make_mixture, make_task, make_preparation, data):
    method = LatentEditing(classifier_steps=30, trajectories=128)
    preparation = make_preparation(sampling=SamplingConfig(4, 1.0))
    sampler = method.prepare(make_task(prompts=2), make_mixture(), data, preparation)
    shares = sampler.facts["edited_shares"]
    assert len(shares) == 2
    for female, male in shares:
        assert male == 0
        assert female == pytest.approx(0.5 - 0.1 * 0.5 / 0.9, abs=0.06)


# Rejection


@pytest.fixture
def make_rejection(make_mixture, make_preparation, make_task, classifier):
    def make(max_attempts=12, network_batch=4, target=(0.5, 0.5)):
        backbone = make_mixture()
        backbone.network_batch = network_batch
        preparation = make_preparation(sampling=SamplingConfig(4, 1.0))
        indicator = Indicator("iid", target, 0, (64,))
        method = Rejection(max_attempts=max_attempts)
        return RejectionSampler(
            backbone, preparation, method, make_task(), classifier, indicator, {}
        )

    return make


def by_hand(sampler, request):
    """Attempts one at a time: the image kept, and how many were made."""
    backbone, config = sampler.backbone, sampler.config
    context = backbone.embed([request.prompt.text])
    wanted, best = sampler.group(request), (-1.0, None)
    for attempt in range(sampler.method.max_attempts):
        with torch.inference_mode():
            one = [attempt_of(request, attempt)]
            latents = ddim(backbone, lambda x, t: backbone.predict(x, t, context), one, config)
            image = backbone.decode(latents)
        found = sampler.classifier.probabilities(image)["gender"][0]
        if found.argmax() == wanted:
            return image[0], attempt + 1
        best = max(best, (float(found[wanted]), image[0]), key=lambda pair: pair[0])
    return best[1], sampler.method.max_attempts


@pytest.mark.parametrize("max_attempts", [3, 12])
def test_rejection_is_what_one_attempt_after_the_other_gives(max_attempts, make_rejection):
    sampler = make_rejection(max_attempts)
    samples = sampler(requests(12))
    expected = [by_hand(sampler, request) for request in requests(12)]
    assert np.array_equal(samples.images, np.stack([image for image, _ in expected]))
    made = np.array([attempts for _, attempts in expected])
    assert samples.network_calls.tolist() == (4 * made).tolist()
    assert samples.diagnostics["attempts"].tolist() == made.tolist()
    observed = sampler.observed(samples.diagnostics)
    missed = (samples.requested == 0) != dark(samples.images)
    assert observed["attempts"] == made.sum()
    assert observed["given_up"] == missed.sum()
    assert made.max() > 1


def test_rejection_hits_and_its_cost_is_the_inverse_of_the_natural_share(make_rejection):
    sampler = make_rejection(max_attempts=200, network_batch=64)
    samples = sampler(requests(64))
    assert np.array_equal(samples.requested == 0, dark(samples.images))
    observed = sampler.observed(samples.diagnostics)
    assert (observed["images"], observed["given_up"]) == (64, 0)
    plain = DDIMSampler(sampler.backbone, sampler.config)
    female = dark(plain(requests(512, prompt=7)).images).mean()
    for group, share in ((0, female), (1, 1 - female)):
        attempts = samples.network_calls[samples.requested == group] / 4
        spread = np.sqrt((1 - share) / share**2 / len(attempts))
        assert attempts.mean() == pytest.approx(1 / share, abs=4 * spread + 0.2 / share)


def test_the_first_attempt_is_vanilla_s_and_others_are_independent(make_rejection):
    request = requests(1, prompt=3)[0]
    assert attempt_of(request, 0) == request
    firsts = [
        torch.randn(4, generator=generator(attempt_of(r, attempt), stream)).tolist()
        for r in requests(3)
        for attempt in range(4)
        for stream in (Stream.INITIAL_NOISE, Stream.SAMPLER_NOISE)
    ]
    assert len({tuple(first) for first in firsts}) == len(firsts)
    sampler = make_rejection(max_attempts=1)
    plain = DDIMSampler(sampler.backbone, sampler.config)
    assert np.array_equal(sampler(requests(8)).images, plain(requests(8)).images)


def test_rejection_doesn_t_depend_on_the_network_batch(make_rejection):
    one, other = make_rejection(network_batch=16), make_rejection(network_batch=5)
    first, second = one(requests(9)), other(requests(9))
    assert first.network_calls.tolist() == second.network_calls.tolist()


# A differentiable decoder


@pytest.mark.parametrize("kind", ["pixels", "text"])
def test_pixels_are_what_decode_rounds(kind, make_unconditional, make_text_unet):
    backbone = make_unconditional() if kind == "pixels" else make_text_unet()
    latents = 0.5 * torch.randn((5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    pixels = backbone.pixels(latents)
    expected = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    assert np.array_equal(backbone.decode(latents), expected.numpy())
