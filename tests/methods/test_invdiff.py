"""What InvDiff is bound to hold, from its formulas to its training, and what a run rests on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import (
    ImageSet,
    Preparation,
    Request,
    SamplingConfig,
    TrainingData,
)
from fairbench.core.task import Prompt
from fairbench.datasets.cartoonfaces import DATASET
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.diffusion.training import Draws
from fairbench.methods import make_method
from fairbench.methods.balanced_data import BalancedData
from fairbench.methods.invdiff import InvDiff
from fairbench.methods.parts import (
    denoising as _denoising,
)
from fairbench.methods.parts import (
    invdiff as _invdiff,
)
from fairbench.methods.parts import (
    invdiff_groups as _invdiff_groups,
)
from fairbench.methods.parts.finetuning import NoisedImages, loss_weights
from fairbench.methods.parts.invdiff import invariant_loss, mix
from fairbench.methods.parts.invdiff_groups import (
    average_risk,
    balanced_groups,
    component_groups,
    denoising_risks,
    group_risks,
    infer_groups,
    oracle_groups,
    rare_component,
)
from fairbench.metrics import discrepancy_family
from fairbench.runs.hidden_labels import area_under_curve, hidden_label_facts

CPU = torch.device("cpu")
TRAINED = {"steps": 2, "batch": 4, "learning_rate": 0.05}
QUICK = {**TRAINED, "risk_draws": 2}
KINDS = ["epsilon", "sample", "v_prediction"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def hard(labels, groups):
    return torch.eye(groups)[torch.as_tensor(labels)]


# 1. Bias score


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((512, 0), 1.0),
        ((512, 0, 0, 0), 0.5),
        ((128,) * 4, 0.0),
        ((3, 2, 1, 1), 1 / 6),
        ((1, 2), 1 / 3),
        ((1, 8), 7 / 9),
    ],
)
def test_bias_score_is_the_pairwise_discrepancy(counts, expected):
    k, total = len(counts), sum(counts)
    pairs = [abs(counts[i] - counts[j]) / total for i in range(k) for j in range(i)]
    score = 2 / (k * (k - 1)) * sum(pairs)
    assert score == pytest.approx(expected)
    for seen in (counts, counts[::-1], [7 * count for count in counts]):
        shares = np.array(seen) / sum(seen)
        found = discrepancy_family(shares, (1 / k,) * k).pairwise
        assert found == pytest.approx(score, abs=1e-12)


# 2. Objective


def objective(risks, variance_weight):
    """The loss and its gradient by the risks of groups of one image each."""
    errors = torch.tensor(risks, dtype=torch.float64, requires_grad=True)
    loss = invariant_loss(errors, torch.eye(len(risks), dtype=torch.float64), variance_weight)
    loss.backward()
    return float(loss.detach()), errors.grad.tolist()


def test_objective_and_its_gradient():
    value, gradient = objective([0.1, 0.3], 1.0)
    assert value == pytest.approx(0.22)
    assert gradient == pytest.approx([0.3, 0.7])
    value, gradient = objective([0.1, 0.3], 0.0)
    assert value == pytest.approx(0.2)
    assert gradient == pytest.approx([0.5, 0.5])
    assert objective([0.1, 0.3], 2.49)[1][0] > 0
    assert objective([0.1, 0.3], 2.5)[1][0] == pytest.approx(0, abs=1e-12)
    assert objective([0.1, 0.3], 2.51)[1][0] < 0


def test_gradient_by_group_risks_in_general():
    risks, weight = [0.11, 0.07, 0.32, 0.2], 1.7
    mean = np.mean(risks)
    expected = [1 / 4 + 2 * weight * (risk - mean) / 3 for risk in risks]
    assert objective(risks, weight)[1] == pytest.approx(expected)


# 3. Reductions to the plain mean


@pytest.mark.parametrize(
    ("weights", "variance_weight"),
    [
        (torch.ones(12, 1), 1.0),
        (torch.full((12, 3), 1 / 3), 1.0),
        (hard([0, 1, 2] * 4, 3), 0.0),
    ],
)
def test_without_group_information_the_objective_is_the_mean(weights, variance_weight):
    errors = normal(12).square().requires_grad_(True)
    loss = invariant_loss(errors, weights, variance_weight)
    (gradient,) = torch.autograd.grad(loss, errors)
    assert float(loss.detach()) == pytest.approx(float(errors.detach().mean()), abs=1e-6)
    assert torch.allclose(gradient, torch.full((12,), 1 / 12), atol=1e-6)


def test_a_batch_with_one_group_of_many_is_its_mean():
    errors = normal(6).square().requires_grad_(True)
    loss = invariant_loss(errors, hard([3] * 6, 8), 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(errors.detach().mean()))
    assert torch.isfinite(errors.grad).all()


def test_single_group_is_the_loss_of_plain_training(make_unconditional, data):
    """ERM on the same draws, derived apart from the objective and the mixing."""
    backbone = make_unconditional()
    method = InvDiff(grouping="single", mixing="residual", r_train=1.0, **TRAINED)
    images = NoisedImages(backbone, [data.training], data.subjects)
    module = backbone.with_unet(noisy(_invdiff.narrow_module(backbone.unet, 0.5, 0)))
    found = _invdiff.guided_loss(method, backbone, module, images, torch.ones(48, 1))(
        Draws(0, 0, 0, 8, CPU)
    )
    draws = Draws(0, 0, 0, 8, CPU)
    index = draws.rng.permutation(draws.rng.choice(48, 8, replace=False))
    batch = images.draw(draws, index)
    with torch.no_grad():
        value = backbone._network(batch.x_t, batch.t, None)
        value = value + module._network(batch.x_t, batch.t, None)
    target = backbone.schedule.target(batch.clean, batch.noise, batch.t)
    assert float(found.detach()) == pytest.approx(
        float((value - target).square().mean()), rel=1e-5
    )


# 4. Invariances


def test_invariances_of_the_objective():
    errors, weights = normal(10).square(), normal(10, 3, seed=1).softmax(1)
    loss = float(invariant_loss(errors, weights, 1.3))
    order = torch.randperm(10, generator=generator())
    assert float(invariant_loss(errors, weights[:, [2, 0, 1]], 1.3)) == pytest.approx(loss)
    assert float(invariant_loss(errors[order], weights[order], 1.3)) == pytest.approx(loss)
    scaled = weights * torch.tensor([1.0, 7.0, 0.01])
    assert float(invariant_loss(errors, scaled, 1.3)) == pytest.approx(loss, abs=1e-6)


# 5. Identity at the start


def noisy(module, seed=5):
    """The module with a random output layer."""
    with torch.no_grad():
        module.conv_out.weight.copy_(normal(*module.conv_out.weight.shape, seed=seed) / 10)
    return module


@pytest.fixture
def make_case(make_backbone, make_unconditional):
    """A backbone, and (x_t, t, context) for it."""

    def make(kind, prediction_type="epsilon"):
        maker = make_backbone if kind == "unet" else make_unconditional
        backbone = maker(prediction_type=prediction_type)
        context = backbone.embed(["a photo of a person"] * 3)
        return backbone, (normal(3, 3, 4, 4), torch.tensor([900, 500, 20]), context)

    return make


@pytest.mark.parametrize("kind", ["unet", "pixels"])
def test_identity_at_the_start(kind, make_case):
    backbone, case = make_case(kind)
    with torch.no_grad():
        base = backbone.predict(*case).value
        for network in (
            _invdiff.narrow_module(backbone.unet, 0.5, 0),
            _invdiff.copied_module(backbone.unet, silent=True),
        ):
            guide = backbone.with_unet(network).predict(*case).value
            for r in (0.0, 0.2, 0.5, 0.8, 1.0, 1.5):
                assert torch.equal(mix(base, guide, "residual", r), base)
                assert torch.equal(mix(base, guide, "convex", r), (1 - r) * base)
        whole = backbone.with_unet(_invdiff.copied_module(backbone.unet)).predict(*case).value
        for r in (0.0, 0.2, 0.5, 0.8, 1.0):
            assert torch.allclose(mix(base, whole, "convex", r), base, atol=1e-6)


@pytest.mark.parametrize("kind", ["unet", "pixels"])
def test_the_narrow_module_is_small_and_of_the_same_kind(kind, make_case):
    backbone, _ = make_case(kind)
    module = _invdiff.narrow_module(backbone.unet, 0.5, 0)
    assert type(module) is type(backbone.unet)
    count = [sum(p.numel() for p in network.parameters()) for network in (module, backbone.unet)]
    assert count[0] < 0.5 * count[1]
    again = _invdiff.narrow_module(backbone.unet, 0.5, 0)
    other = _invdiff.narrow_module(backbone.unet, 0.5, 1)
    assert torch.equal(module.conv_in.weight, again.conv_in.weight)
    assert not torch.equal(module.conv_in.weight, other.conv_in.weight)
    same = _invdiff.narrow_module(backbone.unet, 1.0, 0)
    assert {k: v.shape for k, v in same.state_dict().items()} == {
        k: v.shape for k, v in backbone.unet.state_dict().items()
    }


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_half_widths_fit_stable_diffusion(name, sd_unet):
    unet = sd_unet(name)
    narrow = _invdiff._narrow_config(unet.config, 0.5)
    assert narrow["block_out_channels"] == (160, 320, 640, 640)
    with torch.device("meta"):
        module = type(unet).from_config(narrow)
        x, t = torch.zeros(1, 4, 64, 64), torch.zeros(1)
        context = torch.zeros(1, 7, unet.config.cross_attention_dim)
        assert module(x, t, encoder_hidden_states=context).sample.shape == x.shape
    share = sum(p.numel() for p in module.parameters()) / sum(p.numel() for p in unet.parameters())
    assert 0.2 < share < 0.3


@pytest.mark.parametrize("name", ["cartoonfaces-ddpm", "cartoonfaces-sd"])
def test_half_widths_of_the_shipped_backbones(name):
    from diffusers import UNet2DConditionModel, UNet2DModel

    from fairbench.datasets.base import get_dataset

    folder = get_dataset("cartoonfaces").backbone(name).folder
    config = json.loads((folder / "unet" / "config.json").read_text())
    kind = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}
    with torch.device("meta"):
        unet = kind[config["_class_name"]].from_config(config)
        module = type(unet).from_config(_invdiff._narrow_config(unet.config, 0.5))
    share = sum(p.numel() for p in module.parameters()) / sum(p.numel() for p in unet.parameters())
    assert 0.2 < share < 0.27


# 6. Frozen base and first gradients


@pytest.mark.parametrize("preset", ["lightweight", "as_released"])
@pytest.mark.parametrize("kind", ["unet", "pixels"])
def test_only_the_output_layer_of_a_silent_module_has_a_gradient_at_first(
    kind, preset, make_case, data
):
    backbone, _ = make_case(kind)
    images = NoisedImages(backbone, [data.training], data.subjects)
    method = InvDiff(**{**InvDiff.presets.get(preset, {}), **QUICK})
    if method.module == "silent_copy":
        network = _invdiff.copied_module(backbone.unet, silent=True)
    else:
        network = _invdiff.narrow_module(backbone.unet, 0.5, 0)
    loss_of = _invdiff.guided_loss(
        method, backbone, backbone.with_unet(network), images, hard([0, 1] * 24, 2)
    )
    loss_of(Draws(0, 0, 0, 8, CPU)).backward()
    moved = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"conv_out.weight", "conv_out.bias"}
    assert all(p.grad is None for p in backbone.unet.parameters())


def test_a_copy_that_is_not_silent_learns_in_all_layers_at_once(make_unconditional, data):
    backbone = make_unconditional()
    images = NoisedImages(backbone, [data.training], data.subjects)
    network = _invdiff.copied_module(backbone.unet)
    loss_of = _invdiff.guided_loss(
        InvDiff(**QUICK), backbone, backbone.with_unet(network), images, hard([0, 1] * 24, 2)
    )
    loss_of(Draws(0, 0, 0, 8, CPU)).backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    assert all(p.grad is None for p in backbone.unet.parameters())


@pytest.mark.parametrize("preset", ["", "lightweight", "as_released", "oracle_groups"])
@pytest.mark.parametrize("kind", ["unet", "pixels"])
def test_the_backbone_stays_as_it_is(kind, preset, make_case, make_task, make_preparation, data):
    backbone, _ = make_case(kind)
    before = digest(backbone.unet)
    quick = TRAINED if preset == "oracle_groups" else QUICK
    method = InvDiff(**{**InvDiff.presets.get(preset, {}), **quick})
    assert (preset == "lightweight") == (method.module == "narrow")
    sampler = method.prepare(make_task(), backbone, data, make_preparation())
    assert digest(backbone.unet) == before
    assert all(p.grad is None for p in backbone.unet.parameters())
    assert sampler.backbone.unet is backbone.unet
    assert sampler.module.unet.conv_out.weight.abs().max() > 0
    share = sampler.extra_parameters / sum(p.numel() for p in backbone.unet.parameters())
    assert sampler.facts["module_share"] == pytest.approx(share)
    assert sampler.facts["training"]["trained_parameters"] == sampler.extra_parameters
    assert json.loads(json.dumps(sampler.facts)) == sampler.facts


def digest(network):
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


def test_a_trained_module_is_loaded_as_it_was(
    make_unconditional, make_task, make_preparation, data
):
    """Zeroing the output layer belongs to the factory: the second sampler makes the same."""

    def prepared(**changes):
        method = InvDiff(**QUICK, **changes)
        seen = []
        preparation = make_preparation(lambda what, done, total: seen.append((what, done, total)))
        return method.prepare(make_task(), make_unconditional(), data, preparation), seen

    first, told = prepared()
    second, again = prepared(r_sample=0.4)
    assert digest(first.module.unet) == digest(second.module.unet)
    assert first.module.unet.conv_out.weight.any()
    assert {what for what, _, _ in told} == {
        "measuring denoising risks",
        "training the invdiff module",
    }
    assert [done for _, done, total in again if done < total] == []  # r_sample trains nothing new
    for sampler in (first, second):
        seconds = first.facts["training"]["seconds"] + first.facts["grouping"]["risk"]["seconds"]
        assert sampler.facts["training_seconds"] == pytest.approx(seconds, abs=20)
        assert sampler.facts["training_seconds"] > first.facts["training"]["seconds"]


# 7. Extrapolation


@pytest.mark.parametrize("form", ["residual", "convex"])
def test_the_mix_extrapolates_from_the_base(form):
    base, guide = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    trained = mix(base, guide, form, 0.5)
    for r in (0.1, 0.4, 0.8, 1.0):
        expected = base + r / 0.5 * (trained - base)
        assert torch.allclose(mix(base, guide, form, r), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "pixels"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_without_strength_images_are_the_backbone_s(
    kind, guidance, make_case, make_task, make_requests
):
    backbone, _ = make_case(kind)
    module = backbone.with_unet(noisy(_invdiff.narrow_module(backbone.unet, 0.5, 0)))
    config, requests = SamplingConfig(3, guidance), make_requests(make_task(), 5)
    plain = DDIMSampler(backbone, config)(requests)
    for form in ("residual", "convex"):
        off = _invdiff.InvDiffSampler(backbone, module, config, form, 0.0, {})(requests)
        on = _invdiff.InvDiffSampler(backbone, module, config, form, 0.5, {})(requests)
        assert np.array_equal(off.images, plain.images)
        assert not np.array_equal(on.images, plain.images)
        assert (off.network_calls == 2 * plain.network_calls).all()


@pytest.mark.parametrize("prediction_type", KINDS)
def test_guidance_acts_on_the_mix(prediction_type, make_case):
    """The card's order: mix in each branch, then guide; the same as guiding each network."""
    backbone, (x, _, context) = make_case("unet", prediction_type)
    module = backbone.with_unet(noisy(_invdiff.narrow_module(backbone.unet, 0.5, 0)))
    sampler = _invdiff.InvDiffSampler(
        backbone, module, SamplingConfig(2, 3.0), "residual", 0.7, {}
    )
    requests = [type("Asked", (), {"prompt": type("P", (), {"text": "a photo of a person"})})] * 3
    with torch.no_grad():
        denoise, calls = sampler.denoiser(requests, [None] * 3)
        found = denoise(x, 500)
        mixed = [
            backbone.predict(x, 500, c).value + 0.7 * module.predict(x, 500, c).value
            for c in (context, backbone.embed([""] * 3))
        ]
    assert calls == 4
    assert torch.allclose(found.value, mixed[1] + 3 * (mixed[0] - mixed[1]), atol=1e-5)
    assert found.kind == prediction_type


