"""What distribution guidance is bound to hold, from its formulas to whole batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn import functional

from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import Request, SamplingConfig
from fairbench.core.task import Prompt
from fairbench.datasets.cartoonfaces import DATASET
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.diffusion.schedule import Prediction, Schedule
from fairbench.methods import make_method
from fairbench.methods.distribution_guidance import DistributionGuidance
from fairbench.methods.parts import bottleneck as _bottleneck
from fairbench.methods.parts.bottleneck import Heads, fit_head, invert, record_trajectories
from fairbench.methods.parts.distribution_guidance import (
    CoupledSampler,
    Goal,
    Guide,
    SplitPrediction,
    capped,
    distance,
    distribution_gradient,
    groupings_of,
    newton_size,
    paper_size,
)
from fairbench.metrics.fairness import discrepancy_of_shares

QUICK = {"classifier_steps": 2, "trajectories": 12, "batch": 4, "weight_decay": 0.01}
FIXTURE = (
    torch.tensor([[-2.0, 0], [-1, 0], [-1, 0], [0, 0]], dtype=torch.float64),
    torch.tensor([[0.0, 0], [1, 0]], dtype=torch.float64),
    torch.zeros(2, dtype=torch.float64),
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def draws(seed):
    return torch.Generator().manual_seed(seed)


def random_case(seed, n=5, d=7, k=3):
    g = draws(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    target = torch.rand(k, generator=g, dtype=torch.float64) + 0.1
    return normal(n, d), normal(k, d), normal(k), target / target.sum()


def shares(h, weight, bias, tau=1.0):
    return ((h @ weight.T + bias) / tau).softmax(1).mean(0)


def make_heads(times, groups, size, seed=0, scale=0.3):
    g = draws(seed)
    shape = (len(times), groups, size)
    return Heads(
        tuple(times),
        scale * torch.randn(shape, generator=g),
        torch.zeros(len(times), groups),
        torch.randn(shape, generator=g),
        torch.ones(len(times)),
        np.full((1, groups), 1 / groups),
    )


@pytest.fixture
def requests():
    return [Request(Prompt(""), 0, i, 0) for i in range(4)]


@pytest.fixture
def make_sampler(make_unconditional, make_preparation):
    """A guided sampler with random heads on a random unconditional backbone, 16 x 2 x 2 h."""

    def make(backbone=None, target=(0.9, 0.1), steps=3, eta=0.0, groups=2, **changes):
        backbone = make_unconditional() if backbone is None else backbone
        preparation = make_preparation(sampling=SamplingConfig(steps, 1.0, eta))
        times = backbone.schedule.timesteps(steps, "trailing")
        heads = make_heads(times, groups, 64)
        method = DistributionGuidance(**{**QUICK, **changes})
        goal = Goal("gender", {"cond": heads}, torch.tensor(target))
        return CoupledSampler(backbone, preparation, method, [goal], {})

    return make


# 1. Losses


@pytest.mark.parametrize(
    ("p", "r", "chi2", "kl", "discrepancy"),
    [
        ((0.7, 0.3), (0.5, 0.5), 0.16, 0.082283, 0.282843),
        ((0.5, 0.5), (0.8, 0.2), 0.5625, 0.223144, 0.424264),
        ((0.7, 0.1, 0.1, 0.1), (0.25,) * 4, 1.08, 0.445846, 0.519615),
    ],
)
def test_losses(p, r, chi2, kl, discrepancy):
    assert discrepancy_of_shares(p, r) == pytest.approx(discrepancy, abs=1e-6)
    assert float(distance(tensor(*p), tensor(*r), "chi2")) == pytest.approx(chi2, abs=1e-6)
    assert float(distance(tensor(*p), tensor(*r), "kl")) == pytest.approx(kl, abs=1e-6)


def test_a_wanted_share_of_nothing_gives_finite_steps():
    h, weight, bias, _ = random_case(0)
    for loss in ("chi2", "kl"):
        _, _, gradient = distribution_gradient(h, weight, bias, tensor(1, 0, 0), 1.0, loss)
        assert torch.isfinite(gradient).all()


# 2. Gradient


@pytest.mark.parametrize("loss", ["chi2", "kl"])
@pytest.mark.parametrize("tau", [1.0, 8.0])
@pytest.mark.parametrize("groups", [2, 3, 8])
def test_gradient_is_that_of_autograd(loss, tau, groups):
    for seed in range(5):
        h, weight, bias, target = random_case(seed, k=groups)
        leaf = h.clone().requires_grad_(True)
        distance(shares(leaf, weight, bias, tau), target, loss).backward()
        _, _, gradient = distribution_gradient(h, weight, bias, target, tau, loss)
        torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("loss", ["chi2", "kl"])
def test_gradient_of_two_groups_is_the_closed_form(loss):
    for seed, m in enumerate((0.2, 0.5, 0.9)):
        h, weight, bias, _ = random_case(seed, k=2)
        tau = 1.0 + seed
        pi = ((h @ weight.T + bias) / tau).softmax(1)[:, 1]
        p, dw = pi.mean(), weight[1] - weight[0]
        if loss == "chi2":
            factor = 2 * (p - m) / (m * (1 - m))
        else:
            factor = torch.log(p * (1 - m) / ((1 - p) * m))
        expected = factor * (pi * (1 - pi))[:, None] * dw / (len(h) * tau)
        _, _, gradient = distribution_gradient(h, weight, bias, tensor(1 - m, m), tau, loss)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


def test_gradient_of_the_card_fixture():
    h, weight, bias = FIXTURE
    half = tensor(0.5, 0.5)
    pi, _, gradient = distribution_gradient(h, weight, bias, half, 1.0, "chi2")
    assert float(pi[:, 1].mean()) == pytest.approx(0.2892714, abs=1e-7)
    assert float(distance(pi.mean(0), half, "chi2")) == pytest.approx(0.1776261, abs=1e-7)
    expected = tensor(-0.044250, -0.082863, -0.082863, -0.105364)
    torch.testing.assert_close(gradient[:, 0], expected, rtol=0, atol=1e-6)
    assert (gradient[:, 1] == 0).all()


# 3. Newton step


@pytest.mark.parametrize(
    ("m", "tau", "before", "size", "part", "after"),
    [
        (0.5, 1.0, 0.2892714, 13.259420, 1.0, 0.51169),
        (0.5, 1.0, 0.2892714, 13.259420, 0.1, 0.310635),
        (0.2, 1.0, 0.2892714, 8.486029, 1.0, 0.206739),
        (0.5, 8.0, 0.468851, 517.988, 1.0, 0.500080),
    ],
)
def test_newton_step_of_the_card_fixture(m, tau, before, size, part, after):
    h, weight, bias = FIXTURE
    target = tensor(1 - m, m)
    pi, by_logits, gradient = distribution_gradient(h, weight, bias, target, tau, "chi2")
    found = newton_size(pi, by_logits, weight, target, tau)
    assert float(pi[:, 1].mean()) == pytest.approx(before, abs=1e-6)
    assert float(found) == pytest.approx(size, rel=1e-5)
    moved = shares(h - part * found * gradient, weight, bias, tau)
    assert float(moved[1]) == pytest.approx(after, abs=1e-5)


def test_newton_step_of_two_groups_is_the_closed_form():
    for seed, m in enumerate((0.3, 0.5)):
        h, weight, bias, _ = random_case(seed, k=2)
        tau = 1.0 + seed
        target = tensor(1 - m, m)
        pi, by_logits, _ = distribution_gradient(h, weight, bias, target, tau, "chi2")
        dw = weight[1] - weight[0]
        spread = (pi[:, 1] * pi[:, 0]).square().mean()
        expected = m * (1 - m) * len(h) * tau**2 / (2 * dw.square().sum() * spread)
        found = newton_size(pi, by_logits, weight, target, tau)
        assert float(found) == pytest.approx(float(expected), rel=1e-10)


def test_newton_step_minimises_the_linearised_loss_of_many_groups():
    h, weight, bias, target = random_case(4, k=4)
    for loss in ("chi2", "kl"):
        pi, by_logits, gradient = distribution_gradient(h, weight, bias, target, 1.0, loss)
        size = float(newton_size(pi, by_logits, weight, target, 1.0))
        jacobian = torch.autograd.functional.jacobian(lambda x: shares(x, weight, bias), h)
        q = (jacobian * gradient).sum((1, 2))
        around = [
            float(distance(pi.mean(0) - s * q, target, "chi2"))
            for s in (0.99 * size, size, 1.01 * size)
        ]
        assert around[1] < min(around[0], around[2])


def test_newton_step_is_zero_where_nothing_moves():
    h, weight, bias, target = random_case(0)
    pi, by_logits, _ = distribution_gradient(h, 0 * weight, bias, target, 1.0, "chi2")
    assert float(newton_size(pi, by_logits, 0 * weight, target, 1.0)) == 0


def test_softening_changes_who_moves_and_not_where_it_ends():
    h, weight, bias, _ = random_case(3, n=6, k=2)
    target = shares(h, weight, bias)
    _, _, at_goal = distribution_gradient(h, weight, bias, target, 1.0, "chi2", 4.0)
    assert at_goal.abs().max() < 1e-15
    half, far = tensor(0.5, 0.5), 8 * h
    pi, _, plain = distribution_gradient(far, weight, bias, half, 1.0, "chi2")
    same, by_logits, soft = distribution_gradient(far, weight, bias, half, 1.0, "chi2", 4.0)
    assert torch.equal(pi, same)

    def evenness(gradient):
        length = gradient.norm(dim=1)
        return float(length.min() / length.max())

    assert evenness(soft) > 10 * evenness(plain)
    size = newton_size(pi, by_logits, weight, half, 1.0)
    jacobian = torch.autograd.functional.jacobian(lambda x: shares(x, weight, bias), far)
    q = (jacobian * soft).sum((1, 2))
    torch.testing.assert_close(pi.mean(0) - size * q, half)  # to first order, exactly there


# 4. Direction


@pytest.mark.parametrize("loss", ["chi2", "kl"])
@pytest.mark.parametrize("tau", [1.0, 8.0])
def test_two_groups_are_pushed_along_one_line(loss, tau):
    h, weight, bias, _ = random_case(1, n=6, k=2)
    dw = weight[1] - weight[0]
    for target in (tensor(0.9, 0.1), tensor(0.1, 0.9)):
        pi, _, gradient = distribution_gradient(h, weight, bias, target, tau, loss)
        cosine = functional.cosine_similarity(gradient, dw[None], dim=1)
        sign = torch.sign(pi[:, 1].mean() - target[1])
        torch.testing.assert_close(cosine, sign.expand(6), rtol=0, atol=1e-12)
        length, spread = gradient.norm(dim=1), pi[:, 0] * pi[:, 1]
        torch.testing.assert_close(length / length[0], spread / spread[0])


# 5. Batch laws


@pytest.mark.parametrize("loss", ["chi2", "kl"])
def test_batch_laws(loss):
    h, weight, bias, target = random_case(2, n=6)
    _, _, gradient = distribution_gradient(h, weight, bias, target, 1.0, loss)
    _, _, twice = distribution_gradient(torch.cat([h, h]), weight, bias, target, 1.0, loss)
    expected = torch.cat([gradient, gradient]) / 2
    torch.testing.assert_close(twice, expected, rtol=1e-12, atol=1e-15)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    _, _, mixed = distribution_gradient(h[order], weight, bias, target, 1.0, loss)
    torch.testing.assert_close(mixed, gradient[order], rtol=1e-12, atol=1e-15)
    reached = shares(h, weight, bias)
    _, _, none = distribution_gradient(h, weight, bias, reached, 1.0, loss)
    assert none.abs().max() < 1e-15


@pytest.mark.parametrize("loss", ["chi2", "kl"])
def test_a_batch_of_one_rests_at_a_half_alone(loss):
    _, weight, bias = FIXTURE
    for x in (-6.0, -2.0, -0.1, 0.0, 0.1, 2.0, 6.0):
        _, _, gradient = distribution_gradient(
            tensor(x, 0)[None], weight, bias, tensor(0.5, 0.5), 1.0, loss
        )
        assert np.sign(float(gradient[0, 0])) == np.sign(x)


# The other rules


def test_paper_rule_follows_beta():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule = Schedule(torch.cumprod(1 - betas, 0), "epsilon")
    assert paper_size(schedule, 0, 1.0) == pytest.approx(300 * 0.946, rel=1e-3)
    assert paper_size(schedule, 999, 1500) == pytest.approx(300 * 1500 * 1.234, rel=1e-3)


def test_cap_shortens_long_rows_only():
    h, step = 2 * torch.eye(3), torch.diag(torch.tensor([0.1, 1.0, -5.0]))
    expected = torch.diag(torch.tensor([0.1, 0.4, -0.4]))
    torch.testing.assert_close(capped(step, h, 0.2), expected)
    assert torch.equal(capped(step, h, 0), step)


# 6. No-op and cost


def latents_of(sampler, requests):
    """(B, C, h, w) what the sampler hands to the decoder."""
    decode, kept = sampler.backbone.decode, []
    sampler.backbone.decode = lambda latents: (kept.append(latents.clone()), decode(latents))[1]
    sampler(requests)
    sampler.backbone.decode = decode
    (found,) = kept
    return found[: len(requests)]


NOTHING = [
    {"newton": 0.0},
    {"newton": 0.0, "asymmetric": True},
    {"step_rule": "paper", "scale": 0.0},
    {"skip_first": 3},
    {"skip_last": 9},
]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("nothing", NOTHING)
def test_without_a_step_the_latents_are_those_of_vanilla(
    kind, nothing, make_unconditional, make_sampler, requests
):
    backbone = make_unconditional(kind)
    sampler = make_sampler(backbone, **nothing)
    plain = latents_of(DDIMSampler(backbone, sampler.config), requests)
    assert torch.equal(latents_of(sampler, requests), plain)
    assert not torch.equal(latents_of(make_sampler(backbone), requests), plain)


@pytest.mark.parametrize("nothing", NOTHING)
def test_without_a_step_guidance_by_prompts_is_vanilla_s(
    nothing, make_text_unet, make_preparation
):
    backbone = make_text_unet()
    preparation = make_preparation(sampling=SamplingConfig(3, 3.0))
    heads = make_heads(backbone.schedule.timesteps(3, "trailing"), 2, 64)
    requests = [Request(Prompt("person", template="a photo of {}"), 0, i, 0) for i in range(4)]
    plain = latents_of(DDIMSampler(backbone, preparation.sampling), requests)
    made = []
    for changes in (nothing, {}):
        method = DistributionGuidance(**{**QUICK, "branch": "both", **changes})
        goal = Goal("gender", {"cond": heads, "uncond": heads}, torch.tensor((0.9, 0.1)))
        sampler = CoupledSampler(backbone, preparation, method, [goal], {})
        made.append(latents_of(sampler, requests))
    assert torch.equal(made[0], plain)
    assert not torch.equal(made[1], plain)


def test_hooks_are_gone_afterwards(make_sampler, requests, monkeypatch):
    sampler = make_sampler()

    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(Guide, "step", fail)
    with pytest.raises(ZeroDivisionError):
        sampler(requests)
    modules = list(sampler.backbone.unet.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


@pytest.mark.parametrize(("asymmetric", "calls"), [(False, 3), (True, 6)])
def test_network_calls_and_no_gradient(asymmetric, calls, make_sampler, requests):
    sampler = make_sampler(asymmetric=asymmetric)
    network, seen = sampler.backbone._network, []
    sampler.backbone._network = lambda *a: (seen.append(torch.is_grad_enabled()), network(*a))[1]
    assert sampler(requests).network_calls.tolist() == [calls] * 4
    assert seen == [False] * calls
    assert all(p.grad is None for p in sampler.backbone.unet.parameters())


def test_a_batch_too_large_for_a_network_call_is_refused(make_sampler, requests):
    with pytest.raises(InputError, match="lower --param batch"):
        make_sampler(batch=5)(requests)


def test_it_is_refused_before_anything_is_learned(
    make_unconditional, make_task, make_preparation, data
):
    method = DistributionGuidance(**QUICK | {"batch": 5})
    preparation = make_preparation()
    with pytest.raises(InputError, match="lower --param batch"):
        method.prepare(make_task(), make_unconditional(), data, preparation)
    assert not list(preparation.cache.rglob("*.*"))


# 7. Timesteps


def test_every_step_is_logged_and_the_noisiest_left_alone(make_sampler, requests):
    sampler = make_sampler(steps=5, skip_first=1)
    samples = sampler(requests)
    found = samples.diagnostics
    assert found["p_hat gender cond"].shape == (len(requests), 5, 2)
    assert found["relative cond"].shape == (len(requests), 5)
    assert np.array_equal(found["relative cond"] > 0, [[False] + [True] * 4] * len(requests))
    seen = sampler.observed({**found, "batch_id": samples.batch_id})["guidance"]
    assert seen["batches"] == 1
    assert seen["timesteps"] == [999, 799, 599, 399, 199]
    assert np.shape(seen["p_hat gender cond"]) == (5, 2)
    assert seen["relative cond"][0] == 0 < min(seen["relative cond"][1:])
    assert max(seen["relative cond"]) <= sampler.method.max_rel + 1e-3


def test_49_of_50_steps_are_guided_and_logged(make_sampler, requests):
    sampler = make_sampler(steps=50)
    assert list(sampler.guided_times) == list(sampler.times)[1:]
    assert (sampler.times[0], sampler.times[1]) == (999, 979)
    pushed = sampler(requests).diagnostics["relative cond"] > 0
    assert np.array_equal(pushed, [[False] + [True] * 49] * len(requests))


def test_the_evenly_spaced_grid_is_the_released_one_but_for_its_rounding(make_unconditional):
    """The release cuts fractions of 999 / 49 off; ours are rounded, as diffusers' grids are."""
    released = [int(k * 999 / 49) for k in range(50)]
    assert released[:10] == [0, 20, 40, 61, 81, 101, 122, 142, 163, 183]
    assert released[-3:] == [958, 978, 999]
    ours = make_unconditional().schedule.timesteps(50, "linspace")[::-1]
    assert [t - then for t, then in zip(ours, released, strict=True)] == [
        round(k * 999 / 49 % 1) for k in range(50)
    ]
    scheduler = DDIMScheduler(1000, timestep_spacing="linspace")
    scheduler.set_timesteps(50)
    assert ours == scheduler.timesteps.tolist()[::-1]


