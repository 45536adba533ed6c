"""The card of debiased loss weighting: properties 1 to 7, 9 and 12, numbered as there."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr

from fairbench.backbones.mixture import GaussianMixture
from fairbench.core.errors import ContractError, InputError
from fairbench.diffusion.schedule import Prediction, Schedule
from fairbench.methods.parts.finetuning import squared_error
from fairbench.methods.parts.weighting import (
    WEIGHTINGS,
    clean_weight,
    noise_weight,
    timestep_weights,
    weight_summary,
)

KINDS = ("epsilon", "sample", "v_prediction")
SHAPES = [name for name in WEIGHTINGS if name != "native"]


def linear_alphas(steps=1000):
    return np.cumprod(1 - np.linspace(1e-4, 2e-2, steps))


def scaled_linear_alphas():
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def cosine_alphas():
    level = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    betas = [min(1 - level((i + 1) / 1000) / level(i / 1000), 0.999) for i in range(1000)]
    return np.cumprod(1 - np.array(betas))


def silent_alphas():
    """Linear, rescaled so that the last step has no signal (arXiv 2305.08891)."""
    root = np.sqrt(linear_alphas())
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def schedule(kind="epsilon", alphas=None):
    return Schedule(torch.from_numpy(linear_alphas() if alphas is None else alphas), kind)


def raw(name, kind="epsilon", alphas=None, **options):
    return timestep_weights(schedule(kind, alphas), name, normalise=False, **options)


LINEAR = torch.from_numpy(linear_alphas() / (1 - linear_alphas()))


# 1. The signal-to-noise ratios


def test_snr_of_the_linear_schedule():
    snr = schedule().snr(torch.arange(1000))
    wanted = [9999, 8.5366696, 1.089528, 0.084359549, 0.0033110855, 4.0359927e-5]
    assert snr[[0, 100, 250, 500, 750, 999]].tolist() == pytest.approx(wanted, rel=1e-6)
    assert int((snr < 5).nonzero()[0]) == 130
    assert int((snr < 1).nonzero()[0]) == 259
    theirs = compute_snr(
        DDPMScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear"), torch.arange(1000)
    )
    assert theirs.double().tolist() == pytest.approx(snr.tolist(), rel=2e-4)


# 2. Tables


AT = [0, 100, 250, 500, 900, 999]


def test_debias_on_the_linear_schedule():
    weight = raw("debias")
    wanted = [0.0100005, 0.342260, 0.958034, 3.44297, 60.8223, 157.407]
    assert weight[AT].tolist() == pytest.approx(wanted, rel=1e-5)
    assert bool((weight[1:] > weight[:-1]).all())
    assert float(weight[999] / weight[0]) == pytest.approx(15739.94, rel=1e-6)
    assert float(weight.mean()) == pytest.approx(17.81706, rel=1e-6)
    assert float(raw("debias", "sample")[500]) == pytest.approx(0.290447, rel=1e-5)
    velocity = raw("debias", "v_prediction")
    assert float(velocity[500]) == pytest.approx(0.267851, rel=1e-5)
    assert int(velocity.argmax()) == 258
    assert float(velocity.max()) == pytest.approx(0.49999994, rel=1e-7)
    assert torch.allclose(raw("debias", "sample") * weight, torch.ones(1000).double())


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("min_snr", {}, {0: 0.00050005, 10: 0.0109912, 50: 0.154897, 100: 0.585709, 200: 1}),
        ("p2", {}, {0: 1e-4, 50: 0.0300485, 250: 0.478577, 600: 0.974433, 999: 0.999960}),
        ("p2", {"p2_gamma": 0.5}, {0: 0.01, 50: 0.173345, 250: 0.691793, 999: 0.99998}),
        ("truncated_snr", {}, {0: 1, 250: 1, 300: 1.538, 500: 11.854, 999: 24777.1}),
        ("edm", {}, {0: 1.0004, 100: 1.46857, 250: 4.67131, 750: 1209.06, 999: 99109.2}),
        (
            "edm_lognormal",
            {},
            {0: 2.339, 50: 6.225, 100: 4.871, 250: 5.201, 500: 11.25, 750: 10.13, 999: 0.412},
        ),
    ],
    ids=str,
)
def test_siblings_on_the_linear_schedule(name, options, wanted):
    weight = raw(name, **options)
    for t, value in wanted.items():
        assert float(weight[t]) == pytest.approx(value, rel=5e-4 if "log" in name else 1e-5)


def test_the_lognormal_ratio_gives_the_density_of_noise_levels_of_edm():
    ratio = (clean_weight("edm_lognormal", LINEAR) / clean_weight("edm", LINEAR)).numpy()
    level = -0.5 * np.log(LINEAR.numpy())
    # Over evenly drawn timesteps, weighted, ln sigma is N(-1.2, 1.2²) but for the ends.
    mean = np.average(level, weights=ratio)
    assert mean == pytest.approx(-1.2, abs=0.02)
    assert np.sqrt(np.average((level - mean) ** 2, weights=ratio)) == pytest.approx(1.2, abs=0.02)
    assert ratio.mean() == pytest.approx(1, abs=0.01)


def test_debias_on_other_schedules():
    scaled = raw("debias", alphas=scaled_linear_alphas())
    assert scaled[[0, 500, 999]].tolist() == pytest.approx([0.0291672, 1.61828, 14.6146], rel=1e-5)
    assert float(scaled.mean()) == pytest.approx(3.02131, rel=1e-5)
    assert weight_summary(scaled)["effective_share"] == pytest.approx(0.4495, abs=1e-4)


# 3. One weighting, whatever the network predicts


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("t", [10, 300, 600, 999])
def test_a_weighting_is_the_same_loss_in_every_parameterisation(name, t):
    table = schedule()
    draws = torch.Generator().manual_seed(t)
    clean, noise, error = torch.randn(3, 2, 3, 4, 4, generator=draws, dtype=torch.float64)
    alpha, sigma = (part(t).reshape(1, 1, 1, 1) for part in (table.alpha, table.sigma))
    x_t = alpha * clean + sigma * noise
    predicted = Prediction(x_t, alpha, sigma, "epsilon", noise + 0.3 * error)
    values = {
        "epsilon": predicted.noise,
        "sample": predicted.clean,
        "v_prediction": predicted.velocity,
    }
    losses = []
    for kind, value in values.items():
        target = schedule(kind).target(clean, noise, t)
        squared = (value - target).square().flatten(1).mean(1)
        losses.append(raw(name, kind)[t] * squared)
    assert torch.allclose(losses[1], losses[0], rtol=1e-10, atol=0)
    assert torch.allclose(losses[2], losses[0], rtol=1e-10, atol=0)


def test_ports_that_the_card_names_are_other_objectives():
    velocity = raw("debias", "v_prediction")
    for wrong, at_500 in ((1 / (1 + LINEAR), 0.922203), ((1 + LINEAR) ** -0.5, 0.960314)):
        assert float(wrong[500]) == pytest.approx(at_500, rel=1e-5)
        assert float(velocity[500]) < at_500 / 3


# 4. Identities of the family


def test_identities_of_the_family():
    def same(one, other):
        return torch.allclose(one, other, rtol=1e-12, atol=0)

    one = torch.ones_like(LINEAR)
    assert same(noise_weight("constant", LINEAR), one)
    debias = noise_weight("debias", LINEAR)
    assert same(noise_weight("p2", LINEAR, p2_k=0, p2_gamma=0.5), debias)
    assert same(debias, LINEAR**-0.5)
    assert same(noise_weight("p2", LINEAR, p2_gamma=0), one)
    assert same(noise_weight("p2", LINEAR, p2_k=0, p2_gamma=1), 1 / LINEAR)
    assert same(clean_weight("p2", LINEAR, p2_k=0, p2_gamma=1), one)
    assert same(noise_weight("edm", LINEAR, sigma_data=1), 1 + 1 / LINEAR)  # velocity's own loss
    assert same(noise_weight("min_snr", LINEAR, gamma=1e9), one)
    assert same(noise_weight("min_snr", LINEAR, gamma=1e-9) / 1e-9, 1 / LINEAR)
    soft = 4 / (4 + LINEAR)  # soft Min-SNR
    assert same(4 * noise_weight("p2", LINEAR, p2_k=4, p2_gamma=1), soft)


def test_edm_weighs_its_own_output_evenly():
    s = LINEAR**-0.5
    out = s * 0.5 / (s**2 + 0.25).sqrt()
    assert torch.allclose(clean_weight("edm", LINEAR) * out**2, torch.ones_like(s), rtol=1e-12)


def test_bounds():
    min_snr = noise_weight("min_snr", LINEAR)
    assert bool((min_snr <= 1).all())
    assert bool((min_snr[130:] == 1).all())
    assert float(min_snr[129]) < 1
    for gamma in (0.5, 1.0, 2.0):
        assert bool((noise_weight("p2", LINEAR, p2_gamma=gamma) <= 1).all())
    truncated = raw("truncated_snr", "v_prediction")
    assert 0.5 <= float(truncated.min()) <= float(truncated.max()) <= 1
    assert float(raw("debias", "v_prediction").max()) <= 0.5


# 5. Where the weight lies, and normalisation


@pytest.mark.parametrize(
    ("name", "options", "quarter", "tenth", "effective"),
    [
        ("constant", {}, 0.25, 0.1, 1.0),
        ("debias", {}, 0.8514, 0.5659, 0.2421),
        ("debias", {"max_weight": 10}, 0.5102, 0.2041, 0.5911),
        ("min_snr", {}, 0.2738, 0.1095, 0.9312),
        ("p2", {}, 0.3448, 0.1380, 0.8170),
        ("p2", {"p2_gamma": 0.5}, 0.3101, 0.1241, 0.8964),
        ("p2", {"p2_k": 0, "p2_gamma": 1}, 0.9834, 0.8348, 0.1081),
    ],
    ids=str,
)
def test_where_the_weight_lies(name, options, quarter, tenth, effective):
    for normalise in (False, True):
        weight = timestep_weights(schedule(), name, normalise=normalise, **options)
        seen = weight_summary(weight)
        assert seen["share_of_noisiest_quarter"] == pytest.approx(quarter, abs=1e-4)
        assert seen["share_of_noisiest_tenth"] == pytest.approx(tenth, abs=1e-4)
        assert seen["effective_share"] == pytest.approx(effective, abs=1e-4)
        assert seen["untrained_timesteps"] == 0
    assert float(weight.mean()) == pytest.approx(1, abs=1e-6)


def test_normalisation_divides_by_the_mean_in_the_networks_own_terms():
    means = {"epsilon": 17.81706, "sample": 1.511111, "v_prediction": 0.226662}
    for kind, mean in means.items():
        plain, whole = raw("debias", kind), timestep_weights(schedule(kind), "debias")
        assert float(plain.mean()) == pytest.approx(mean, rel=1e-5)
        assert torch.allclose(whole * plain.mean(), plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("cap", "capped", "effective"),
    [(10, 326, 0.59), (20, 231, 0.48), (50, 121, 0.35), (100, 46, 0.27)],
)
def test_a_cap_is_on_the_weight_of_the_noise(cap, capped, effective):
    weight = raw("debias", max_weight=cap)
    assert int(torch.isclose(weight, torch.tensor(float(cap)).double()).sum()) == capped
    assert weight_summary(weight)["effective_share"] == pytest.approx(effective, abs=5e-3)
    bounded = raw("debias", "v_prediction", max_weight=cap)
    snr = LINEAR
    assert torch.allclose(bounded, weight * snr / (1 + snr), rtol=1e-10, atol=0)


# 6. Schedules that are a hazard


def test_the_cosine_schedule_needs_a_cap_to_predict_noise():
    snr = torch.from_numpy(cosine_alphas() / (1 - cosine_alphas()))
    weight = noise_weight("debias", snr)
    assert float(weight[999]) == pytest.approx(20291.2, rel=1e-5)
    assert float(weight[999] / weight.sum()) == pytest.approx(0.8179, abs=1e-4)
    for name in ("debias", "truncated_snr", "edm"):
        with pytest.raises(InputError, match="max_weight=10"):
            timestep_weights(schedule(alphas=cosine_alphas()), name)
    capped = raw("debias", alphas=cosine_alphas(), max_weight=10)
    assert int(torch.isclose(capped, torch.tensor(10.0).double()).sum()) == 64
    assert float(capped.mean()) == pytest.approx(2.12499, rel=1e-5)
    velocity = raw("debias", "v_prediction", cosine_alphas())
    assert float(velocity[999]) == pytest.approx(4.9e-5, rel=0.02)


@pytest.mark.parametrize("name", SHAPES)
def test_without_terminal_signal_noise_raises_and_the_rest_is_exact(name):
    with pytest.raises(InputError, match="zero terminal SNR"):
        timestep_weights(schedule(alphas=silent_alphas()), name)
    last = {"truncated_snr": 1.0, "edm": 4.0}.get(name, 0.0)
    for kind in ("sample", "v_prediction"):
        weight = raw(name, kind, silent_alphas())
        assert float(weight[999]) == last
        assert bool((weight[:999] > 0).all())
        assert weight_summary(weight)["untrained_timesteps"] == (last == 0)


def test_native_needs_no_table():
    for kind in KINDS:
        assert bool((timestep_weights(schedule(kind, silent_alphas()), "native") == 1).all())


@pytest.mark.parametrize(
    ("name", "kind", "alphas", "cap"),
    [
        *itertools.product(
            WEIGHTINGS,
            KINDS,
            (linear_alphas, scaled_linear_alphas, cosine_alphas, silent_alphas),
            (0.0, 10.0),
        )
    ],
)
def test_no_weight_is_infinite_or_undefined(name, kind, alphas, cap):
    for normalise in (False, True):
        try:
            weight = timestep_weights(
                schedule(kind, alphas()), name, max_weight=cap, normalise=normalise
            )
        except InputError:
            assert kind == "epsilon"
            assert alphas in (cosine_alphas, silent_alphas)
            continue
        assert weight.dtype == torch.float64
        assert bool(torch.isfinite(weight).all())
        assert bool((weight >= 0).all())
        assert bool(torch.isfinite(weight.float()).all())


def test_an_infinite_weight_is_refused():
    with pytest.raises(InputError, match="isn't finite"):
        raw("p2", "sample", silent_alphas(), p2_k=0, p2_gamma=1.5)
    with pytest.raises(ContractError, match="unknown weighting"):
        raw("uniform")


# 7. The gradient


def test_gradient_of_the_weighted_loss():
    weights = raw("debias")
    t = torch.tensor([0, 999, 300])
    draws = torch.Generator().manual_seed(0)
    x, residual, target = torch.randn(3, 3, 2, 4, 4, generator=draws)
    residual[:] = residual[:1]  # equal residuals in all rows
    value = (target + residual).requires_grad_(True)
    one = torch.ones(1)
    error = squared_error(Prediction(x, one, one, "epsilon", value), target)
    (weights[t] * error).mean().backward()
    size = 2 * 4 * 4 * 3
    wanted = weights[t].reshape(-1, 1, 1, 1) * 2 * (value - target).detach() / size
    assert torch.allclose(value.grad.double(), wanted.double(), rtol=1e-5)
    norm = value.grad.double().flatten(1).norm(dim=1)
    assert float(norm[1] / norm[0]) == pytest.approx(15739.94, rel=1e-4)


# 9. Balance of what can't be learned


@pytest.mark.parametrize(("std", "peak", "t"), [(1.0, 0.5, 258), (0.5, 0.25, 144)])
def test_debias_bounds_the_part_of_the_loss_that_no_network_lowers(std, peak, t):
    irreducible = std**2 * LINEAR / (1 + std**2 * LINEAR)
    weighted = raw("debias") * irreducible
    assert float(weighted.max()) == pytest.approx(peak, rel=1e-4)
    assert float(weighted.max()) <= std / 2 + 1e-12
    assert int(weighted.argmax()) == t
    assert max(float(weighted[0]), float(weighted[999])) < 0.04 * peak
    # That the formula is the error of the best denoiser: the exact one, by simulation.
    mixture = GaussianMixture(torch.zeros(1, 3, 8, 8), (1.0,), std)
    table = mixture.schedule
    draws = torch.Generator().manual_seed(0)
    for time in (30, 250, 700):
        clean = std * torch.randn((200, 3, 8, 8), generator=draws)
        noise = torch.randn((200, 3, 8, 8), generator=draws)
        with torch.enable_grad():  # a batch of any size
            seen = mixture.predict(table.add_noise(clean, noise, time), time, None).noise
        snr = float(table.snr(time))
        wanted = std**2 * snr / (1 + std**2 * snr)
        assert float((seen - noise).square().mean()) == pytest.approx(wanted, rel=0.03)


# 12. The sampling grid


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_a_short_trajectory_begins_at_the_noisiest_timestep(spacing):
    for steps in (5, 10, 20, 25):
        assert schedule().timesteps(steps, spacing)[0] == 999
    library = DDIMScheduler()
    library.set_timesteps(20)
    assert int(library.timesteps[0]) == 950  # what the library's default would skip