# 8. Grouper


@pytest.fixture(scope="module")
def bimodal():
    rng = np.random.default_rng(1)
    return np.concatenate([rng.normal(0.1, 0.01, 4000), rng.normal(0.3, 0.01, 795)])


@pytest.mark.parametrize("seed", range(5))
def test_a_bimodal_minority_is_found(seed, bimodal):
    weights = infer_groups(bimodal, 2, 0.0, generator(seed))
    assert weights.min() >= 0
    assert torch.allclose(weights.sum(1), torch.ones(4795, dtype=torch.float64), atol=1e-5)
    masses = weights.mean(0)
    risks = group_risks(weights, torch.from_numpy(bimodal))
    assert float(risks.std()) == pytest.approx(0.135, abs=0.004)
    small = int(masses.argmin())
    assert float(masses[small]) == pytest.approx(0.175, abs=0.01)
    assert float((weights.max(1).values > 0.99).double().mean()) >= 0.99
    assert weights[4000:, small].min() > 0.5
    assert float(weights[4000:, small].sum() / weights[:, small].sum()) > 0.92


def test_a_unimodal_risk_is_split_near_its_mean():
    risks = np.random.default_rng(2).normal(0.3, 0.05, 2000)
    weights = infer_groups(risks, 2, 0.0, generator(3))
    high = int(group_risks(weights, torch.from_numpy(risks)).argmax())
    agree = (weights[:, high] > 0.5).numpy() == (risks > risks.mean())
    assert agree.mean() >= 0.9


