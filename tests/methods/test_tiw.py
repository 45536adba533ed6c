"""The checkable properties of the card of time-dependent reweighting, numbered T1 … as there.

The closed forms are those of two Gaussian modes at -2 and 2 with variance 1/4, nine to one in the
biased set and even in the reference set, with EDM's noise (alpha = 1).
"""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import ImageSet, Request, SamplingConfig, TrainingData
from fairbench.core.task import Prompt
from fairbench.diffusion.schedule import Prediction, Schedule
from fairbench.diffusion.training import Draws, seeded_modules
from fairbench.methods.dsm_observed import AllObserved
from fairbench.methods.dsm_reference import ReferenceOnly
from fairbench.methods.iw import ImportanceReweighting
from fairbench.methods.parts import denoising as _denoising
from fairbench.methods.parts import ratio as _ratio
from fairbench.methods.parts import tiw as _tiw
from fairbench.methods.parts.finetuning import NoisedImages, finetune
from fairbench.methods.parts.ratio import (
    GroupRatio,
    NetworkRatio,
    Ratio,
    RatioSets,
    balanced_cross_entropy,
    effective_share,
    fit_ratio,
    labelled_cells,
    log_ratios,
    noise_range,
    noised,
    saturated_share,
)
from fairbench.methods.parts.tiw import (
    Reweighting,
    TiwLoss,
    clean_shift,
    mixed_log_ratio,
    seen_captions,
    target_shift,
    value_range,
)
from fairbench.methods.tiw import TimeDependentReweighting

QUICK = {"steps": 2, "batch": 4, "learning_rate": 0.05, "ema_decay": 0.0}
QUICK_RATIO = {"ratio_steps": 2, "ratio_batch": 4, "ratio_width": 8}
CPU = torch.device("cpu")


def toy_log_ratio(x, sigma):
    """log w of the two-mode toy, float64, written out."""
    a = 4 * x / (0.25 + sigma**2)
    return torch.log(0.5 + 0.5 * torch.exp(a)) - torch.log(0.9 + 0.1 * torch.exp(a))


def toy_denoiser(x, sigma, minority):
    """Posterior mean of the clean value, from the two components' own posterior means."""
    v = 0.25 + sigma**2
    means = torch.tensor([-2.0, 2.0], dtype=x.dtype)
    shares = torch.tensor([1 - minority, minority], dtype=x.dtype)
    away = x[:, None] - means
    posterior = torch.softmax(shares.log() - away.square() / (2 * v), 1)
    return (posterior * (means + 0.25 / v * away)).sum(1)


def toy_correction(x, sigma, share=0.0):
    """(log ratio, shift of the clean value) by the code under test."""
    x = x.detach().requires_grad_()
    log_weight = mixed_log_ratio(toy_log_ratio(x, sigma), share)
    (gradient,) = torch.autograd.grad(log_weight.sum(), x)
    one = x.new_ones(())
    return log_weight.detach(), clean_shift(gradient, one, sigma * one)


class Formula(Ratio):
    """A ratio that is a function, to be queried like a trained one."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, level, caption):
        return self.function(x, level, caption)

    draw = loss = None


def make_draws(rows=4, step=0):
    return Draws(0, step, 0, rows, CPU)


def reweighting(function, share=0.5, levels=(-5.0, 5.0), **changes):
    return Reweighting(Formula(function), levels, share=share, **changes)


def columns(value):
    return value[:, None, None, None]


# T1: score identity


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 3.0])
def test_biased_denoiser_and_correction_make_the_reference_denoiser(sigma):
    x = torch.linspace(-5, 5, 401, dtype=torch.float64)
    _, shift = toy_correction(x, sigma)
    expected = toy_denoiser(x, sigma, 0.5)
    assert (toy_denoiser(x, sigma, 0.1) + shift - expected).abs().max() < 1e-12
    union = toy_denoiser(x, sigma, 0.3)  # half of each set: minority 0.3
    assert (union + toy_correction(x, sigma, 0.5)[1] - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("sigma", "slope", "biased"), [(0.5, 3.2, -0.8), (1, 1.28, -1.28), (2, 0.376471, -1.505882)]
)
def test_spot_values_at_the_middle(sigma, slope, biased):
    x = torch.zeros(1, dtype=torch.float64)
    log_weight, shift = toy_correction(x, sigma)
    assert float(log_weight) == pytest.approx(0, abs=1e-12)
    assert float(shift) / sigma**2 == pytest.approx(slope, abs=1e-6)
    assert float(toy_denoiser(x, sigma, 0.1)) == pytest.approx(biased, abs=1e-6)
    assert float(toy_denoiser(x, sigma, 0.1) + shift) == pytest.approx(0, abs=1e-12)
    assert float(toy_denoiser(x, sigma, 0.5)) == pytest.approx(0, abs=1e-12)


# T2: the theorem, by quadrature


@pytest.mark.parametrize(
    ("sigma", "constant", "spread"), [(1.0, 0.543708, 1e-6), (0.3, 8.21839, 1e-4)]
)
def test_the_loss_is_score_matching_on_the_reference_plus_a_constant(sigma, constant, spread):
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    u, mass = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    scores = (lambda x: -x, lambda x: 0.3 * x - 1, torch.sin, torch.zeros_like)
    losses, gaps = [], []
    for score in scores:
        loss = reference = 0.0
        for share, mean in ((0.9, -2.0), (0.1, 2.0)):
            clean = (mean + 0.5 * u)[:, None].expand(80, 80).reshape(-1)
            x = clean + sigma * u.repeat(80)
            log_weight, shift = toy_correction(x, sigma)
            one = x.new_ones(())
            target = clean + target_shift("sample", shift, one, sigma * one)
            error = score(x) - (target - x) / sigma**2
            joint = share * (mass[:, None] * mass).reshape(-1)
            loss += float((joint * log_weight.exp() * error.square()).sum())
            v = 0.25 + sigma**2
            seen = math.copysign(2, mean) + v**0.5 * u
            true = (toy_denoiser(seen, sigma, 0.5) - seen) / sigma**2
            reference += float((0.5 * mass * (score(seen) - true).square()).sum())
        losses.append(loss)
        gaps.append(loss - reference)
    assert np.ptp(gaps) < spread
    assert np.mean(gaps) == pytest.approx(constant, abs=spread)
    if sigma == 1:
        assert losses == pytest.approx([4.3116, 3.1341, 1.1429, 1.0616], abs=1e-4)


# T3: what each objective learns


def toy_features(x, sigma):
    z = x / math.sqrt(4.25 + sigma**2)
    centres = torch.linspace(-2.2, 2.2, 30, dtype=x.dtype)
    bumps = torch.exp(-0.5 * ((z[:, None] - centres) / 0.16) ** 2)
    return torch.cat([bumps, torch.ones_like(z)[:, None], z[:, None]], 1)


def toy_levels(steps=32):
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return (20 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 20 ** (1 / 7))) ** 7


def toy_draws(share, n, draws):
    """Clean values, a given share of them from the reference set."""
    minority = share * 0.5 + (1 - share) * 0.1
    high = torch.rand(n, generator=draws, dtype=torch.float64) < minority
    noise = torch.randn(n, generator=draws, dtype=torch.float64)
    return torch.where(high, 2.0, -2.0) + 0.5 * noise


def released_shift(x, sigma):
    """The published loss's correction: of the probability, with the wrong sign."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(toy_log_ratio(x, sigma).sigmoid().sum(), x)
    return -(sigma**2) * gradient