def test_a_timestep_without_head_is_an_error():
    heads = make_heads([999, 499], 2, 4)
    assert heads.index(499) == 1
    with pytest.raises(ContractError, match="a head at timestep 500"):
        heads.logits(torch.zeros(1, 4, 1, 1), 500)


# 8. Several attributes


def test_marginals_are_summed_at_the_same_h():
    times, h = [9], torch.randn((5, 6), generator=draws(5), dtype=torch.float64)
    goals = [
        Goal("a", {"cond": make_heads(times, 2, 6, seed=1)}, tensor(0.5, 0.5)),
        Goal("b", {"cond": make_heads(times, 3, 6, seed=2)}, tensor(0.2, 0.3, 0.5)),
    ]
    for rule in ("newton", "paper"):
        scale = {"scale": 1e-2} if rule == "paper" else {}
        method = DistributionGuidance(step_rule=rule, softening=2.0, max_rel=0.0, **scale)
        schedule = Schedule(torch.linspace(0.99, 0.01, 10, dtype=torch.float64), "epsilon")

        def step(some, method=method, schedule=schedule):
            return Guide(method, some, schedule, times, 5).step(h, 9, "cond")[0]

        torch.testing.assert_close(
            step(goals), step(goals[:1]) + step(goals[1:]), rtol=0, atol=1e-10
        )