@pytest.mark.parametrize(("groups", "kappa"), [(2, 0.0), (2, 3.0), (8, 0.0)])
def test_constant_risks_change_nothing(groups, kappa):
    weights = infer_groups(np.full(50, 0.2), groups, kappa, generator())
    assert torch.isfinite(weights).all()
    assert float(group_risks(weights, torch.full((50,), 0.2, dtype=torch.float64)).std()) < 1e-12
    if not kappa:
        start = torch.rand((50, groups), generator=generator(), dtype=torch.float64)
        assert torch.allclose(weights, start / start.sum(1, keepdim=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("groups", "kappa"), [(8, 0.0), (8, 3.0), (16, 0.0)])
def test_many_groups_stay_finite(groups, kappa, seed, bimodal):
    weights = infer_groups(bimodal, groups, kappa, generator(seed))
    assert torch.isfinite(weights).all()
    assert torch.allclose(weights.sum(1), torch.ones(4795, dtype=torch.float64), atol=1e-5)


def test_an_empty_group_has_the_mean_risk_and_finite_gradients():
    risks = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64)
    weights = torch.zeros(3, 2, dtype=torch.float64)
    weights[:, 0] = 1
    weights.requires_grad_(True)
    found = group_risks(weights, risks)
    assert found.tolist() == pytest.approx([0.3, 0.3])
    found.square().sum().backward()
    assert torch.isfinite(weights.grad).all()