def toy_fits(share, objectives, sigma, draws, n=60_000):
    """Objective, a weight and a correction -> coefficients of the denoiser that it learns."""
    clean = toy_draws(share, n, draws)
    x = clean + sigma * torch.randn(n, generator=draws, dtype=torch.float64)
    features = toy_features(x, sigma)
    log_weight, shift = toy_correction(x, sigma, share)
    log_clean = mixed_log_ratio(toy_log_ratio(clean, 0.0), share)
    weights = {"none": torch.zeros_like(x), "noisy": log_weight, "clean": log_clean}
    shifts = {"none": 0, "right": shift, "released": released_shift(x, sigma)}
    fits = {}
    for name, (weight, correction) in objectives.items():
        weighted = features * weights[weight].exp()[:, None]
        ridge = 1e-6 * n * torch.eye(32, dtype=x.dtype)
        target = clean + shifts[correction] - x
        fits[name] = torch.linalg.solve(features.T @ weighted + ridge, weighted.T @ target)
    return fits


def toy_shares(share, objectives):
    """Objective -> share above 0 of what the fitted denoisers generate."""
    draws = torch.Generator().manual_seed(0)
    levels = toy_levels()
    fits = [toy_fits(share, objectives, sigma, draws) for sigma in levels.tolist()]
    start = 20 * torch.randn(20_000, generator=draws, dtype=torch.float64)
    return {
        name: toy_sampled([fit[name] for fit in fits], levels, start.clone())
        for name in objectives
    }


def toy_sampled(fits, levels, x):
    def slope(x, i):
        return -(toy_features(x, float(levels[i])) @ fits[i]) / levels[i]

    for i in range(len(levels) - 1):
        step = levels[i + 1] - levels[i]
        first = slope(x, i)
        x = x + step * (first + slope(x + step * first, i + 1)) / 2
    return float((x > 0).double().mean())


BIASED = {
    "dsm": ("none", "none"),
    "iw": ("clean", "none"),
    "tiw": ("noisy", "right"),
    "correction only": ("none", "right"),
    "weight only": ("noisy", "none"),
}
UNION = {**BIASED, "released": ("noisy", "released")}


def test_the_correction_debiases_and_the_weight_alone_does_not():
    expected = {"dsm": 0.12, "iw": 0.5, "tiw": 0.49, "correction only": 0.5, "weight only": 0.12}
    assert toy_shares(0.0, BIASED) == pytest.approx(expected, abs=0.03)


def test_the_reference_set_alone_has_its_own_share():
    assert toy_shares(1.0, {"dsm": ("none", "none")})["dsm"] == pytest.approx(0.5, abs=0.03)


def test_scores_of_correct_objectives_are_the_reference_s():
    """Relative error of the learned scores at noise 1, where the reference's is known."""
    draws = torch.Generator().manual_seed(0)
    x = toy_draws(1.0, 20_000, draws)
    x = x + torch.randn(len(x), generator=draws, dtype=torch.float64)
    true = toy_denoiser(x, 1.0, 0.5) - x
    errors = {}
    for share, objectives in ((0.0, BIASED), (0.5, UNION), (1.0, {"dsm": BIASED["dsm"]})):
        for name, fit in toy_fits(share, objectives, 1.0, draws).items():
            error = toy_features(x, 1.0) @ fit - true
            errors[name, share] = float(error.square().mean() / true.square().mean())
    assert errors["dsm", 0.0] == pytest.approx(0.38, abs=0.03)
    assert errors["dsm", 0.5] == pytest.approx(0.059, abs=0.01)
    right = {key: error for key, error in errors.items() if key[0] in ("iw", "tiw")}
    right["correction only"] = errors["correction only", 0.0]
    right["reference alone"] = errors["dsm", 1.0]
    assert max(right.values()) < 0.005, errors
    wrong = [errors["weight only", 0.0], errors["weight only", 0.5], errors["released", 0.5]]
    assert min(wrong) > 0.03, errors


def test_the_same_on_the_union_of_both_sets():
    """Published code subtracts the probability's gradient there, and is fairer without it."""
    union = toy_shares(
        0.5, {name: UNION[name] for name in ("dsm", "iw", "tiw", "weight only", "released")}
    )
    expected = {"dsm": 0.32, "iw": 0.5, "tiw": 0.5, "weight only": 0.31, "released": 0.22}
    assert union == pytest.approx(expected, abs=0.03)


# T4: null reduction


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.93, 1.0])
def test_an_even_ratio_is_no_weight_and_no_correction(share):
    for dtype in (torch.float32, torch.float64):
        logit = torch.zeros(3, dtype=dtype)
        assert torch.equal(mixed_log_ratio(logit, share), logit)
    x_t = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    even = reweighting(lambda x, level, caption: 0 * x.sum((1, 2, 3)), share)
    half = torch.full((4,), 0.5**0.5)
    weight, shift = even(x_t, half, half, torch.zeros(4), make_draws())
    assert torch.equal(weight, torch.ones(4))
    assert not shift.any()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["unet", "pixels"])