def test_targets_of_joint_cells_and_marginals(make_task):
    target = (0.3, 0.1, 0.1, 0.2, 0.2, 0.1)
    task = make_task("gender", "race", target=target)
    assert groupings_of(task, True) == {"gender/race": list(target)}
    marginals = groupings_of(task, False)
    assert marginals["gender"] == pytest.approx([0.5, 0.5])
    assert marginals["race"] == pytest.approx([0.5, 0.3, 0.2])


# Steering, the sampler and its branches


def test_guidance_moves_predicted_shares_towards_any_target(make_sampler, requests):
    last = {}
    for wanted in (0.1, 0.5, 0.9):
        sampler = make_sampler(target=(1 - wanted, wanted), steps=6)
        last[wanted] = sampler(requests).diagnostics["p_hat gender cond"][0, -1, 1]
    assert last[0.1] < last[0.5] < last[0.9]


def test_the_sampler_s_own_eta_is_followed(make_sampler, requests):
    backbone = make_sampler().backbone
    images = {}
    for eta in (0.0, 1.0):
        sampler = make_sampler(backbone, eta=eta, newton=0.0)
        plain = DDIMSampler(backbone, SamplingConfig(3, 1.0, eta))
        images[eta] = sampler(requests).images
        assert np.array_equal(images[eta], plain(requests).images)
    assert not np.array_equal(images[0.0], images[1.0])