def test_kappa_keeps_memberships_from_becoming_0():
    risks = np.random.default_rng(4).uniform(0.2, 0.4, 60)
    firm = infer_groups(risks, 2, 0.0, generator())
    soft = infer_groups(risks, 2, 5.0, generator())
    assert firm.min() == 0
    assert soft.min() > 0.05


def test_risks_that_are_not_finite_are_refused():
    with pytest.raises(ContractError, match="finite"):
        infer_groups(np.array([0.1, np.nan]), 2, 0.0, generator())


# Groups by a skewed direction of the maps


def toy_maps(n=1600, rare=0.1, seed=0, draws=4, places=25, textures=6):
    """Maps whose rare images are worse in one corner; every image has a difficulty of its own.

    Returns:
        (D, N, P) maps and who is rare.
    """
    rng = np.random.default_rng(seed)
    who = rng.random(n) < rare
    patterns = rng.normal(size=(textures, places))
    log = 0.5 * rng.normal(size=(n, textures)) @ patterns / 5**0.5  # textures, on both sides alike
    log += 0.3 * rng.normal(size=(n, 1))  # a difficulty that no group shares
    corner = np.zeros(places)
    corner[:5] = 1.2
    log = log + who[:, None] * corner
    return np.exp(log + 0.3 * rng.normal(size=(draws, n, places))), who


@pytest.mark.parametrize("rare", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_a_hidden_group_is_found_at_its_place(rare, seed):
    """A fifth too, where two equally wide clusters have no excess of kurtosis to be found by."""
    maps, who = toy_maps(rare=rare, seed=seed)
    component, member, score = rare_component(maps, seed)
    assert area_under_curve(component, who) > 0.97
    assert member[who].sum() / member.sum() > 0.85
    assert member.mean() == pytest.approx(rare, abs=0.04)
    assert score > 0.1
    # The mean risk says much less, which is why the maps are kept.
    assert area_under_curve(maps.mean((0, 2)), who) < 0.9


def test_the_group_is_the_one_of_high_risk():
    """Two groups alike but for the sign: one is easier than the rest, the other harder."""
    maps, hard_ones = toy_maps(rare=0.1, textures=3)  # within the 8 components that are kept
    easy = np.random.default_rng(9).random(1600) < 0.1
    maps[:, easy, -5:] /= np.exp(1.2)
    component, *_ = rare_component(maps, 0)
    assert area_under_curve(component, hard_ones) > 0.97
    assert area_under_curve(component, easy) < 0.6


def test_outliers_are_no_group():
    """Eight images of 1,600 are worst of all; the group is found, and its share isn't theirs."""
    maps, who = toy_maps(rare=0.15)
    odd = np.flatnonzero(~who)[:8]
    maps[:, odd, 10:14] *= np.exp(6)
    logs = np.log(maps.mean(0))
    white = _invdiff_groups._whitened(logs)
    first = (np.arange(1600) == odd[:, None]).any(0).astype(float)
    assert _invdiff_groups._memberships(white, first) is None
    _, member, _ = rare_component(maps, 0)
    assert member[who].sum() / member.sum() > 0.85
    assert member.mean() == pytest.approx(0.15, abs=0.04)


def test_places_that_only_outliers_differ_at_are_left_out():
    values = normal(1000, 3).double().numpy()
    background = np.zeros((1000, 2))
    background[:5, 0], background[5:9, 1] = 4, -4
    for skewed in (background, 0.1 * background):  # however little they differ
        white = _invdiff_groups._whitened(np.hstack([values, skewed]))
        assert white == pytest.approx(_invdiff_groups._whitened(values))
    assert _invdiff_groups._whitened(background).shape == (1000, 0)


def test_directions_climb_to_where_the_skewness_is_largest():
    """Along a line between two clusters, wherever it is: Loperfido's theorem."""
    rng = np.random.default_rng(3)
    who = rng.random(20_000) < 0.15
    line = np.array([0.6, 0.0, -0.8])
    values = rng.normal(size=(20_000, 3)) @ rng.normal(size=(3, 3)) + 9 * who[:, None] * line
    white = _invdiff_groups._whitened(values)
    assert white.mean(0) == pytest.approx(np.zeros(3), abs=1e-9)
    assert white.T @ white / 20_000 == pytest.approx(np.eye(3), abs=1e-9)
    starts = rng.normal(size=(6, 3))
    found = _invdiff_groups._skewed_directions(white, starts)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(6))
    skewness = ((white @ found.T) ** 3).mean(0)
    before = ((white @ (starts / np.linalg.norm(starts, axis=1, keepdims=True)).T) ** 3).mean(0)
    assert (skewness >= before).all()
    among = rng.normal(size=(3000, 3))
    among /= np.linalg.norm(among, axis=1, keepdims=True)
    assert skewness.max() >= ((white @ among.T) ** 3).mean(0).max()
    best = found[skewness.argmax()]
    between = white[who].mean(0) - white[~who].mean(0)
    assert abs(best @ between) / np.linalg.norm(between) > 0.99