def test_with_an_even_ratio_training_is_ordinary_training_bit_for_bit(
    kind, share, make_backbone, make_unconditional, data, make_preparation, monkeypatch
):
    backbone = make_backbone() if kind == "unet" else make_unconditional()
    ratio = Formula(lambda x, level, caption: 0 * x.sum((1, 2, 3)))
    fitted = _ratio.FittedRatio(ratio, {}, 0.0, "even")
    monkeypatch.setattr(_tiw, "fit_mixture", lambda *args, **options: fitted)
    preparation = make_preparation()
    method = TimeDependentReweighting(**QUICK, reference_share=share)
    tiw = method.prepare(None, backbone, data, preparation)
    plain = _denoising.prepare(
        AllObserved(**QUICK),
        backbone,
        [data.training, data.reference],
        data,
        preparation,
        (1 - share, share),
    )
    changed = 0
    for ours, theirs, before in zip(
        tiw.backbone.unet.parameters(),
        plain.backbone.unet.parameters(),
        backbone.unet.parameters(),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
        changed += not torch.equal(ours, before)
    assert changed


@pytest.mark.slow
def test_two_halves_of_one_set_have_no_ratio(make_unconditional, make_preparation):
    method = TimeDependentReweighting(
        ratio="network", ratio_steps=200, ratio_batch=64, ratio_width=8
    )
    halves = [toy_images(600, seed, 0.5) for seed in (0, 1)]
    backbone = make_unconditional()
    fitted = fit(method, backbone, halves, make_preparation())
    assert fitted.facts["held_out_cross_entropy"] >= 0.69
    low, high = fitted.facts["log_ratio_range"]
    assert max(-low, high) < 0.5
    assert fitted.facts["mean_ratio_of_biased"] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_with_two_halves_of_one_set_shares_are_those_of_ordinary_training(
    make_unconditional, make_task, make_preparation
):
    """Trained from random weights, with a learned ratio; about two minutes on one core."""
    halves = [toy_images(2000, seed, 0.3, labelled=False) for seed in (0, 1)]
    both = TrainingData((), (Prompt(""),), *halves, {})
    preparation = make_preparation(sampling=SamplingConfig(25, 1.0))
    budget = {"start": "scratch", "steps": 500, "batch": 128, "learning_rate": 4e-3}
    ratio = {"ratio": "network", "ratio_steps": 200, "ratio_batch": 64, "ratio_width": 8}
    found = []
    for method in (
        TimeDependentReweighting(**budget, **ratio),
        AllObserved(**budget, mixture="half"),
    ):
        backbone = make_unconditional(network_batch=64)
        sampler = method.prepare(make_task(), backbone, both, preparation)
        images = sampler([Request(Prompt(""), 0, i, 0) for i in range(512)]).images
        brightness = images.mean((1, 2, 3))
        found.append((brightness < 127.5).mean())
        # A model that has learned nothing makes grey images, of which about half are dark.
        assert (np.abs(brightness - 127.5) > 25).mean() > 0.9
    assert found == pytest.approx([0.3, 0.3], abs=0.08)
    assert found[0] == pytest.approx(found[1], abs=0.04)  # the same noise for both


@pytest.mark.slow
def test_the_shipped_training_moves_shares_to_the_reference_s(
    make_unconditional, make_task, make_preparation, monkeypatch
):
    """One image in ten is dark, half of the references; the ratio is the closed form."""
    dark, bright, spread = (70 / 127.5 - 1, 180 / 127.5 - 1, 25 / 127.5)

    def log_ratio(x, level, caption):
        alpha, sigma = (columns(part) for part in _ratio.noise_shares(level))
        v = (alpha * spread).square() + sigma.square()
        away = x - alpha * (dark + bright) / 2
        lean = (alpha * (bright - dark) * away / v).sum((1, 2, 3))
        return (
            torch.logaddexp(lean, 0 * lean)
            + math.log(0.5)
            - torch.logaddexp(lean + math.log(0.9), torch.full_like(lean, math.log(0.1)))
        )

    fitted = _ratio.FittedRatio(Formula(log_ratio), {}, 0.0, "closed form")
    monkeypatch.setattr(_tiw, "fit_mixture", lambda *args, **options: fitted)
    parts = [toy_images(4000, 0, 0.1, labelled=False), toy_images(1000, 1, 0.5, labelled=False)]
    sets = TrainingData((), (Prompt(""),), *parts, {})
    budget = {"start": "scratch", "steps": 600, "batch": 128, "learning_rate": 4e-3}
    preparation = make_preparation(sampling=SamplingConfig(25, 1.0))
    found = {}
    for name, method in {
        "tiw": TimeDependentReweighting(**budget),
        "weight": TimeDependentReweighting(**budget, correction=False),
        "half": AllObserved(**budget, mixture="half"),
    }.items():
        backbone = make_unconditional(network_batch=64)
        sampler = method.prepare(make_task(), backbone, sets, preparation)
        images = sampler([Request(Prompt(""), 0, i, 0) for i in range(512)]).images
        found[name] = float((images.mean((1, 2, 3)) < 127.5).mean())
    assert found["half"] == pytest.approx(0.3, abs=0.08), found
    assert found["tiw"] == pytest.approx(0.5, abs=0.08), found
    assert found["weight"] < found["tiw"] - 0.08, found


# T5: parameterisations


def test_spot_values_of_the_three_parameterisations():
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    alpha, sigma = 0.6 * one, 0.8 * one
    shift = clean_shift(one, alpha, sigma)
    assert float(target_shift("sample", shift, alpha, sigma)) == pytest.approx(1.0666666667)
    assert float(target_shift("epsilon", shift, alpha, sigma)) == pytest.approx(-0.8)
    assert float(target_shift("v_prediction", shift, alpha, sigma)) == pytest.approx(-1.3333333333)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_corrected_target_is_the_same_clean_image_in_every_parameterisation(kind):
    schedule = Schedule(torch.linspace(0.999, 0.001, 50, dtype=torch.float64), kind)
    draws = torch.Generator().manual_seed(1)
    clean, noise, gradient = torch.randn(3, 5, 2, 4, 4, generator=draws, dtype=torch.float64)
    t = torch.tensor([0, 10, 25, 40, 49])
    alpha, sigma = columns(schedule.alpha(t)), columns(schedule.sigma(t))
    x_t = schedule.add_noise(clean, noise, t)
    shift = clean_shift(gradient, alpha, sigma)
    target = schedule.target(clean, noise, t) + target_shift(kind, shift, alpha, sigma)
    seen = Prediction(x_t, alpha, sigma, kind, target)
    assert torch.allclose(seen.clean, clean + sigma**2 / alpha * gradient, atol=1e-9)
    assert torch.allclose(seen.noise, noise - sigma * gradient, atol=1e-9)
    assert torch.allclose(seen.velocity, alpha * seen.noise - sigma * seen.clean, atol=1e-9)
    assert torch.allclose(alpha * seen.clean + sigma * seen.noise, x_t, atol=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_rows_of_the_shipped_loss_are_those_written_out(kind, share, make_unconditional, data):
    """Mean squared error against the corrected target, once weighted; the ratio is a formula."""
    backbone = make_unconditional(kind)
    parts = (data.training, data.reference)
    images = NoisedImages(backbone, parts, data.subjects)
    tilted = Formula(lambda x, *_: 0.05 * x.square().sum((1, 2, 3)) - 0.3 * x.sum((1, 2, 3)))
    loss = TiwLoss(images, tuple(map(len, parts)), Reweighting(tilted, (-5.0, 5.0), share=share))
    index = np.array([3, 50, 17, 60])
    clean, t = images.latents[index].double(), torch.tensor([20, 300, 650, 900])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2)).double()
    a, b = (columns(f(t)).double() for f in (backbone.schedule.alpha, backbone.schedule.sigma))
    x = a * clean + b * noise
    assert backbone.schedule.prediction_type == kind
    batch = images.at(index, t, noise.float(), None)
    rows = rows_of(loss, backbone, batch)
    with torch.no_grad():
        seen = backbone.predict(batch.x_t, t, None).value.double()
    w = columns((0.05 * x.square().sum((1, 2, 3)) - 0.3 * x.sum((1, 2, 3))).exp())
    mixture = share * w + 1 - share
    gradient = (1 - share) / mixture * (0.1 * x - 0.3)
    target = {
        "epsilon": noise - b * gradient,
        "sample": clean + b**2 / a * gradient,
        "v_prediction": a * noise - b * clean - b / a * gradient,
    }[kind]
    expected = (w / mixture * (seen - target).square()).mean((1, 2, 3))
    assert rows.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert gradient.abs().amax((1, 2, 3)).min() > 0.01