def test_split_prediction_edits_the_clean_image_alone():
    g = draws(0)
    x, one, other = (torch.randn((2, 3, 2, 2), generator=g) for _ in range(3))
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8)
    plain = Prediction(x, alpha, sigma, "v_prediction", one)
    edited = Prediction(x, alpha, sigma, "v_prediction", other)
    split = SplitPrediction(x, alpha, sigma, "v_prediction", other, plain)
    for bound in (None, 0.5):
        assert torch.equal(split.clipped(bound).clean, edited.clipped(bound).clean)
        assert torch.equal(split.clipped(bound).noise, plain.clipped(bound).noise)


@pytest.mark.parametrize("branch", ["cond", "both"])
def test_branches_of_guidance_are_edited_as_told(
    branch, make_mixture, make_task, make_preparation, data
):
    method = DistributionGuidance(**QUICK, branch=branch, skip_first=0)
    backbone = make_mixture()
    sampler = method.prepare(make_task(), backbone, data, make_preparation())
    request = Request(Prompt("person", template="a photo of {}"), 0, 0, 0)
    samples = sampler([request])
    expected = {"cond": {"cond"}, "both": {"cond", "uncond"}}[branch]
    assert samples.diagnostics.keys() == {
        name for one in expected for name in (f"p_hat gender {one}", f"relative {one}")
    }
    assert set(sampler.goals[0].heads) == expected
    assert samples.network_calls.tolist() == [4]  # 2 steps, 2 branches