def test_memberships_are_those_of_the_mixture():
    """Two known normals with one covariance: the posterior is Bayes's, and says its own error."""
    rng = np.random.default_rng(5)
    who = rng.random(20_000) < 0.2
    values = rng.normal(size=(20_000, 2)) * [1, 3] + who[:, None] * np.array([2.5, 0])
    white = _invdiff_groups._whitened(values)
    first = (values[:, 0] > np.quantile(values[:, 0], 0.9)).astype(float)
    odds, member = _invdiff_groups._memberships(white, first)
    expected = 2.5 * values[:, 0] - 2.5**2 / 2 + np.log(0.2 / 0.8)
    assert member == pytest.approx(1 / (1 + np.exp(-expected)), abs=0.05)
    assert member == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-3)
    assert member.mean() == pytest.approx(who.mean(), abs=0.01)


def test_a_component_depends_on_nothing_but_maps_and_seed():
    maps, _ = toy_maps(1000)
    first, again = (rare_component(maps, 0) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    order = np.random.default_rng(0).permutation(1000)
    moved = rare_component(maps[:, order], 0)
    assert np.corrcoef(moved[0], first[0][order])[0, 1] > 0.9


def test_without_variation_there_is_no_group():
    for maps in (np.ones((2, 20, 4)), np.ones((1, 1, 4))):
        component, member, score = rare_component(maps, 0)
        assert not component.any()
        assert (member == 0.5).all()
        assert score == 0


def test_groups_are_found_and_balanced_within_each_subject():
    one, first = toy_maps(1600, 0.1, 0)
    other, second = toy_maps(800, 0.3, 1)
    other = other[:, :, ::-1] * 7  # elsewhere, and harder
    maps, subjects = np.concatenate([one, other], 1), np.repeat([4, 1], [1600, 800])
    who = np.concatenate([first, second])
    _, member, scores = component_groups(maps, 0, subjects)
    assert len(scores) == 2
    weights = balanced_groups(member, subjects)
    assert (weights >= 0).all()
    for subject in (4, 1):
        own = torch.from_numpy(subjects == subject)
        assert weights[own].sum(0).tolist() == pytest.approx([float(own.sum()) / 2] * 2)
    facts = hidden_label_facts(
        {"groups": weights.numpy()},
        ImageSet(np.zeros((2400, 1, 1, 3), np.uint8), subjects, {"gender": who.astype(np.uint8)}),
        {"gender": ("usual", "rare")},
    )["groups"]["gender"]["rare"]
    assert facts["purity"] > 0.85
    assert facts["optimum"] == pytest.approx(0.5, abs=0.06)
    assert facts["optimum_by_subject"] == pytest.approx([0.5] * 2, abs=0.06)


def test_a_subject_without_a_group_is_not_balanced():
    weights = balanced_groups(np.array([0.0, 0.0, 1.0, 0.0]), np.array([0, 0, 1, 1]))
    assert weights.tolist() == [[0.5, 0.0], [0.5, 0.0], [0.0, 1.0], [1.0, 0.0]]
    even = balanced_groups(np.full(4, 0.5))
    assert even.tolist() == [[0.5, 0.5]] * 4


# 9. Weight of an image


def test_a_small_group_s_image_counts_nine_times():
    errors = normal(1000).square().requires_grad_(True)
    invariant_loss(errors, hard([0] * 900 + [1] * 100, 2), 0.0).backward()
    assert float(errors.grad[950] / errors.grad[3]) == pytest.approx(9)


# Risks


@pytest.fixture
def measured(make_backbone, make_unconditional, make_preparation, data):
    """(D, N) risks of the small training set on a random backbone."""

    def make(prediction_type="epsilon", kind="pixels", progress=lambda *_: None, **changes):
        maker = make_backbone if kind == "unet" else make_unconditional
        backbone = maker(prediction_type=prediction_type)
        images = NoisedImages(backbone, [data.training], data.subjects)
        method = InvDiff(**{**QUICK, "precision": "float32", **changes})
        risks, seconds = denoising_risks(
            method, backbone, images, {"backbone": prediction_type}, make_preparation(progress)
        )
        return risks, backbone, images, seconds

    return make


@pytest.mark.parametrize("prediction_type", KINDS)
@pytest.mark.parametrize("kind", ["unet", "pixels"])
def test_shared_risks_are_errors_at_the_same_draws(kind, prediction_type, measured):
    maps, *_ = measured(prediction_type, kind)
    assert maps.shape == (2, 48, 16)
    risks, backbone, images, _ = measured(prediction_type, kind, grouping="dispersion")
    assert maps.mean(2) == pytest.approx(risks, rel=1e-4)  # of one channel mean at each place
    for draw, t in enumerate((675, 875)):  # the middles of the halves of 575…975
        noise = torch.randn(3, 4, 4, generator=_invdiff_groups._generator(0, 1, draw))
        index = np.array([0, 17, 47])
        clean = images.latents[index]
        prompts = images.prompts(index)
        with torch.no_grad():
            x_t = backbone.schedule.add_noise(clean, noise.expand(3, 3, 4, 4), t)
            predicted = backbone.predict(x_t, t, prompts)
        wanted = {"epsilon": noise.expand(3, 3, 4, 4), "sample": clean}.get(prediction_type)
        if wanted is None:
            alpha, sigma = backbone.schedule.alpha(t), backbone.schedule.sigma(t)
            wanted = (alpha * noise - sigma * clean).float()
        expected = (predicted.value - wanted).square().mean((1, 2, 3))
        assert risks[draw, index] == pytest.approx(expected.numpy(), rel=1e-4)
        places = (predicted.value - wanted).square().mean(1).flatten(1)
        assert maps[draw, index] == pytest.approx(places.numpy(), rel=1e-4)


def test_risks_that_two_runs_need_at_once_are_measured_once(measured, monkeypatch):
    taken: list[int] = []
    barrier, true = threading.Barrier(2), _invdiff_groups._risk

    def slowly(method, backbone, batch):
        taken.append(1)
        time.sleep(0.1)  # else the first might have ended before the second looks
        return true(method, backbone, batch)

    monkeypatch.setattr(_invdiff_groups, "_risk", slowly)
    found = []

    def measure():
        barrier.wait()
        found.append(measured(grouping="dispersion")[0])

    threads = [threading.Thread(target=measure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found[0] == found[1]).all()
    both = len(taken)
    measured(grouping="dispersion", risk_draws=1)
    assert both == 2 * (len(taken) - both)  # 2 draws, once


def test_maps_of_large_images_have_few_places():
    batch = type("Batch", (), {"x_t": None, "t": None, "context": None})()
    batch.clean, batch.noise = normal(2, 3, 24, 40), normal(2, 3, 24, 40, seed=1)
    value = normal(2, 3, 24, 40, seed=2)
    predicted = type("P", (), {"value": value, "noise": value})()
    backbone = type("B", (), {"predict": lambda *_: predicted, "schedule": None})()
    backbone.schedule = type("S", (), {"target": lambda self, clean, noise, t: noise})()
    found = _invdiff_groups._risk(InvDiff(), backbone, batch)
    error = (value - batch.noise).square().mean(1)
    expected = error.reshape(2, 8, 3, 8, 5).mean((2, 4)).flatten(1)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("prediction_type", KINDS)
def test_the_released_risk_compares_predicted_noise_with_the_image(prediction_type, measured):
    changes = {**InvDiff.presets["as_released"], "risk_draws": 2}
    risks, backbone, images, _ = measured(prediction_type, **changes)
    bank = _invdiff_groups._Bank(InvDiff(**changes), (3, 4, 4), 1000, 0)
    t, noise = bank.draw(1, range(48))
    assert len(set(t.tolist())) > 30
    assert t.min() < 100
    assert t.max() >= 900
    assert len({row.numpy().tobytes() for row in noise}) == 48
    index = np.arange(4)
    with torch.no_grad():
        batch = images.at(index, t[:4], noise[:4], None)
        predicted = backbone.predict(batch.x_t, batch.t, None)
    expected = (predicted.noise - batch.clean).square().mean((1, 2, 3))
    assert risks[1, :4] == pytest.approx(expected.numpy(), rel=1e-4)


def test_an_image_s_own_draws_depend_on_nothing_but_itself():
    method = InvDiff(grouping="dispersion", risk_bank="private", risk_from=0.3, risk_to=0.8)
    bank = _invdiff_groups._Bank(method, (3, 4, 4), 1000, 0)
    t, noise = bank.draw(0, range(10))
    other_t, other = bank.draw(0, range(7, 9))
    assert torch.equal(t[7:9], other_t)
    assert torch.equal(noise[7:9], other)
    assert t.min() >= 300
    assert t.max() < 800


class StopError(Exception):
    pass


def test_measuring_risks_goes_on_where_it_stopped(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(_invdiff_groups, "CHECKPOINT_SECONDS", -1.0)

    def stop(what, done, total):
        if done == 28:
            raise StopError

    with pytest.raises(StopError):
        measured(progress=stop)
    told = []
    risks, *_ = measured(progress=lambda what, done, total: told.append((done, total)))
    assert told[0] == (28, 96)
    found, *_, seconds = measured(progress=lambda *_: None)
    assert np.array_equal(risks, found)
    assert seconds == measured()[3]  # read, not measured again
    for path in (tmp_path / "risks").iterdir():
        path.unlink()
    whole, *_ = measured()
    assert np.array_equal(risks, whole)


def test_average_risk_is_even_over_draws_and_within_subjects():
    rng = np.random.default_rng(0)
    subjects = np.repeat([0, 1], 50)
    rare = np.tile(np.arange(50) < 10, 2)
    image = 1 + subjects + 0.3 * rare
    risks = np.stack([image * rng.normal(1, 0.01, 100), 40 * image * rng.normal(1, 0.3, 100)])
    even = average_risk(risks, per_draw=True)
    assert even.mean() == pytest.approx(risks.mean())
    expected = (risks[0] / risks[0].mean() + risks[1] / risks[1].mean()) / 2
    assert even / even.mean() == pytest.approx(expected)
    assert average_risk(risks, per_draw=False) == pytest.approx(risks.mean(0))
    within = average_risk(risks[:1], per_draw=True, subjects=subjects)
    assert within.mean() == pytest.approx(risks[0].mean())
    assert within[subjects == 0].mean() == pytest.approx(within[subjects == 1].mean())
    assert within[subjects == 0].std() == pytest.approx(within[subjects == 1].std())
    assert within[rare].min() > within[~rare].max()
    assert np.isfinite(average_risk(np.ones((1, 4)), per_draw=True, subjects=np.zeros(4))).all()


# Groups of a run, cards, labels


def test_cards_of_the_presets():
    def card(preset):
        return make_method("invdiff", [f"preset={preset}"])[0].configured_card()

    assert InvDiff().configured_card() == InvDiff.card
    assert card("lightweight").ranked
    assert card("lightweight").extra_parameters != InvDiff.card.extra_parameters
    for preset in ("erm", "random_groups", "as_released"):
        assert (card(preset).role, card(preset).ranked) == ("ablation", False)
        assert card(preset).supervision == frozenset()
    for preset in ("oracle_groups", "oracle_groups_lambda0"):
        assert (card(preset).role, card(preset).ranked) == ("oracle", False)
        assert card(preset).supervision == {"labels"}
        assert card(preset).uses_target  # its groups are the task's
        assert card(preset).training_set == "biased"


def test_without_labels_only_the_oracle_can_not_go_on(
    make_unconditional, make_task, make_preparation, data
):
    hidden = dataclasses.replace(
        data, training=dataclasses.replace(data.training, labels=None), attributes={}
    )
    for grouping in ("components", "dispersion", "random", "single"):
        inferred = grouping in ("components", "dispersion")
        method = InvDiff(grouping=grouping, **(QUICK if inferred else TRAINED))
        method.prepare(make_task(), make_unconditional(), hidden, make_preparation())
    with pytest.raises(ContractError, match="labelled"):
        InvDiff(grouping="oracle", **TRAINED).prepare(
            make_task(), make_unconditional(), hidden, make_preparation()
        )


def test_what_is_handed_in_for_the_audit(make_unconditional, make_task, make_preparation, data):
    """Brighter images are told apart by the released risk, which is the energy of the image."""
    handed_in = {}
    preparation = make_preparation(audit=handed_in.__setitem__)
    method = InvDiff(**{**InvDiff.presets["as_released"], **QUICK, "groups": 2})
    sampler = method.prepare(make_task(), make_unconditional(), data, preparation)
    assert handed_in.keys() == {"risk", "high_risk_group", "groups"}
    assert handed_in["groups"].shape == (48, 2)
    high = handed_in["high_risk_group"]
    assert ((high >= 0) & (high <= 1)).all()
    assert sampler.facts["grouping"]["high_risk_share"] == pytest.approx(high.mean())
    risk = handed_in["risk"]
    assert risk[high > 0.5].mean() > risk[high < 0.5].mean()


@pytest.mark.parametrize("attributes", [("gender",), ("gender", "race")])
def test_oracle_groups_are_cells_within_a_prompt(attributes, make_task, data):
    task, training = make_task(*attributes), data.training
    names = [tuple(training.labels[name][i] for name in attributes) for i in range(len(training))]
    for subjects in (None, training.subjects):
        weights = oracle_groups(task, training.labels, subjects)
        keys = names if subjects is None else list(zip(names, subjects, strict=True))
        assert weights.shape == (48, len(set(keys)))
        assert (weights.sum(1) == 1).all()
        same = weights @ weights.T
        assert same.tolist() == [[float(a == b) for b in keys] for a in keys]


def test_random_groups_are_even_and_vary_with_the_seed(make_unconditional, make_preparation):
    grouped = []
    backbone = make_unconditional()
    images = type("Many", (), {"subjects": None, "__len__": lambda self: 4000})()
    for seed in (0, 0, 1):
        grouping = _invdiff_groups.group_images(
            InvDiff(grouping="random", groups=4),
            None,
            backbone,
            images,
            None,
            {},
            make_preparation(seed=seed),
        )
        assert grouping.facts["shares"] == pytest.approx([0.25] * 4, abs=0.03)
        assert grouping.facts["hard_share"] == 1
        grouped.append(grouping.weights)
    assert torch.equal(grouped[0], grouped[1])
    assert not torch.equal(grouped[0], grouped[2])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"start": "scratch"}, "scratch"),
        ({"risk_from": 0.8, "risk_to": 0.3}, "risk_from"),
        ({"risk_to": 1.1}, "risk_to"),
        ({"width": 0.7}, "width"),
        ({"module": "narrow", "width": 0.0}, "width"),
        ({"module": "narrow", "width": 1.5}, "width"),
        ({"r_train": 0.0}, "r_train"),
        ({"risk_bank": "private"}, "risk_bank"),
        ({"kappa": 1.0}, "kappa"),
        ({"groups": 4}, "groups"),
    ],
)
def test_parameters_that_make_no_sense(given, told):
    with pytest.raises(InputError, match=told):
        InvDiff(**given)