def test_edm_is_the_clean_form_at_alpha_one():
    draws = torch.Generator().manual_seed(2)
    clean, noise, gradient = torch.randn(3, 4, 1, 2, 2, generator=draws, dtype=torch.float64)
    sigma, one = columns(torch.tensor([0.01, 0.5, 2.0, 80.0]).double()), torch.ones(1).double()
    x = clean + sigma * noise
    target = clean + target_shift("sample", clean_shift(gradient, one, sigma), one, sigma)
    assert torch.allclose(target, clean + sigma**2 * gradient)
    # The same score in EDM's form and in that of a network told x / sqrt(1 + sigma²).
    alpha, spread = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    scaled = gradient / alpha  # gradient by the scaled input
    assert torch.allclose(clean_shift(scaled, alpha, spread), sigma**2 * gradient)
    assert torch.allclose((target - x) / sigma**2, -noise / sigma + gradient)


def test_gradients_agree_between_noise_and_clean_loss():
    alpha, sigma = (columns(torch.tensor([part]).double()) for part in (0.6, 0.8))
    draws = torch.Generator().manual_seed(3)
    clean, noise, gradient, guess = torch.randn(4, 1, 2, 3, 3, generator=draws).double()
    shift, x_t = clean_shift(gradient, alpha, sigma), alpha * clean + sigma * noise
    guess = guess[None].requires_grad_()  # of the noise
    loss = (guess - noise - target_shift("epsilon", shift, alpha, sigma)).square().sum()
    (of_noise,) = torch.autograd.grad(loss, guess)
    as_clean = (x_t - sigma * guess) / alpha
    loss = (as_clean - clean - target_shift("sample", shift, alpha, sigma)).square().sum()
    (of_clean,) = torch.autograd.grad(alpha.square() / sigma.square() * loss, guess)
    assert torch.allclose(of_noise, of_clean)


# T6: algebra of the mixture


def test_half_half_is_twice_the_probability():
    logit = torch.linspace(-9, 9, 37, dtype=torch.float64, requires_grad=True)
    mixed = mixed_log_ratio(logit, 0.5)
    (gradient,) = torch.autograd.grad(mixed.sum(), logit)
    assert torch.allclose(mixed.exp(), 2 * torch.sigmoid(logit))
    assert torch.allclose(gradient, 1 - torch.sigmoid(logit))
    assert float(mixed.detach().exp().max()) <= 2


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.0476, 0.5, 0.9, 1.0])
def test_general_mixture_and_its_limits(share):
    logit = torch.linspace(-9, 9, 37, dtype=torch.float64, requires_grad=True)
    mixed = mixed_log_ratio(logit, share)
    (gradient,) = torch.autograd.grad(mixed.sum(), logit)
    w = logit.detach().exp()
    assert torch.allclose(mixed.exp(), w / (share * w + 1 - share))
    assert torch.allclose(gradient, (1 - share) / (share * w + 1 - share))


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_ratios_have_mean_one_under_what_they_are_taken_against(sigma):
    draws = torch.Generator().manual_seed(4)
    for share in (0.0, 0.2, 0.5):
        clean = toy_draws(share, 400_000, draws)
        x = clean + sigma * torch.randn(len(clean), generator=draws, dtype=torch.float64)
        ratio = mixed_log_ratio(toy_log_ratio(x, sigma), share).exp()
        assert float(ratio.mean()) == pytest.approx(1, abs=5e-3)


def test_strength_is_an_exponent_of_weight_and_factor_of_correction():
    x_t = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    alpha, sigma = torch.full((4,), 0.8), torch.full((4,), 0.6)

    def at(strength, share=0.3, **changes):
        tilted = reweighting(lambda x, *_: x.mean((1, 2, 3)), share, strength=strength, **changes)
        return tilted(x_t, alpha, sigma, torch.zeros(4), make_draws())

    weight, shift = at(1.0)
    for strength in (0.25, 2.0):
        other = at(strength)
        assert torch.allclose(other[0], weight**strength)
        assert torch.allclose(other[1], strength * shift)
    assert torch.equal(at(1.0, weighs=False)[0], torch.ones(4))
    assert torch.equal(at(1.0, weighs=False)[1], shift)
    assert torch.equal(at(1.0, corrects=False)[0], weight)
    assert not at(1.0, corrects=False)[1].any()


# T7: rows are on their own


@pytest.fixture
def make_loss(data):
    """The loss of four fixed rows for a ratio on a backbone, by row, and its batch."""

    def make(backbone, ratio=None, **changes):
        parts = (data.training, data.reference)
        images = NoisedImages(backbone, parts, data.subjects)
        if ratio is None:
            ratio = fresh_ratio(images)
        weighing = Reweighting(ratio, (-5.0, 5.0), **{"share": 0.5, **changes})
        loss = TiwLoss(images, tuple(map(len, parts)), weighing)
        batch = images.draw(make_draws(), np.array([3, 50, 17, 60]))
        return loss, batch

    return make


def fresh_ratio(images, width=8):
    captions = 0 if images.contexts is None else len(images.contexts) - 1
    with seeded_modules(7):
        return NetworkRatio(images.latents.shape[1], captions, width).eval()


def rows_of(loss, backbone, batch):
    with torch.enable_grad():
        weights = torch.ones(len(backbone.schedule))
        return loss.rows(backbone, batch, make_draws(len(batch.index)), weights)


def test_a_weight_scales_its_own_row_and_order_does_not_matter(make_unconditional, make_loss):
    backbone = make_unconditional()
    loss, batch = make_loss(backbone)
    rows = rows_of(loss, backbone, batch)
    assert rows.shape == (4,)
    assert len(set(rows.tolist())) == 4
    inner = loss.reweighting
    factors = torch.tensor([1.0, 3.0, 1.0, 1.0])
    loss.reweighting = lambda *args: (lambda w, s: (factors * w, s))(*inner(*args))
    loss.reweighting.share = 0.5
    assert torch.allclose(rows_of(loss, backbone, batch), factors * rows)
    loss.reweighting = inner
    order = torch.tensor([2, 0, 3, 1])
    moved = dataclasses.replace(
        batch,
        index=batch.index[order.numpy()],
        dropped=batch.dropped[order.numpy()],
        **{part: getattr(batch, part)[order] for part in ("clean", "noise", "x_t", "t")},
    )
    assert torch.allclose(rows_of(loss, backbone, moved), rows[order], rtol=1e-5)


@pytest.mark.parametrize("kind", ["network", "labels"])
def test_a_row_of_the_ratio_depends_on_itself_alone(kind, make_backbone, make_loss):
    loss, batch = make_loss(make_backbone())
    x = batch.x_t.clone().requires_grad_()
    caption = seen_captions(loss.images, batch)
    ratio = loss.reweighting.ratio
    if kind == "labels":
        with seeded_modules(7):
            shares = torch.tensor([[0.1, 0.2, 0.7], [0.4, 0.3, 0.3]])
            ratio = GroupRatio(x.shape[1], shares, torch.arange(3), 8).eval()
        caption = torch.full_like(caption, -1)
    logit = ratio(x, torch.linspace(-2, 2, 4), caption)
    for i in range(4):
        (gradient,) = torch.autograd.grad(logit[i], x, retain_graph=True)
        assert gradient[i].abs().max() > 0
        assert not gradient[[j for j in range(4) if j != i]].any()


