"""Classifier guidance in every parameterisation, and the adapters that learn it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fairbench.backbones.mixture import GaussianMixture
from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import Preparation, Request, SamplingConfig
from fairbench.core.task import Prompt
from fairbench.diffusion.schedule import Prediction
from fairbench.diffusion.training import Draws
from fairbench.methods.fairgen_distilled import FairGenDistilled
from fairbench.methods.parts import distillation as _distilled
from fairbench.methods.parts.adapters import AdapterBank, attention_linears, time_linears
from fairbench.methods.parts.distillation import (
    NoisedClassifier,
    adapted_linears,
    distillation_loss,
    guided,
    log_likelihood_gradient,
    log_noise,
)
from fairbench.methods.parts.finetuning import NoisedImages

QUICK = {"iterations": 2, "batch": 6, "learning_rate": 0.05, "classifier_iterations": 2}
CPU = torch.device("cpu")


def tiny_classifier(levels=2, channels=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return NoisedClassifier(channels, levels).requires_grad_(False)


# What a row says of itself


def test_the_card_says_that_it_is_an_adaptation_and_what_it_learns_from():
    card = FairGenDistilled().configured_card()
    assert "adaptation" in card.title
    assert card.supervision == {"reference-set", "labels", "classifier"}
    assert (card.role, card.ranked, card.reference_images) == ("method", True, 800)
    guidance = FairGenDistilled(**FairGenDistilled.presets["classifier_guidance"])
    control = guidance.configured_card()
    assert (control.role, control.ranked, control.family) == ("ablation", False, "sampling")
    assert control.supervision == card.supervision
    assert "classifier" in control.extra_network_calls


def test_backbones_with_prompts_have_fairgen(make_backbone, make_task, data, make_preparation):
    with pytest.raises(InputError, match="use fairgen"):
        FairGenDistilled().prepare(make_task(), make_backbone(), data, make_preparation())


def test_it_needs_labels(make_unconditional, make_task, data, make_preparation):
    blind = dataclasses.replace(data, reference=dataclasses.replace(data.reference, labels=None))
    with pytest.raises(ContractError, match="labelled"):
        FairGenDistilled().prepare(make_task(), make_unconditional(), blind, make_preparation())


# Guidance


def exact_mixture(weights=(0.3, 0.7)):
    draws = torch.Generator().manual_seed(1)
    return GaussianMixture(torch.randn((2, 3, 4, 4), generator=draws) / 3, weights, 0.3)


class ExactClassifier(nn.Module):
    """log q_k(x_t, t) up to what doesn't depend on k: the mixture's own posterior, even prior."""

    def __init__(self, mixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, x, level):
        squared = torch.sigmoid(-2 * level.double())  # alpha²
        alpha, variance = squared.sqrt(), squared * self.mixture.std**2 + 1 - squared
        away = x.double().flatten(1)[:, None] - alpha[:, None, None] * self.mixture.means.flatten(
            1
        )
        return (-away.square().sum(-1) / (2 * variance[:, None])).float()


@pytest.mark.parametrize("t", [50, 400, 800])
def test_guidance_by_the_exact_posterior_is_the_score_of_the_component(t):
    """p(x) q_k(x) is the component itself, if the prior of q is that of p: a closed form."""
    mixture = exact_mixture((0.5, 0.5))
    draws = torch.Generator().manual_seed(t)
    x = torch.randn((4, 3, 4, 4), generator=draws)
    category = torch.tensor([0, 1, 1, 0])
    times = torch.full((4,), t)
    gradient = log_likelihood_gradient(
        ExactClassifier(mixture), mixture.schedule, x, times, category
    )
    with torch.enable_grad():
        seen = guided(mixture.predict(x, t, None), gradient, 1.0).noise
    alpha, sigma = float(mixture.schedule.alpha(t)), float(mixture.schedule.sigma(t))
    variance = (alpha * mixture.std) ** 2 + sigma**2
    wanted = sigma * (x - alpha * mixture.means[category].float()) / variance
    assert torch.allclose(seen, wanted, atol=1e-3)


@pytest.mark.parametrize("t", [20, 500, 980])
def test_guidance_is_the_same_in_every_parameterisation(t):
    schedule = exact_mixture().schedule
    alpha, sigma = (part(t).reshape(1, 1, 1, 1) for part in (schedule.alpha, schedule.sigma))
    draws = torch.Generator().manual_seed(t)
    x, noise, gradient = torch.randn(3, 2, 3, 4, 4, generator=draws, dtype=torch.float64)
    plain = Prediction(x, alpha, sigma, "epsilon", noise)
    wanted = noise - 1.7 * sigma * gradient
    values = {"epsilon": noise, "sample": plain.clean, "v_prediction": plain.velocity}
    for kind, value in values.items():
        seen = guided(Prediction(x, alpha, sigma, kind, value), gradient, 1.7)
        assert seen.kind == kind
        assert torch.allclose(seen.noise, wanted, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences_within_inference_mode_too():
    schedule, network = exact_mixture().schedule, tiny_classifier(3).double()
    x = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0)).double()
    t, category = torch.tensor([700, 100]), torch.tensor([2, 0])

    def value(moved):
        logits = network(moved, log_noise(schedule, t))
        return logits.log_softmax(1).gather(1, category[:, None]).sum()

    with torch.inference_mode():
        gradient = log_likelihood_gradient(network, schedule, x * 1, t, category)
    for place in ((0, 0, 0, 0), (0, 2, 3, 1), (1, 1, 2, 2)):
        step = torch.zeros_like(x)
        step[place] = 1e-5
        slope = (value(x + step) - value(x - step)) / 2e-5
        assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-4, abs=1e-9)


def test_noise_levels_are_finite_without_terminal_signal():
    from fairbench.diffusion.schedule import Schedule

    schedule = Schedule(torch.tensor([0.9, 0.5, 0.0]), "v_prediction")
    level = log_noise(schedule, torch.arange(3))
    assert level[:2].tolist() == pytest.approx([-np.log(3), 0], abs=1e-6)
    assert torch.isfinite(level).all()
    prediction = Prediction(
        torch.zeros(1, 1, 1, 1),
        torch.zeros(1, 1, 1, 1),
        torch.ones(1, 1, 1, 1),
        "v_prediction",
        torch.zeros(1, 1, 1, 1),
    )
    assert torch.isfinite(guided(prediction, torch.ones(1, 1, 1, 1), 1.0).value).all()


def test_guidance_stays_bounded_where_hardly_any_signal_is_left():
    """The clean image moves by scale sigma² / alpha times the gradient, which has an alpha too."""
    schedule, network = exact_mixture().schedule, tiny_classifier()
    x = torch.randn((8, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    moved = {}
    for t in (500, 999):
        times, category = torch.full((8,), t), torch.zeros(8, dtype=torch.long)
        gradient = log_likelihood_gradient(network, schedule, x, times, category)
        alpha = float(schedule.alpha(t))
        moved[t] = float(gradient.norm()) / alpha
        level = log_noise(schedule, times)
        assert torch.allclose(network(x, level), alpha * network.network(x, level), atol=1e-6)
    assert moved[999] < 3 * moved[500]


def test_guided_images_are_in_the_wanted_groups():
    """On a mixture, whose exact classifier is known: shares 0.3 and 0.7 become the target's."""
    from fairbench.methods.parts.distillation import GuidedSampler
    from fairbench.methods.parts.indicator import Indicator

    mixture = exact_mixture()
    indicator = Indicator("iid", (0.8, 0.2), 0, (256,))
    sampler = GuidedSampler(
        mixture,
        SamplingConfig(25, 1.0),
        indicator,
        [ExactClassifier(mixture)],
        torch.tensor([[0], [1]]),
        2.0,
    )
    samples = sampler([Request(Prompt(""), 0, i, 0) for i in range(256)])
    pixels = torch.from_numpy(samples.images).permute(0, 3, 1, 2) / 127.5 - 1
    away = (pixels[:, None] - mixture.means).flatten(2).square().sum(2)
    assert (away.argmin(1).numpy() == samples.requested).mean() >= 0.97
    assert (samples.requested == 0).mean() == pytest.approx(0.8, abs=0.08)
    assert samples.network_calls.tolist() == [25] * 256