def test_a_backbone_without_a_network_says_so(make_mixture, make_task, make_preparation, data):
    with pytest.raises(InputError, match="no network"):
        InvDiff().prepare(make_task(), make_mixture(), data, make_preparation())


def test_a_loss_weighting_composes(make_unconditional, data):
    backbone = make_unconditional()
    images = NoisedImages(backbone, [data.training], data.subjects)
    module = backbone.with_unet(_invdiff.narrow_module(backbone.unet, 0.5, 0))
    weights = hard([0, 1] * 24, 2)
    method = InvDiff(loss_weighting="debias", mixing="residual", **QUICK)
    found = _invdiff.guided_loss(method, backbone, module, images, weights)(Draws(0, 0, 0, 8, CPU))
    draws = Draws(0, 0, 0, 8, CPU)
    index = draws.rng.permutation(draws.rng.choice(48, 8, replace=False))
    batch = images.draw(draws, index)
    with torch.no_grad():
        predicted = backbone.predict(batch.x_t[:4], batch.t[:4], None).value
        more = backbone.predict(batch.x_t[4:], batch.t[4:], None).value
    base = torch.cat([predicted, more])
    target = backbone.schedule.target(batch.clean, batch.noise, batch.t)
    errors = (base - target).square().flatten(1).mean(1) * loss_weights(method, backbone)[batch.t]
    means = torch.stack(
        [errors[index % 2 == g].mean() for g in range(2) if (index % 2 == g).any()]
    )
    expected = means.mean() + (means.var() if len(means) > 1 else 0)
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert loss_weights(method, backbone).std() > 0.1