@pytest.mark.parametrize("method", [TimeDependentReweighting, ImportanceReweighting])
def test_impossible_loss_weights_are_refused_before_the_ratio_is_trained(
    method, make_task, make_unconditional, data, make_preparation
):
    preparation = make_preparation()
    chosen = method(**QUICK, loss_weighting="min_snr", min_snr_gamma=0.0)
    with pytest.raises(InputError, match="min_snr_gamma"):
        chosen.prepare(make_task(), make_unconditional(), data, preparation)
    assert not list(preparation.cache.rglob("*.*"))


# T8: what gradients reach


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("conditional", [True, False])
def test_the_ratio_gets_no_gradient_and_the_network_none_through_it(
    prediction, conditional, make_backbone, make_unconditional, make_loss
):
    backbone = (make_backbone if conditional else make_unconditional)(prediction)
    loss, batch = make_loss(backbone)
    student = backbone.with_unet(copy.deepcopy(backbone.unet).requires_grad_(True))
    ratio = loss.reweighting.ratio
    before = {name: value.clone() for name, value in ratio.state_dict().items()}
    seen, network = [], student._network
    student._network = lambda x, t, c: (seen.append(x), network(x, t, c))[1]
    rows_of(loss, student, batch).mean().backward()
    gradients = [p.grad.clone() for p in student.unet.parameters() if p.grad is not None]
    assert torch.equal(seen[0], batch.x_t)  # what it would see without the method
    assert all(p.grad is None for p in ratio.parameters())  # though nothing here froze them
    assert all(p.requires_grad for p in ratio.parameters())
    alpha, sigma = (f(batch.t).float() for f in (student.schedule.alpha, student.schedule.sigma))
    caption = seen_captions(loss.images, batch)
    fixed = loss.reweighting(batch.x_t, alpha, sigma, caption, make_draws())
    assert not any(part.requires_grad for part in fixed)
    loss.reweighting = lambda *args: fixed
    student.unet.zero_grad()
    rows_of(loss, student, batch).mean().backward()
    again = [p.grad for p in student.unet.parameters() if p.grad is not None]
    assert len(gradients) == len(again) > 0
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    both = [*student.unet.parameters(), *ratio.parameters()]
    torch.optim.SGD(both, 0.1, weight_decay=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in ratio.state_dict().items())


# T9: saturation and limits


def test_saturated_logits_stay_finite_with_their_true_gradient():
    for dtype in (torch.float32, torch.float64):
        logit = torch.tensor([-40.0, 40.0], dtype=dtype, requires_grad=True)
        mixed = mixed_log_ratio(logit, 0.5)
        (gradient,) = torch.autograd.grad(mixed.sum(), logit)
        assert mixed.exp().tolist() == pytest.approx([8.5e-18, 2.0], rel=1e-2)
        assert float(gradient[0]) == 1  # a probability clipped before the gradient gives 0
        assert abs(float(gradient[1])) < 1e-15
    for share in (0.0, 1e-6, 0.5, 1.0):
        logit = torch.tensor([-1e4, 1e4], requires_grad=True)
        mixed = mixed_log_ratio(logit, share)
        (gradient,) = torch.autograd.grad(mixed.sum(), logit)
        assert torch.isfinite(mixed).all()
        assert torch.isfinite(gradient).all()


def test_the_exact_correction_is_within_the_data_and_the_ratio_within_its_bounds():
    x = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    for sigma in (0.05, 0.3, 1.0, 5.0, 30.0):
        log_weight, shift = toy_correction(x * max(1, sigma / 3), sigma)
        assert float(shift.abs().max()) <= 4 + 1e-9  # the two modes' distance
        assert math.log(5 / 9) - 1e-9 <= float(log_weight.min())
        assert float(log_weight.max()) <= math.log(5) + 1e-9
    # At noise 1000 nothing is known of an image any more, wherever it lies.
    assert float(toy_correction(250 * x, 1e3)[0].abs().max()) < 1e-2


def test_a_correction_beyond_the_data_is_clamped_and_counted():
    x_t = torch.zeros(4, 3, 4, 4)
    alpha, sigma = torch.full((4,), 0.1), torch.full((4,), 0.995)
    bound = torch.tensor([2.0, 1.0, 0.5]).reshape(1, 3, 1, 1)
    steep = reweighting(lambda x, *_: 50 * x.sum((1, 2, 3)), bound=bound)
    draws = make_draws()
    _, shift = steep(x_t, alpha, sigma, torch.zeros(4), draws)
    assert torch.equal(shift, bound.expand_as(shift))
    assert draws.logged["clamped_share"] == 1
    latents = torch.tensor([[-1.0, 2.0], [0.0, 0.5]]).reshape(2, 1, 1, 2)
    assert value_range(latents).flatten().tolist() == [3.0]


def test_a_step_without_signal_has_a_finite_correction():
    """Zero terminal SNR: the shift tends to the difference of the two means, not to infinity."""
    schedule = Schedule(torch.tensor([0.9, 0.5, 1e-6, 0.0], dtype=torch.float64), "v_prediction")
    levels = noise_range(schedule)
    assert levels == pytest.approx((0.5 * math.log(1 / 9), 0.5 * math.log(1e6)), abs=1e-5)

    def pull(x, level, caption):  # gradient alpha / sigma²: a difference of means of 1
        alpha, sigma = _ratio.noise_shares(level)
        return (alpha / sigma**2) * x.sum((1, 2, 3))

    tilted = reweighting(pull, share=0.0, levels=levels)
    t = torch.arange(4)
    alpha, sigma = schedule.alpha(t).float(), schedule.sigma(t).float()
    _, shift = tilted(torch.zeros(4, 3, 4, 4), alpha, sigma, torch.zeros(4), make_draws())
    assert torch.allclose(shift, torch.ones_like(shift), rtol=1e-4)


# The ratio itself


def toy_images(n, seed, dark_share, subjects=1, labelled=True):
    """4 x 4 images, dark ones and bright ones; with several subjects the last one is all dark."""
    rng = np.random.default_rng(seed)
    subject = rng.integers(subjects, size=n)
    dark = rng.random(n) < dark_share
    if subjects > 1:
        dark |= subject == subjects - 1
    level = np.where(dark, 70, 180)[:, None, None, None]
    images = (level + rng.normal(0, 25, (n, 4, 4, 3))).clip(0, 255).astype(np.uint8)
    return ImageSet(images, subject, {"tone": dark.astype(np.uint8)} if labelled else None)