# Heads


def test_record_keeps_h_and_leaves_the_images_alone(make_unconditional, requests):
    backbone, config = make_unconditional(), SamplingConfig(3, 1.0)
    h, images = record_trajectories(backbone, config, requests[:3], ["cond"])
    assert np.array_equal(images, DDIMSampler(backbone, config)(requests[:3]).images)
    assert h["cond"].shape == (3, 3, 64)
    caught = []
    with torch.no_grad(), backbone.edit_bottleneck(lambda x, t: (caught.append(x), x)[1]):
        start = record_noise(backbone, requests[:3])
        backbone.predict(start, 999, None)
    np.testing.assert_allclose(h["cond"][:, 0], caught[0][:3].flatten(1), rtol=2e-3, atol=2e-3)


def record_noise(backbone, requests):
    from fairbench.diffusion.sampling import Stream, gaussian, generator

    generators = [generator(request, Stream.INITIAL_NOISE) for request in requests]
    return gaussian(generators, backbone.latent_shape, backbone.device)


def test_inversion_starts_at_the_image_and_comes_back_in_sampling_order(make_unconditional, data):
    backbone, config = make_unconditional(), SamplingConfig(4, 1.0)
    images = data.reference.images[:2]
    h = invert(backbone, config, images, ["", ""], ["cond"])["cond"]
    caught = []
    with torch.no_grad(), backbone.edit_bottleneck(lambda x, t: (caught.append(x), x)[1]):
        backbone.predict(backbone.encode(images), 249, None)
    np.testing.assert_allclose(h[:, -1], caught[0][:2].flatten(1), rtol=2e-3, atol=2e-3)