# 10. End to end


def toy_images(n, seed):
    """A background of -0.5 or 0.5, the second nine times as often, and one row of the other."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.9).astype(np.uint8)
    pixels = np.repeat(label - 0.5, 48).reshape(n, 4, 4, 3)
    pixels[np.arange(n), rng.integers(4, size=n)] *= -1
    pixels += rng.normal(0, 0.05, pixels.shape)
    images = ((pixels.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    return ImageSet(images, np.zeros(n, dtype=np.int64), {"gender": label})


@pytest.mark.slow
def test_inferred_groups_reach_most_of_what_true_ones_do(
    make_unconditional, make_task, make_preparation
):
    """Everything is trained here, the biased model too; about two minutes on one core."""
    levels = {"gender": ("female", "male")}
    data = TrainingData((), (Prompt(""),), toy_images(4000, 0), None, levels)
    config = SamplingConfig(25, 1.0)
    biased = BalancedData(start="scratch", steps=600, batch=128, learning_rate=4e-3)
    plain = _denoising.prepare(
        biased, make_unconditional(), [data.training], data, make_preparation(sampling=config)
    )
    backbone = plain.backbone
    backbone.network_batch = 64
    handed_in = {}

    def prepared(**changes):
        budget = {"steps": 400, "batch": 128, "learning_rate": 2e-3, "width": 1.0}
        # A network of its own, so that r can go beyond 1; the copy is tried on what is shipped.
        budget |= {"module": "narrow", "mixing": "residual", "r_train": 1.0, "r_sample": 1.0}
        preparation = make_preparation(sampling=config, audit=handed_in.__setitem__)
        return InvDiff(**{**budget, **changes}).prepare(make_task(), backbone, data, preparation)

    def lean(sampler):
        """Share of the frequent background less that of the rare one; 0 is fair."""
        requests = [Request(Prompt(""), 0, i, 0) for i in range(512)]
        images = sampler(requests).images
        return 2 * float((images.mean((1, 2, 3)) > 127.5).mean()) - 1

    found = {"base": lean(DDIMSampler(backbone, config))}
    for grouping in ("oracle", "random", "single"):
        found[grouping] = lean(prepared(grouping=grouping))
    found["oracle_further"] = lean(prepared(grouping="oracle", r_sample=1.5))
    # Images of 16 places are too small for components: here the mean risk is what tells.
    found["inferred"] = lean(prepared(grouping="dispersion", risk_from=0.3, risk_to=0.8))
    told = hidden_label_facts(handed_in, data.training, levels)
    seen = f"{found} {told}"
    assert 0.8 < found["base"] < 0.97, seen
    assert abs(found["oracle"]) <= 0.15, seen
    assert found["random"] == pytest.approx(found["base"], abs=0.05), seen
    assert found["single"] == pytest.approx(found["base"], abs=0.05), seen
    assert found["oracle_further"] < found["oracle"] - 0.05, seen
    assert 0.05 < found["inferred"] < 0.45, seen
    assert told["risk"]["gender"]["rare"]["auc"] > 0.95, seen
    assert told["high_risk_group"]["gender"]["rare"]["weighted_share"] > 0.6, seen
    released = InvDiff(**InvDiff.presets["as_released"])
    images = NoisedImages(backbone, [data.training], data.subjects)
    risks, _ = denoising_risks(released, backbone, images, {}, make_preparation())
    energy = hidden_label_facts({"risk": risks[0]}, data.training, levels)
    assert 0.3 < energy["risk"]["gender"]["rare"]["auc"] < 0.7, energy


@pytest.mark.slow
def test_risks_find_the_rarer_gender_of_a_shipped_backbone_and_those_as_released_do_not(tmp_path):
    """On what is shipped, where groups aren't as plain as in the toy."""
    from fairbench.backbones.base import load_backbone
    from fairbench.datasets.base import get_dataset
    from fairbench.runs.generation import training_data

    dataset = get_dataset("cartoonfaces")
    spec = dataset.backbone("cartoonfaces-sd")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(spec.name, spec.folder, device=device, dtype=torch.float32)
    card = dataclasses.replace(InvDiff.card, supervision=frozenset({"labels"}))
    labelled = training_data(dataset, card).training
    images = NoisedImages(backbone, [labelled], dataset.subjects)
    handed_in: dict[str, Any] = {}
    preparation = Preparation(
        0, spec.sampling, (8,), tmp_path, lambda *_: None, handed_in.__setitem__
    )
    data = TrainingData((), dataset.subjects, dataclasses.replace(labelled, labels=None), None, {})
    InvDiff(steps=1).prepare(dataset.task("gender", conditional=True), backbone, data, preparation)
    told = hidden_label_facts(handed_in, labelled, dataset.attributes)
    group = told["high_risk_group"]["gender"]["rare"]
    assert group["weighted_share"] > 0.45, group
    groups = told["groups"]["gender"]["rare"]
    assert groups["purity"] > 0.55, groups
    # All subjects but one, whose rarer gender no rule that was tried finds.
    assert sorted(groups["optimum_by_subject"])[1] > 0.33, groups
    released = InvDiff(**InvDiff.presets["as_released"])
    risks, _ = denoising_risks(released, backbone, images, {}, preparation)
    energy = hidden_label_facts({"risk": risks[0]}, labelled, dataset.attributes)
    assert 0.45 < energy["risk"]["gender"]["rare"]["auc"] < 0.55, energy["risk"]["gender"]