def fit(method, backbone, parts, preparation, levels="schedule", subjects=1):
    images = NoisedImages(
        backbone, parts, [Prompt(f"thing{i}", template="a photo of {}") for i in range(subjects)]
    )
    known = noise_range(backbone.schedule) if levels == "schedule" else levels
    labelled = getattr(method, "ratio", "network") == "labelled_network"
    labels = ("tone",) if labelled else ()
    return fit_ratio(method, backbone, images, parts, preparation, labels=labels, levels=known)


@pytest.mark.parametrize("kind", ["network", "labelled_network"])
def test_a_fitted_ratio_finds_the_shares_of_the_groups(kind, make_unconditional, make_preparation):
    """One image in ten is dark, half of the references: ratios are 5 and 5 / 9."""
    parts = [toy_images(1200, 0, 0.1), toy_images(400, 1, 0.5)]
    method = TimeDependentReweighting(
        ratio=kind, ratio_steps=150, ratio_batch=64, ratio_width=8, ratio_learning_rate=3e-3
    )
    backbone = make_unconditional()
    fitted = fit(method, backbone, parts, make_preparation())
    assert not any(module.training for module in fitted.ratio.modules())
    assert not any(p.requires_grad for p in fitted.ratio.parameters())
    fresh = [toy_images(200, 5, share) for share in (1.0, 0.0)]
    for part, expected in zip(fresh, (math.log(5), math.log(5 / 9)), strict=True):
        x = backbone.encode(part.images)
        level, caption = torch.full((200,), -3.0), torch.full((200,), -1)
        low = log_ratios(fitted.ratio, noised(x, 0 * x, level), level, caption)
        assert float(low.mean()) == pytest.approx(expected, abs=0.35)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        high = log_ratios(fitted.ratio, noised(x, noise, 0 * level + 5), 0 * level + 5, caption)
        assert float(high.abs().mean()) < 0.3
    facts = fitted.facts
    assert facts["held_out_cross_entropy"] < 0.66
    assert facts["mean_ratio_of_biased"] == pytest.approx(1, abs=0.2)
    assert (
        facts["bands"][0]["held_out_cross_entropy"] < facts["bands"][-1]["held_out_cross_entropy"]
    )
    assert facts["saturated_share"] == 0
    if kind == "labelled_network":
        assert facts["bounds"] == pytest.approx([math.log(5 / 9), math.log(5)], abs=0.2)
        low, high = facts["log_ratio_range"]
        assert facts["attainable_cross_entropy"] < facts["held_out_cross_entropy"] + 0.02
        assert facts["bounds"][0] - 1e-4 <= low < high <= facts["bounds"][1] + 1e-4
    else:
        assert "bounds" not in facts


def test_group_ratio_is_that_of_the_posterior_given_the_caption():
    shares = torch.tensor([[0.6, 0.1, 0.3], [0.25, 0.25, 0.5]], dtype=torch.float64)
    ratio = GroupRatio(3, shares, torch.tensor([0, 0, 1]), 8)
    likelihood = torch.tensor([[0.2, 0.7, 0.4]])
    ratio.net.forward = lambda x, level: likelihood.log().expand(len(x), 3)
    logit = ratio(torch.zeros(3, 3, 4, 4), torch.zeros(3), torch.tensor([-1, 0, 1])).exp()
    joint = likelihood.double() * shares
    assert logit.tolist() == pytest.approx(
        [
            float(joint[1].sum() / joint[0].sum()),
            float(joint[1, :2].sum() / joint[0, :2].sum()),
            0.5 / 0.3,
        ]
    )
    posterior = joint[0] / joint[0].sum()
    assert float(logit[0]) == pytest.approx(float((posterior * shares[1] / shares[0]).sum()))
    assert ratio.bounds() == pytest.approx((math.log(0.25 / 0.6), math.log(2.5)))
    # Known groups: each row has the probability p_ref / (p_ref + p_bias) of its own group.
    guessed = shares[1] / shares.sum(0)
    best = -(shares[1] * guessed.log() + shares[0] * (1 - guessed).log()).sum() / 2
    assert ratio.attainable() == pytest.approx(float(best))


def test_groups_are_all_crossings_that_occur():
    biased = ImageSet(
        np.zeros((4, 2, 2, 3)), np.array([0, 0, 0, 1]), {"a": np.array([0, 0, 1, 0])}
    )
    reference = ImageSet(np.zeros((2, 2, 2, 3)), np.array([1, 1]), {"a": np.array([0, 1])})
    cell, shares, caption = labelled_cells([biased, reference], ["a"])
    assert cell.tolist() == [0, 0, 1, 2, 2, 3]
    assert caption.tolist() == [0, 0, 1, 1]
    assert shares[0].tolist() == pytest.approx([2 / 4.5, 1 / 4.5, 1 / 4.5, 0.5 / 4.5])
    assert shares[1].tolist() == pytest.approx([0.5 / 3, 0.5 / 3, 1 / 3, 1 / 3])
    with pytest.raises(ContractError, match="labelled"):
        labelled_cells([dataclasses.replace(biased, labels=None), reference], ["a"])
    cell, shares, caption = labelled_cells([biased, reference], [])
    assert (cell.tolist(), caption.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 1])
    assert shares[1].tolist() == pytest.approx([0.5 / 2.5, 2 / 2.5])


def test_captions_have_outputs_of_their_own(make_backbone, make_preparation):
    """Given the subject whose images are all dark, tone tells nothing; given the other it does."""
    parts = [toy_images(900, 0, 0.1, 2), toy_images(300, 1, 0.5, 2)]
    method = TimeDependentReweighting(
        ratio="network",
        ratio_steps=150,
        ratio_batch=64,
        ratio_width=8,
        ratio_learning_rate=3e-3,
    )
    backbone = make_backbone()
    fitted = fit(method, backbone, parts, make_preparation(), subjects=2)
    assert fitted.ratio.heads == 3
    x = backbone.encode(toy_images(200, 5, 1.0).images)
    level = torch.full((200,), -3.0)
    own, fixed, empty = (
        float(log_ratios(fitted.ratio, x, level, torch.full((200,), caption)).mean())
        for caption in (0, 1, -1)
    )
    assert own == pytest.approx(math.log(5), abs=0.4)
    assert fixed == pytest.approx(0, abs=0.4)
    assert empty == pytest.approx(math.log(0.75 / 0.55), abs=0.4)  # dark: 3 in 4 against 11 in 20


def test_seen_captions_are_empty_where_the_prompt_was_dropped(
    make_backbone, make_unconditional, data
):
    for backbone in (make_backbone(), make_unconditional()):
        images = NoisedImages(backbone, (data.training, data.reference), data.subjects)
        index = np.arange(40)
        batch = images.draw(make_draws(40), index)
        assert 0 < batch.dropped.sum() < 20
        captions = seen_captions(images, batch)
        if images.contexts is None:
            assert captions.tolist() == [-1] * 40
            continue
        expected = np.where(batch.dropped, -1, images.subjects[index])
        assert captions.tolist() == expected.tolist()
        assert torch.equal(batch.context, images.contexts[captions])