def two_clusters(n=400, d=10, rare=0.1, gap=3.0, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) >= rare).astype(np.int64)
    h = rng.standard_normal((n, d))
    h[:, 0] += gap * (y - 0.5)
    return torch.from_numpy(h), torch.from_numpy(y)


def test_a_head_finds_the_line_and_the_natural_shares():
    h, y = two_clusters(n=2000)
    head = fit_head(h, y, 2)
    direction = head.weight[1] - head.weight[0]
    assert float(functional.cosine_similarity(direction, torch.eye(10)[0].double(), 0)) > 0.95
    # Bayes: d log odds / dx = gap for unit variances.
    assert float(direction[0]) == pytest.approx(3.0, rel=0.3)
    again, _ = two_clusters(n=4000, seed=1)
    mean = shares(again, head.weight, head.bias)
    assert float(mean[0]) == pytest.approx(0.1, abs=0.02)
    # Bayes' accuracy with known groups of equal size is Phi(gap / 2) = 0.933.
    assert head.balanced_accuracy == pytest.approx(0.933, abs=0.04)


def test_a_head_of_unreadable_features_says_the_natural_shares():
    rng = np.random.default_rng(0)
    h, y = torch.from_numpy(rng.standard_normal((500, 300))), two_clusters(500, rare=0.2)[1]
    head = fit_head(h, y, 2)
    found = ((h @ head.weight.T) + head.bias).softmax(1)
    assert float(found[:, 0].mean()) == pytest.approx(float((y == 0).double().mean()), abs=0.05)
    assert head.balanced_accuracy == pytest.approx(0.5, abs=0.15)


def test_a_head_copes_with_a_group_without_images():
    h, y = two_clusters(60)
    head = fit_head(h, y, 3)
    assert torch.isfinite(head.weight).all()
    assert float(shares(h, head.weight, head.bias)[2]) < 0.05


def test_heads_are_cached_and_resumed(
    make_unconditional, make_task, make_preparation, data, tmp_path, monkeypatch
):
    method, backbone, task = DistributionGuidance(**QUICK), make_unconditional(), make_task()
    made, real = [], _bottleneck.record_trajectories

    def counted(*args, fail_at=None):
        if len(made) == fail_at:
            raise KeyboardInterrupt
        made.append(len(args[2]))
        return real(*args)

    monkeypatch.setattr(_bottleneck, "record_trajectories", lambda *a: counted(*a, fail_at=2))
    with pytest.raises(KeyboardInterrupt):
        method.prepare(task, backbone, data, make_preparation())
    monkeypatch.setattr(_bottleneck, "record_trajectories", counted)
    first = method.prepare(task, backbone, data, make_preparation())
    assert made == [4, 4, 4]  # 12 trajectories, the first two batches not made again
    second = method.prepare(task, backbone, data, make_preparation())
    assert made == [4, 4, 4]
    one, two = (sampler.goals[0].heads["cond"] for sampler in (first, second))
    assert torch.equal(one.weight, two.weight)
    assert first.facts == second.facts
    assert not list(tmp_path.rglob("*.part-*"))
    # Another seed, another number of steps: other heads.
    method.prepare(task, backbone, data, make_preparation(seed=1))
    assert len(made) == 6