@pytest.mark.slow
def test_true_groups_move_the_shares_of_a_shipped_backbone_and_random_ones_do_not(tmp_path):
    """True and random groups on the shipped backbone, with thresholds of its own."""
    from fairbench.backbones.base import load_backbone
    from fairbench.datasets.base import get_dataset
    from fairbench.instruments.measuring import load_instruments
    from fairbench.runs.generation import training_data

    dataset, n = get_dataset("cartoonfaces"), 512
    spec = dataset.backbone("cartoonfaces-sd")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(spec.name, spec.folder, device=device, dtype=torch.float32)
    judge = load_instruments(str(device), DATASET.instruments()).judges[0]
    task = dataset.task("gender", conditional=True)
    preparation = Preparation(0, spec.sampling, (n,), tmp_path, lambda *_: None)

    def women(sampler):
        images = sampler([Request(task.prompts[0], 0, i, 0) for i in range(n)]).images
        return float((judge(images)["gender"].argmax(1) == 0).mean())

    found = {"base": women(DDIMSampler(backbone, spec.sampling))}
    for name, changes in {
        "oracle": {"grouping": "oracle"},
        "oracle_further": {"grouping": "oracle", "r_sample": 0.7},
        "random": {"grouping": "random"},
    }.items():
        method = InvDiff(steps=400, **changes)
        data = training_data(dataset, method.configured_card())
        found[name] = women(method.prepare(task, backbone, data, preparation))
    assert found["base"] < 0.15, found
    assert found["random"] == pytest.approx(found["base"], abs=0.025), found
    assert found["oracle"] > found["base"] + 0.15, found
    assert found["oracle_further"] > found["oracle"] + 0.03, found