def test_held_out_images_are_never_fitted_on(make_unconditional, data):
    images = NoisedImages(make_unconditional(), (data.training, data.reference), data.subjects)
    sets = RatioSets.split(images, [48, 24], 0.2, 0)
    assert [len(part) for part in sets.held] == [10, 5]
    assert sorted(np.concatenate([*sets.fit, *sets.held])) == list(range(72))
    assert not sets.reference[torch.from_numpy(np.concatenate([sets.fit[0], sets.held[0]]))].any()
    ratio = fresh_ratio(images)
    drawn = np.concatenate([ratio.draw(sets, make_draws(8, step)) for step in range(40)])
    assert set(drawn) <= set(np.concatenate(sets.fit))
    assert sets.reference.numpy()[drawn].mean() == 0.5
    other = RatioSets.split(images, [48, 24], 0.2, 1)
    assert not np.array_equal(sets.held[0], other.held[0])
    with pytest.raises(InputError, match="at least 2"):
        RatioSets.split(images, [71, 1], 0.2, 0)


def test_cross_entropy_weighs_both_sets_equally():
    logit = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.2])
    reference = torch.tensor([True, False, False, False, False])
    p = torch.sigmoid(logit)
    expected = -0.5 * p[0].log() - 0.5 * (1 - p[1:]).log().mean()
    assert float(balanced_cross_entropy(logit, reference)) == pytest.approx(float(expected))
    even = balanced_cross_entropy(torch.zeros(5), reference)
    assert float(even) == pytest.approx(math.log(2))


def test_effective_and_saturated_shares():
    assert effective_share(torch.ones(7)) == pytest.approx(1)
    assert effective_share(torch.tensor([0.0, 0.0, 5.0, 0.0])) == pytest.approx(0.25)
    assert effective_share(torch.tensor([1.0, 3.0])) == pytest.approx(16 / 20)
    assert saturated_share(torch.tensor([0.0, 3.3, -3.25, 3.2])) == 0.5


# Cards, parameters, facts


def test_ablations_and_oracle_are_named():
    cards = {
        name: TimeDependentReweighting(**values).configured_card()
        for name, values in TimeDependentReweighting.presets.items()
    }
    assert {name: (card.role, card.ranked) for name, card in cards.items()} == {
        "weight_only": ("ablation", False),
        "correction_only": ("ablation", False),
        "oracle_ratio": ("oracle", False),
        "from_scratch": ("method", True),
    }
    assert {name for name, card in cards.items() if "labels" in card.supervision} == {
        "oracle_ratio"
    }
    assert TimeDependentReweighting().configured_card().supervision == {"reference-set"}