def test_facts_say_what_was_learned(make_unconditional, make_task, make_preparation, data):
    method = DistributionGuidance(**QUICK)
    sampler = method.prepare(
        make_task("gender", "race"), make_unconditional(), data, make_preparation()
    )
    seen = sampler.facts["bottleneck"]
    (heads,) = seen["heads"].values()
    assert list(seen["heads"]) == ["gender/race cond"]
    assert sum(heads["images"]) == 12
    assert len(heads["images"]) == 6
    assert len(heads["held_out_accuracy"]) == len(seen["timesteps"]) == 2
    assert set(sampler.facts["classifier"]["held_out_accuracy"]) == {"gender", "race"}
    assert sampler.extra_parameters == 2 * 6 * 65
    assert sampler.facts["training_seconds"] == pytest.approx(
        seen["seconds"] + sampler.facts["classifier"]["seconds"]
    )


@pytest.mark.parametrize("features", ["trajectory", "inversion"])
def test_real_pipelines_are_guided(features, make_text_unet, make_task, make_preparation, data):
    for kind in ("epsilon", "v_prediction"):
        method = DistributionGuidance(**QUICK, features=features, branch="both", skip_first=0)
        backbone = make_text_unet(kind)
        sampler = method.prepare(make_task("gender"), backbone, data, make_preparation())
        samples = sampler([Request(Prompt("person", template="a photo of {}"), 0, 0, 0)])
        assert samples.images.shape == (1, 4, 4, 3)
        # The barely trained classifier may see one group in all trajectories, which says nothing.
        if features == "inversion":
            assert samples.diagnostics["relative cond"].min() > 0


def test_a_unet_without_middle_block_is_refused(backbone, make_task, make_preparation, data):
    with pytest.raises(InputError, match="middle block"):
        DistributionGuidance(**QUICK).prepare(make_task(), backbone, data, make_preparation())


def test_preset_of_the_release():
    method, _ = make_method("distribution_guidance", ["preset=as_released"])
    assert (method.temperature, method.step_rule, method.features) == (8, "paper", "inversion")
    assert method.max_rel == 0


def test_marginal_guidance_has_a_goal_an_attribute(
    make_unconditional, make_task, make_preparation, data, requests
):
    method = DistributionGuidance(**QUICK, joint=False)
    sampler = method.prepare(
        make_task("gender", "race"), make_unconditional(), data, make_preparation()
    )
    assert [goal.name for goal in sampler.goals] == ["gender", "race"]
    assert sampler(requests).diagnostics.keys() == {
        "p_hat gender cond",
        "p_hat race cond",
        "relative cond",
    }


@pytest.mark.parametrize(("loss", "eta"), [("chi2", 0.0), ("kl", 0.0), ("chi2", 1.0)])
def test_guidance_reaches_the_target_on_a_mixture_of_two_groups(
    loss, eta, make_mixture, make_task, make_preparation, data
):
    """On an exact denoiser with oracle heads.

    Its bottleneck is the log posterior of the groups, so that the right heads are known.
    """
    backbone, config = make_mixture(), SamplingConfig(10, 1.0, eta)
    backbone.network_batch = 64
    times = backbone.schedule.timesteps(10, "trailing")
    eye = torch.eye(2).expand(len(times), 2, 2)
    heads = Heads(
        tuple(times), eye, torch.zeros(len(times), 2), eye, torch.ones(len(times)), np.eye(2)
    )
    preparation = make_preparation(sampling=config)
    found = {}
    for wanted in (None, 0.5, 0.8):
        method = DistributionGuidance(
            loss=loss,
            newton=0.0 if wanted is None else 1.0,
            softening=1.0,
            max_rel=0.0,
            skip_first=0,
        )
        target = torch.tensor([wanted or 0.5, 1 - (wanted or 0.5)])
        goal = Goal("gender", {"cond": heads}, target)
        sampler = CoupledSampler(backbone, preparation, method, [goal], {})
        images = sampler(
            [Request(Prompt("person", template="a photo of {}"), 0, i, 0) for i in range(64)]
        ).images
        found[wanted] = float((images.mean((1, 2, 3)) < 127).mean())
    assert found[None] < 0.25
    # Fresh noise after the last guided steps moves images again.
    near = 0.1 if eta == 0 else 0.2
    assert found[0.5] == pytest.approx(0.5, abs=near)
    assert found[0.8] == pytest.approx(0.8, abs=near)