# Adapters


def test_adapted_layers_are_attentions_and_what_reads_the_timestep(make_unconditional):
    unet = make_unconditional().unet
    attention, time = attention_linears(unet), time_linears(unet)
    assert {name.rpartition("attentions.0.")[2] for name in attention} == {
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
    }
    blocks = [name for name, m in unet.named_modules() if type(m).__name__ == "ResnetBlock2D"]
    assert set(time) == {f"{name}.time_emb_proj" for name in blocks}
    assert set(adapted_linears(unet, "both")) == {*attention, *time}
    assert set(adapted_linears(unet, "attention")) == {*attention}
    assert set(adapted_linears(unet, "time")) == {*time}
    assert all(unet.get_submodule(name) is layer for name, layer in (attention | time).items())
    with pytest.raises(ContractError, match="found none"):
        adapted_linears(nn.Linear(2, 2), "both")


def test_fresh_adapters_change_nothing_and_each_row_has_its_own(make_unconditional, randomise):
    backbone = make_unconditional()
    layers = adapted_linears(backbone.unet, "both")
    bank = AdapterBank(backbone.unet, ("a", "b"), layers, rank=2)
    x = torch.randn((4, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([900, 500, 300, 20])
    with torch.no_grad():
        base = backbone.predict(x, t, None).value
        with bank.gated(torch.ones(4, 2)):
            assert torch.equal(backbone.predict(x, t, None).value, base)
        randomise(bank)
        category = torch.tensor([1, 0, 0, 1])
        with bank.gated(torch.eye(2)[category]):
            mixed = backbone.predict(x, t, None).value
        for k in range(2):
            with bank.gated(torch.eye(2)[[k] * 4]):
                alone = backbone.predict(x, t, None).value
            assert torch.equal(mixed[category == k], alone[category == k])
            assert (mixed[category != k] - alone[category != k]).abs().max() > 1e-2
    pairs = bank.merge(torch.tensor([0.0, 1.0]))
    with torch.no_grad(), bank.merged(pairs):
        assert torch.allclose(backbone.predict(x, t, None).value, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_loss_starts_at_one_and_moves_the_upper_factor(kind, scale, make_unconditional, data):
    backbone = make_unconditional(kind)
    images = NoisedImages(backbone, [data.reference], data.subjects)
    bank = AdapterBank(backbone.unet, ("a", "b"), adapted_linears(backbone.unet, "both"))
    frozen = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    loss = distillation_loss(
        backbone, bank, tiny_classifier(), images, Draws(0, 0, 0, 8, CPU), scale
    )
    assert float(loss.detach()) == pytest.approx(1, rel=1e-4)
    loss.backward()
    assert all(not p.grad.any() for p in bank.down.values())
    assert all(p.grad.abs().amax((1, 2)).min() > 0 for p in bank.up.values())
    assert all(torch.equal(v, frozen[name]) for name, v in backbone.unet.state_dict().items())
    assert not any(p.requires_grad for p in backbone.unet.parameters())


def test_adapters_learn_what_guidance_moves(make_unconditional, data):
    """One batch again and again: the loss falls, so its gradient points the right way."""
    backbone = make_unconditional()
    images = NoisedImages(backbone, [data.reference], data.subjects)
    layers = adapted_linears(backbone.unet, "both")
    bank = AdapterBank(backbone.unet, ("a", "b"), layers, rank=4)
    optimizer = torch.optim.Adam(bank.parameters(), lr=0.01)
    classifier, losses = tiny_classifier(), []
    for _ in range(20):
        loss = distillation_loss(backbone, bank, classifier, images, Draws(0, 0, 0, 4, CPU), 20.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(1, rel=1e-4)
    assert losses[-1] < 0.9, losses


def test_the_facts_add_up(make_unconditional, make_task, data, make_preparation):
    method = FairGenDistilled(**{**QUICK, "classifier_iterations": 20, "batch": 16})
    sampler = method.prepare(make_task(), make_unconditional(), data, make_preparation())
    seen = sampler.facts["classifier"]["gender"]
    assert seen["held_out_accuracy"]["t of quarter 1"] >= 0.75  # men are brighter
    assert sampler.facts["training_seconds"] > seen["seconds"]
    assert set(sampler.facts["normalised_loss"]) == {"gender"}
    assert sampler.extra_parameters == 2 * sampler.facts["parameters_a_category"]


def test_several_attributes_have_a_classifier_and_adapters_each(
    make_unconditional, make_task, data, make_preparation, make_requests
):
    task = make_task("gender", "race")
    seen = []
    preparation = make_preparation(lambda what, done, total: seen.append(what))
    sampler = FairGenDistilled(**QUICK, strength=1.5).prepare(
        task, make_unconditional(), data, preparation
    )
    assert list(dict.fromkeys(seen)) == [
        f"training {name} {part}"
        for name in ("gender", "race")
        for part in ("classifier", "adapters")
    ]
    categories = list(sampler.bank.categories)
    for group, (gender, race) in enumerate(task.cells):
        on = {categories[int(c)] for c in sampler.gates[group].nonzero()}
        assert on == {f"gender={gender}", f"race={race}"}
    assert set(sampler.gates.unique().tolist()) == {0.0, 1.5}
    again = []
    preparation = make_preparation(lambda what, done, total: again.append(what))
    guided_by = FairGenDistilled(classifier_iterations=2, distil=False).prepare(
        task, make_unconditional(), data, preparation
    )
    assert again == []  # the same classifiers
    assert guided_by.cells.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert "normalised_loss" not in guided_by.facts
    assert guided_by(make_requests(task, 2)).network_calls.tolist() == [2, 2]


def test_held_out_images_are_not_trained_on(make_unconditional, data, tmp_path):
    backbone = make_unconditional()
    images = NoisedImages(backbone, [data.reference], data.subjects)
    preparation = Preparation(0, SamplingConfig(2, 1.0), (4,), tmp_path, lambda *_: None)
    learner = _distilled.ClassifierTraining(
        FairGenDistilled(), images, data.reference.labels["gender"], 2, preparation
    )
    assert set(learner.seen) | set(learner.held_out) == set(range(24))
    assert len(learner.seen) + len(learner.held_out) == 24
    assert len(learner.held_out) == 4
    used = []
    logits = learner.logits
    learner.logits = lambda index, t, noise: (used.append(index), logits(index, t, noise))[1]
    for step in range(5):
        learner.loss(Draws(0, step, 0, 8, CPU))
    assert not set(np.concatenate(used)) & set(learner.held_out)