@pytest.mark.parametrize(
    "wrong", [{"reference_share": 1.5}, {"held_out": 0.0}, {"held_out": 1.0}, {"ratio_width": 12}]
)
def test_parameters_out_of_range_are_errors(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TimeDependentReweighting(**wrong)


@pytest.mark.parametrize(
    "preset", [None, "weight_only", "correction_only", "oracle_ratio", "network"]
)
def test_facts_are_plain_and_seconds_are_those_of_ratio_and_network(
    preset, make_unconditional, make_task, data, make_preparation
):
    import json

    values = TimeDependentReweighting.presets.get(preset, {})
    quick = {"oracle_ratio": {}, "network": {"ratio": "network", **QUICK_RATIO}}
    inferred = {"ratio_groups": 2, "ratio_fits": 1, "first_steps": 2, "group_steps": 2}
    method = TimeDependentReweighting(**{**QUICK, **quick.get(preset, inferred), **values})
    backbone, preparation, task = make_unconditional(), make_preparation(), make_task()
    facts = method.prepare(task, backbone, data, preparation).facts
    assert json.loads(json.dumps(facts)) == facts
    both = facts["ratio"]["training"]["seconds"] + facts["training"]["seconds"]
    assert facts["training_seconds"] == pytest.approx(both)
    logged = facts["training"]["diagnostics"]
    assert 0 < logged["effective_sample_share"] <= 1
    assert ("correction_root_mean_square" in logged) == (preset != "weight_only")
    assert ("bounds" in facts["ratio"]) == (preset != "network")
    kind = {"oracle_ratio": "labelled_mixture", "network": "network"}.get(preset, "mixture")
    assert facts["ratio"]["kind"] == kind
    found = method.prepare(task, backbone, data, preparation)  # nothing is trained again
    assert found.facts == facts
    other = dataclasses.replace(method, strength=0.5).prepare(task, backbone, data, preparation)
    assert other.facts["ratio"] == facts["ratio"]
    assert other.facts["training"] != facts["training"]


@pytest.mark.parametrize("cls", [TimeDependentReweighting, ImportanceReweighting])
def test_a_backbone_without_a_network_is_refused_before_any_training(
    cls, make_mixture, data, make_preparation
):
    with pytest.raises(InputError, match="no network to train"):
        cls().prepare(None, make_mixture(), data, make_preparation())
    missing = TrainingData(subjects=data.subjects, training=data.training)
    with pytest.raises(ContractError, match="reference"):
        cls().prepare(None, make_mixture(), missing, make_preparation())


# The controls


def test_iw_weighs_clean_images(make_unconditional, data, make_preparation, monkeypatch):
    """With weights that are 0 for all but bright images, the rest must not be learned from."""
    backbone, seen = make_unconditional(), []

    def bright(x, level, caption):
        seen.append((float(x.min()), float(level.abs().max())))
        return torch.where(x.mean((1, 2, 3)) > 0, 60.0, -60.0)

    fitted = _ratio.FittedRatio(Formula(bright), {}, 1.0, "bright")
    monkeypatch.setattr(_tiw, "fit_ratio", lambda *args, **options: fitted)
    losses = []

    def record(method, backbone, content, loss_of, preparation, *, what):
        weights = torch.ones(len(backbone.schedule))
        losses.extend(float(loss_of(backbone, make_draws(64, i), weights)) for i in range(2))
        return finetune(method, backbone, content, loss_of, preparation, what=what)

    monkeypatch.setattr(_tiw, "finetune", record)
    method = ImportanceReweighting(**QUICK, reference_share=0.5)
    sampler = method.prepare(None, backbone, data, make_preparation())
    assert sampler.facts["training_seconds"] > 1
    assert seen == [(pytest.approx(-1, abs=0.6), 0.0)]
    parts = (data.training, data.reference)
    images = NoisedImages(backbone, parts, data.subjects)
    weight = 2.0 * (images.latents.mean((1, 2, 3)) > 0)
    for step, loss in enumerate(losses):
        draws = make_draws(64, step)
        batch = images.draw(draws, _tiw.proportioned_index(draws, (48, 24), (0.5, 0.5)))
        assert (batch.index < 48).sum() == 32
        with torch.no_grad():
            value = torch.cat(
                [
                    backbone.predict(batch.x_t[i : i + 4], batch.t[i : i + 4], None).value
                    for i in range(0, 64, 4)
                ]
            )
        target = backbone.schedule.target(batch.clean, batch.noise, batch.t)
        error = (value - target).square().flatten(1).mean(1)
        assert loss == pytest.approx(float((weight[batch.index] * error).mean()), rel=1e-4)


def test_controls_train_on_what_they_say(make_unconditional, data, make_preparation, monkeypatch):
    from fairbench.methods.parts import denoising as _denoising

    seen = []
    drawn = _denoising.proportioned_index

    def record(draws, sizes, shares):
        rows = drawn(draws, sizes, shares)
        seen.append((tuple(sizes), rows))
        return rows

    monkeypatch.setattr(_denoising, "proportioned_index", record)
    backbone = make_unconditional()
    many = {**QUICK, "batch": 60}
    for method, sizes, first in (
        (ReferenceOnly(**many), (24,), 60),
        (AllObserved(**many), (48, 24), 40),
        (AllObserved(**many, mixture="half"), (48, 24), 30),
    ):
        seen.clear()
        method.prepare(None, backbone, data, make_preparation())
        assert len(seen) == 2
        for got, rows in seen:
            assert got == sizes
            assert len(rows) == 60
            assert int((rows < sizes[0]).sum()) == first


# T10: a learned ratio in 32 dimensions


class Told(nn.Module):
    """An MLP told the log noise level; three hidden layers."""

    def __init__(self, width, outputs):
        super().__init__()
        layers = [nn.Linear(32 + 8, width)]
        layers += [nn.Linear(width, width) for _ in range(2)]
        self.layers, self.out = nn.ModuleList(layers), nn.Linear(width, outputs)

    def forward(self, x, sigma):
        angles = sigma.log()[:, None] * torch.tensor([0.5, 1.0, 2.0, 4.0])
        y = torch.cat([x / (sigma[:, None] ** 2 + 1).sqrt(), angles.sin(), angles.cos()], 1)
        for layer in self.layers:
            y = functional.silu(layer(y))
        return self.out(y)


def high_draws(n, minority, draws):
    group = torch.arange(n) < round(minority * n)  # the shares themselves aren't to be random
    x = 0.7 * torch.randn(n, 32, generator=draws)
    x[:, :4] += torch.where(group, 1.5, -1.5)[:, None]
    return x


def high_log_ratio(x, sigma):
    a = 2 * 1.5 * x[:, :4].sum(1) / (0.49 + sigma**2)
    return (
        functional.softplus(a)
        + math.log(0.5)
        - torch.logaddexp(a + math.log(0.1), a * 0 + math.log(0.9))
    )


def trained_ratio(reference, biased, steps, checkpoints, timed=True):
    """Step -> log-ratio network, by cross-entropy on log-uniform noise or on clean vectors."""
    draws, kept = torch.Generator().manual_seed(1), {}
    torch.manual_seed(1)
    network = Told(128, 1)
    optimizer = torch.optim.Adam(network.parameters(), 3e-4)
    for step in range(1, steps + 1):
        x = torch.cat(
            [
                part[torch.randint(len(part), (128,), generator=draws)]
                for part in (reference, biased)
            ]
        )
        sigma = torch.ones(256)
        if timed:
            span = math.log(50 / 0.01)
            sigma = 0.01 * torch.exp(span * torch.rand(256, generator=draws))
            x = x + sigma[:, None] * torch.randn(x.shape, generator=draws)
        loss = balanced_cross_entropy(network(x, sigma)[:, 0], torch.arange(256) < 128)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in checkpoints:
            kept[step] = copy.deepcopy(network).requires_grad_(False)
    return kept


def high_share(log_ratio, reference, biased, steps=2500):
    """Share of the minority that a denoiser trained on half of each set generates."""
    draws = torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    network = Told(192, 32)
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def denoise(net, x, sigma):
        s = sigma[:, None]
        root = (s**2 + 1).sqrt()
        return x / root**2 + s / root * net(x, sigma)

    for step in range(steps):
        clean = torch.cat(
            [
                part[torch.randint(len(part), (128,), generator=draws)]
                for part in (reference, biased)
            ]
        )
        sigma = torch.exp(-0.2 + 1.4 * torch.randn(256, generator=draws))
        x = clean + sigma[:, None] * torch.randn(clean.shape, generator=draws)
        weight, shift = torch.ones(256), torch.zeros_like(x)
        if log_ratio is not None:
            seen = x.clone().requires_grad_()
            mixed = mixed_log_ratio(log_ratio(seen, sigma), 0.5)
            (gradient,) = torch.autograd.grad(mixed.sum(), seen)
            shift = clean_shift(gradient, torch.ones(()), sigma[:, None])
            weight = mixed.detach().exp()
        error = (denoise(network, x, sigma) - clean - shift).square().mean(1)
        loss = (weight * (1 + 1 / sigma**2) * error).mean()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / steps) + 1e-5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
                mine.lerp_(theirs, max(0.005, 1 / (step + 1)))
    return high_sampled(lambda x, sigma: denoise(average, x, sigma), draws)


@torch.no_grad()
def high_sampled(denoise, draws, n=4000):
    ramp = torch.linspace(0, 1, 24)
    levels = [*((50 ** (1 / 7) + ramp * (0.01 ** (1 / 7) - 50 ** (1 / 7))) ** 7).tolist(), 0.0]
    x = 50 * torch.randn(n, 32, generator=draws)
    for i in range(24):
        now, then = levels[i], levels[i + 1]
        first = (x - denoise(x, torch.full((n,), now))) / now
        after = x + (then - now) * first
        if then > 0:
            second = (after - denoise(after, torch.full((n,), then))) / then
            after = x + (then - now) * (first + second) / 2
        x = after
    return float((x[:, :4].sum(1) > 0).float().mean())


@pytest.mark.slow
def test_a_learned_ratio_debiases_and_is_better_conditioned_with_noise():
    draws = torch.Generator().manual_seed(0)
    reference, biased = high_draws(200, 0.5, draws), high_draws(4000, 0.1, draws)
    with torch.random.fork_rng(devices=[]):
        timed = trained_ratio(reference, biased, 3000, (300, 1000, 3000))
        clean = trained_ratio(reference, biased, 3000, (1000, 3000), timed=False)
        fresh = high_draws(2000, 0.1, draws)

        def error(network, sigma, told):
            x = fresh + sigma * torch.randn(fresh.shape, generator=draws)
            true = high_log_ratio(x, torch.full((2000,), sigma))
            return float((network(x, torch.full((2000,), told))[:, 0] - true).square().mean())

        for steps in (1000, 3000):
            errors = [error(timed[steps], sigma, sigma) for sigma in (0.01, 0.3, 1.0, 3.0)]
            assert errors == sorted(errors, reverse=True)
            assert error(clean[steps], 0.0, 1.0) >= 5 * errors[0]
        shares = {
            "observed": high_share(None, reference, biased),
            "exact": high_share(high_log_ratio, reference, biased),
            "learned": high_share(lambda x, sigma: timed[300](x, sigma)[:, 0], reference, biased),
        }
    assert shares["observed"] == pytest.approx(0.3, abs=0.04)
    assert shares["exact"] == pytest.approx(0.5, abs=0.02)
    assert 0.42 <= shares["learned"] <= 0.53
    assert shares["learned"] > shares["observed"] + 0.08