def test_configured_card_is_the_method_s():
    method = DistributionGuidance()
    assert method.configured_card() == method.card
    assert method.card.role == "method"
    assert method.card.ranked
    assert method.card.batch_coupled


# 10. Integration


@pytest.mark.slow
def test_distribution_guidance_on_a_shipped_backbone(tmp_path):
    """Shares follow the target in either direction; what isn't steered stays.

    With the card's cap on a step, 0.3, though not with its batches of 100: a network call has 64.
    """
    from fairbench.backbones.base import load_backbone
    from fairbench.core.method import Preparation
    from fairbench.datasets.base import get_dataset
    from fairbench.instruments.measuring import load_instruments
    from fairbench.runs.generation import training_data

    dataset, images = get_dataset("cartoonfaces"), 320
    spec = dataset.backbone("cartoonfaces-ddpm")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(spec.name, spec.folder, device=device, dtype=torch.float32)
    judge = load_instruments(str(device), DATASET.instruments()).judges[0]
    preparation = Preparation(0, spec.sampling, (images,), tmp_path, lambda *_: None)
    data = training_data(dataset, DistributionGuidance.card)
    female, race, last = {}, {}, {}
    for wanted in (None, 0.2, 0.8):
        task = dataset.task("gender", conditional=False)
        if wanted is not None:
            task = task.with_target({"female": wanted, "male": 1 - wanted})
        method = DistributionGuidance(newton=0.0 if wanted is None else 10.0, max_rel=0.3)
        sampler = method.prepare(task, backbone, data, preparation)
        requests = [Request(task.prompts[0], 0, i, 0) for i in range(images)]
        batches = [sampler(b) for b in sampler.batches(requests, 64)]
        found = judge(np.concatenate([samples.images for samples in batches]))
        female[wanted] = float((found["gender"].argmax(1) == 0).mean())
        race[wanted] = np.bincount(found["race"].argmax(1), minlength=4) / images
        shares = [samples.diagnostics["p_hat gender cond"][0, -1, 0] for samples in batches]
        last[wanted] = float(np.mean(shares))
    assert female[0.2] < female[None] < female[0.8]
    assert female[0.8] - female[0.2] >= 0.2
    for wanted in (0.2, 0.8):
        assert np.abs(race[wanted] - race[None]).max() <= 0.05, (race, wanted)
        assert abs(last[wanted] - wanted) < abs(last[None] - wanted)
    seen = sampler.facts["bottleneck"]["heads"]["gender cond"]["held_out_balanced_accuracy"]
    assert seen[-1] > 0.85
    assert seen[-1] >= seen[0]


@pytest.mark.slow
def test_heads_of_noised_real_images_know_nothing_where_noise_is_all():
    """Why heads are learned from trajectories and not from noised images."""
    from fairbench.backbones.base import load_backbone
    from fairbench.datasets.base import get_dataset
    from fairbench.runs.generation import training_data

    dataset = get_dataset("cartoonfaces")
    spec = dataset.backbone("cartoonfaces-ddpm")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(spec.name, spec.folder, device=device, dtype=torch.float32)
    seen = training_data(dataset, DistributionGuidance.card).reference
    labels = torch.from_numpy(seen.labels["gender"].astype(np.int64))
    noise = torch.randn((800, *backbone.latent_shape), generator=draws(0))
    accuracy = {}
    for t in (0, 999):
        kept = []

        def read(h, t, kept=kept):
            kept.append(h.flatten(1).cpu())
            return h

        with torch.inference_mode(), backbone.edit_bottleneck(read):
            for first in range(0, 800, 50):
                clean = backbone.encode(seen.images[first : first + 50])
                level = torch.full((50,), t, device=device)
                own = noise[first : first + 50].to(device)
                backbone.predict(backbone.schedule.add_noise(clean, own, level), t, None)
        h = torch.cat([part[:50] for part in kept])
        accuracy[t] = fit_head(h, labels, 2).accuracy
    assert accuracy[999] == pytest.approx(0.5, abs=0.07), accuracy
    assert accuracy[0] >= 0.95, accuracy
