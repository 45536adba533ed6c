"""What FairGen is bound to hold, from its formulas to its training on the shipped backbone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fairbench.backbones.mixture import GaussianMixture
from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import Preparation, Request, SamplingConfig
from fairbench.core.prompts import Phrase
from fairbench.core.task import Prompt
from fairbench.datasets.cartoonfaces import DATASET
from fairbench.diffusion import training as _trainer
from fairbench.diffusion.denoisers import conditioned, guided
from fairbench.diffusion.sampling import ddim
from fairbench.diffusion.schedule import Prediction
from fairbench.diffusion.training import Draws
from fairbench.methods.fairgen import FairGen
from fairbench.methods.parts import fairgen as _fairgen
from fairbench.methods.parts.adapters import AdapterBank, cross_attention_linears
from fairbench.methods.parts.fairgen import AdapterTraining, adapted_branch, composed_target

QUICK = {"iterations": 2, "batch": 6, "learning_rate": 0.05, "rollout_every": 2}
GENDERS = ("female", "male")
DATA = tuple(
    Prompt(role, template="a photo of {}") for role in ("person", "tennis player", "santa")
)


@pytest.fixture
def make_training(make_backbone, data):
    """An adapter training on a tiny random backbone, a quick one unless told otherwise."""

    def make(backbone=None, levels=GENDERS, sampling=None, seed=0, attribute="gender", **changes):
        return AdapterTraining(
            FairGen(**{**QUICK, **changes}),
            make_backbone() if backbone is None else backbone,
            attribute,
            levels,
            data.neutral_prompts,
            sampling or SamplingConfig(4, 3.0),
            seed,
        )

    return make


@pytest.fixture
def states(backbone):
    """Four noisy states, their timesteps and contexts."""
    draws = torch.Generator().manual_seed(8)
    x = torch.randn((4, *backbone.latent_shape), generator=draws)
    context = backbone.embed([f"a photo of a {w}" for w in ("person", "santa", "dog", "person")])
    return x, torch.tensor([900, 500, 300, 20]), context


def draws_of(training, step=0, part=0):
    """The randomness of a step, as the trainer gives it."""
    rows = training.method.batch // training.method.accumulate
    return Draws(training.seed, step, part, rows, torch.device("cpu"))


def prepared(method, task, backbone, data, preparation):
    return method.prepare(task, backbone, data, preparation)


# 1. Identity


def test_fresh_adapters_change_nothing(backbone, states):
    bank = AdapterBank(backbone.unet, GENDERS)
    with torch.no_grad():
        base = backbone.predict(*states).value
        for gates in (torch.eye(2)[[0, 1, 0, 1]], torch.ones(4, 2), torch.full((4, 2), -3.0)):
            with bank.gated(gates):
                assert torch.equal(backbone.predict(*states).value, base)


def test_switched_off_adapters_change_nothing(backbone, states, randomise):
    bank = randomise(AdapterBank(backbone.unet, GENDERS))
    with torch.no_grad():
        base = backbone.predict(*states).value
        for gates in (None, torch.zeros(4, 2)):
            with bank.gated(gates):
                assert torch.equal(backbone.predict(*states).value, base)
        with bank.gated(torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 1.0]])):
            mixed = backbone.predict(*states).value
        assert torch.equal(mixed[1:3], base[1:3])
        assert (mixed - base)[[0, 3]].abs().amax((1, 2, 3)).min() > 1e-2
        assert torch.equal(backbone.predict(*states).value, base)  # hooks are gone


def test_hooks_are_removed_after_an_error(backbone, states, randomise):
    bank = randomise(AdapterBank(backbone.unet, GENDERS))
    with torch.no_grad():
        base = backbone.predict(*states).value
        with pytest.raises(RuntimeError, match="stop"), bank.gated(torch.ones(4, 2)):
            raise RuntimeError("stop")
        assert torch.equal(backbone.predict(*states).value, base)


def test_gates_of_another_shape_are_an_error(backbone):
    bank = AdapterBank(backbone.unet, GENDERS)
    for gates in (torch.ones(4, 3), torch.ones(2)):
        with pytest.raises(ContractError, match=r"gates must be \(B, 2\)"), bank.gated(gates):
            pass


# 2. Parameter count


@pytest.mark.parametrize(
    ("name", "count", "millions"), [("sd1", 99_456, 859.5), ("sd2", 107_648, 865.9)]
)
def test_parameters_a_category_of_stable_diffusion(name, count, millions, sd_unet):
    unet = sd_unet(name)
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    bank = AdapterBank(unet, GENDERS)
    assert bank.parameters_a_category == count
    assert sum(p.numel() for p in bank.parameters()) == 2 * count
    assert AdapterBank(unet, ("one",), rank=3).parameters_a_category == 3 * count
    layers = cross_attention_linears(unet)
    assert len(layers) == 64
    ends = {name.rpartition("attn2.")[2] for name in layers}
    assert ends == {"to_q", "to_k", "to_v", "to_out.0"}


def test_a_subclass_of_linear_is_matched(backbone):
    class Renamed(nn.Linear):
        pass

    for module in cross_attention_linears(backbone.unet).values():
        module.__class__ = Renamed
    assert len(cross_attention_linears(backbone.unet)) == 12


def test_no_cross_attention_is_an_error():
    plain = nn.ModuleDict({"attn1": nn.Linear(3, 3), "ff": nn.Linear(3, 3)})
    with pytest.raises(ContractError, match="cross-attention"):
        AdapterBank(plain, GENDERS)


def test_initial_values_are_those_of_the_card(backbone):
    bank = AdapterBank(backbone.unet, GENDERS, seed=1)
    assert all(not up.any() for up in bank.up.values())
    bounded = torch.cat(
        [
            (bank.down[name.replace(".", "/")] * layer.in_features**0.5).flatten()
            for name, layer in cross_attention_linears(backbone.unet).items()
        ]
    )
    assert 0.95 < bounded.abs().max() <= 1 + 1e-6
    assert float(bounded.detach().std()) == pytest.approx(3**-0.5, rel=0.1)
    other = AdapterBank(backbone.unet, GENDERS, seed=2)
    assert not any(torch.equal(bank.down[key], other.down[key]) for key in bank.down)


# 3. Target algebra


def test_target_is_affine_in_eta():
    neutral, category = torch.randn(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(composed_target(neutral, category, 0), neutral)
    assert (composed_target(neutral, category, 1) - category).abs().max() <= 1e-6
    half = composed_target(neutral, category, 0.5)
    assert torch.allclose(half, (neutral + category) / 2, atol=1e-6)
    twice = composed_target(neutral, category, 2)
    assert torch.allclose(twice - category, category - neutral, atol=1e-6)


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("t", [20, 500, 900])
def test_target_is_the_same_in_every_parameterisation(eta, t):
    table = GaussianMixture(torch.zeros(1, 3, 4, 4), (1.0,), 1.0).schedule
    alpha, sigma = table.alpha(t).view(1, 1, 1, 1), table.sigma(t).view(1, 1, 1, 1)
    draws = torch.Generator().manual_seed(0)
    x, neutral, category = torch.randn(3, 2, 3, 4, 4, generator=draws, dtype=torch.float64)
    at = [Prediction(x, alpha, sigma, "epsilon", noise) for noise in (neutral, category)]
    wanted = composed_target(neutral, category, eta)
    clean = composed_target(at[0].clean, at[1].clean, eta)
    velocity = composed_target(at[0].velocity, at[1].velocity, eta)
    assert torch.allclose(Prediction(x, alpha, sigma, "sample", clean).noise, wanted, atol=1e-4)
    seen = Prediction(x, alpha, sigma, "v_prediction", velocity).noise
    assert torch.allclose(seen, wanted, atol=1e-4)


# 4. Beginning of the training


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_training_starts_at_eta_squared_and_moves_the_upper_factor(
    eta, prediction_type, make_training, make_backbone, monkeypatch
):
    targets = []

    def remember(neutral, category, weight):
        targets.append(composed_target(neutral, category, weight))
        assert (category - neutral).abs().max() > 1e-3
        return targets[-1]

    monkeypatch.setattr(_fairgen, "composed_target", remember)
    training = make_training(make_backbone(prediction_type), eta=eta)
    draws = draws_of(training)
    training.loss(draws).backward()
    assert draws.logged["normalised_loss"] == pytest.approx(eta**2, rel=1e-4)
    assert not targets[0].requires_grad
    for key in training.bank.down:
        assert not training.bank.down[key].grad.any()
        assert training.bank.up[key].grad.abs().amax((1, 2)).min() > 0  # of every category


def test_training_lowers_the_loss(make_training, make_backbone, make_preparation):
    changes = {"iterations": 30, "batch": 8, "rollout_every": 5, "learning_rate": 0.1}
    training = make_training(make_backbone(network_batch=8), **changes)
    training.run(make_preparation())
    assert training.normalised_loss < 0.7
    assert training.facts["diagnostics"]["normalised_loss"] > training.normalised_loss


def test_parts_of_a_batch_draw_rows_of_their_own_from_the_same_trajectories(
    make_training, monkeypatch
):
    training = make_training(accumulate=2)
    rounds, seen = [], []
    roll_out, frozen = training.roll_out, training._predict_frozen
    monkeypatch.setattr(training, "roll_out", lambda r: (rounds.append(r), roll_out(r))[1])
    monkeypatch.setattr(
        training, "_predict_frozen", lambda x, t, c: (seen.append(x.clone()), frozen(x, t, c))[1]
    )
    for part in (0, 1):
        training.loss(draws_of(training, part=part))
    assert rounds == [0]
    assert [len(x) for x in seen] == [3] * 4
    assert not torch.equal(seen[0], seen[2])


# 5. Frozen base


def test_only_the_adapters_of_present_categories_are_trained(
    make_training, make_preparation, monkeypatch
):
    training = make_training(levels=("asian", "black", "white"), attribute="race", iterations=5)
    unet, bank = training.backbone.unet, training.bank
    frozen = {name: value.clone() for name, value in unet.state_dict().items()}
    start = {name: value.clone() for name, value in bank.state_dict().items()}
    assert all(p.requires_grad for p in bank.parameters())
    assert not any(p.requires_grad for p in unet.parameters())
    assert not {id(p) for p in unet.parameters()} & {id(p) for p in bank.parameters()}
    assert not unet.training
    roll_out = training.roll_out

    def without_black(round_index):
        seen = roll_out(round_index)
        rows = (seen.category != 1).nonzero()[:, 0]
        return dataclasses.replace(
            seen,
            x=seen.x[:, rows],
            category=seen.category[rows],
            neutral=seen.neutral[rows],
            named=seen.named[rows],
        )

    monkeypatch.setattr(training, "roll_out", without_black)
    training.run(make_preparation())
    assert training.facts["trained_parameters"] == sum(p.numel() for p in bank.parameters())
    assert all(torch.equal(value, frozen[name]) for name, value in unet.state_dict().items())
    for name, value in bank.state_dict().items():
        assert torch.equal(value[1], start[name][1])
        assert not torch.equal(value[0], start[name][0])
        assert not torch.equal(value[2], start[name][2])


# 6. Gating by image


@pytest.mark.parametrize("gradients", [False, True])
def test_a_mixed_batch_equals_runs_of_one_category(gradients, backbone, states, randomise):
    bank = randomise(AdapterBank(backbone.unet, ("a", "b", "c"), rank=2))
    category = torch.tensor([2, 0, 1, 2])
    with torch.set_grad_enabled(gradients):
        with bank.gated(torch.eye(3)[category]):
            mixed = backbone.predict(*states).value
        alone = []
        for k in range(3):
            with bank.gated(torch.eye(3)[[k] * 4]):
                alone.append(backbone.predict(*states).value)
    for row, k in enumerate(category):
        assert (mixed[row] - alone[k][row]).abs().max() <= 1e-5
        assert (mixed[row] - alone[(k + 1) % 3][row]).abs().max() > 1e-2


def test_a_row_is_the_same_to_the_last_bit_in_any_batch(backbone, states, randomise):
    bank = randomise(AdapterBank(backbone.unet, ("a", "b", "c"), rank=2))
    gates = torch.eye(3)[[2, 0, 1, 2]]
    with torch.no_grad():
        with bank.gated(gates):
            whole = backbone.predict(*states).value
        for rows in ([0], [3, 1], [2, 0, 1]):
            with bank.gated(gates[rows]):
                part = backbone.predict(*(value[rows] for value in states)).value
            assert torch.equal(part, whole[rows])


def test_images_of_mixed_groups_equal_those_of_one_group(
    make_backbone, make_task, data, make_preparation, make_requests
):
    task = make_task("gender")
    sampler = prepared(FairGen(**QUICK), task, make_backbone(), data, make_preparation())
    requests = make_requests(task, 4)
    mixed = sampler(requests)
    assert set(mixed.requested.tolist()) == {0, 1}
    for group in (0, 1):
        own = [r for r in requests if sampler.group(r) == group]
        images = sampler(own).images
        assert np.array_equal(images, mixed.images[mixed.requested == group])


# 7. Merged weights, and sums of updates


def test_two_adapters_are_the_sum_of_two_updates(backbone, randomise):
    bank = randomise(AdapterBank(backbone.unet, ("a", "b", "c")))
    draws = torch.Generator().manual_seed(1)
    for name, layer in cross_attention_linears(backbone.unet).items():
        up, down = (part[name.replace(".", "/")].detach() for part in (bank.up, bank.down))
        updates = [up[k] @ down[k] for k in range(3)]
        seen = bank.delta(name, torch.tensor([1.0, 2.0, 0.0])).detach()
        assert torch.allclose(seen, updates[0] + 2 * updates[1], atol=1e-6)
        assert torch.linalg.matrix_rank(seen) == 2
        both = bank.delta(name, torch.tensor([1.0, 1.0, 0.0])).detach()
        for factor in (1.0, 0.5, 0.25):  # what averaged or summed factors would give
            crossed = factor * (up[0] + up[1]) @ (down[0] + down[1])
            assert not torch.allclose(both, crossed, atol=0.05)
        x = torch.randn((2, 5, layer.in_features), generator=draws)
        with torch.no_grad():
            base = layer(x)
            with bank.gated(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])):
                hooked = layer(x)
        wanted = torch.stack([x[0] @ both.T, 2 * x[1] @ updates[2].T])
        assert torch.allclose(hooked - base, wanted, atol=1e-5)


def test_an_update_is_divided_by_its_rank(backbone, randomise):
    bank = randomise(AdapterBank(backbone.unet, ("a",), rank=3))
    name = next(iter(cross_attention_linears(backbone.unet)))
    key = name.replace(".", "/")
    wanted = (bank.up[key][0] @ bank.down[key][0]).detach() / 3
    assert torch.allclose(bank.delta(name, torch.ones(1)).detach(), wanted, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2])
def test_merged_weights_equal_hooks(rank, backbone, states, randomise):
    bank = randomise(AdapterBank(backbone.unet, GENDERS, rank=rank))
    frozen = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    weights = torch.tensor([0.0, 0.7])
    pairs = bank.merge(weights)
    with torch.no_grad():
        base = backbone.predict(*states).value
        with bank.gated(weights.expand(4, 2)):
            hooked = backbone.predict(*states).value
        with bank.merged(pairs):
            merged = backbone.predict(*states).value
        assert torch.equal(backbone.predict(*states).value, base)
    assert (hooked - merged).abs().max() <= 1e-5
    assert (hooked - base).abs().max() > 1e-2
    for name, value in backbone.unet.state_dict().items():
        assert torch.equal(value, frozen[name])


@pytest.mark.parametrize("branch", ["cond", "both"])
def test_merged_sampling_equals_unmerged_sampling(
    branch, make_backbone, make_task, data, make_preparation, make_requests
):
    task = make_task("gender")
    requests = make_requests(task, 6)
    images, drawn = [], []
    for changes in ({"merged": False}, {"merged": True}, {"strength": 0.0}):
        method = FairGen(**QUICK, cfg_branch=branch, **changes)
        backbone = make_backbone()
        frozen = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
        sampler = prepared(method, task, backbone, data, make_preparation())
        made = {}
        for batch in sampler.batches(requests, 4):
            samples = sampler(batch)
            for r, image, group in zip(batch, samples.images, samples.requested, strict=True):
                made[r.image_index] = image, group
        images.append(np.stack([made[i][0] for i in range(6)]).astype(int))
        drawn.append([made[i][1] for i in range(6)])
        for name, value in backbone.unet.state_dict().items():
            assert torch.equal(value, frozen[name])
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {0, 1}
    assert np.abs(images[0] - images[1]).max() <= 1  # a rounding apart
    assert np.abs(images[0] - images[2]).max() > 5  # the adapters do something


def test_merged_sampling_refuses_a_mixed_batch(
    make_backbone, make_task, data, make_preparation, make_requests
):
    task = make_task("gender")
    method = FairGen(**QUICK, merged=True)
    sampler = prepared(method, task, make_backbone(), data, make_preparation())
    with pytest.raises(ContractError, match="one group a batch"):
        sampler(make_requests(task, 4))


# 8. Sampler algebra


class Shifted:
    """A predictor whose adapter adds the same shift whatever the prompt is."""

    def __init__(self, shift):
        self.shift, self.on = shift, False

    def predict(self, x, t, context):
        value = torch.sin(x) * context + (self.shift if self.on else 0)
        one = torch.ones(1, 1, 1, 1)
        return Prediction(x, one, one, "epsilon", value)

    def adapted(self):
        outer = self

        class Context:
            def __enter__(self):
                outer.on = True

            def __exit__(self, *_):
                outer.on = False

        return Context()


@pytest.mark.parametrize(("branch", "times"), [("both", 1), ("cond", 3)])
def test_guidance_multiplies_the_shift_of_the_conditional_branch(branch, times):
    draws = torch.Generator().manual_seed(0)
    x, shift = torch.randn(2, 2, 3, 4, 4, generator=draws)
    context, empty = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), 0.5)
    values = []
    for size in (0, 1):
        mock = Shifted(shift * size)
        cond = adapted_branch("cond", branch, conditioned(mock, context), mock.adapted)
        uncond = adapted_branch("uncond", branch, conditioned(mock, empty), mock.adapted)
        denoise = guided(cond, uncond, 3.0)
        values.append(denoise(x, 5).value)
        assert not mock.on
    assert torch.allclose(values[0], torch.sin(x) * (0.5 + 3 * 1.5), atol=1e-6)
    assert torch.allclose(values[1] - values[0], times * shift, atol=1e-5)


@pytest.mark.parametrize("branch", ["both", "cond"])
def test_without_guidance_the_shift_counts_once(branch):
    x, shift = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mock = Shifted(shift)
    context = torch.ones(2, 1, 1, 1)
    cond = adapted_branch("cond", branch, conditioned(mock, context), mock.adapted)
    value = guided(cond, None, 1.0)(x, 5).value
    assert torch.allclose(value, torch.sin(x) + shift, atol=1e-6)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_states_are_at_the_timestep_that_they_come_with(spacing):
    mean = torch.linspace(-0.8, 0.8, 48).reshape(1, 3, 4, 4)
    mixture = GaussianMixture(mean, (1.0,), 1e-6)
    config, seen = SamplingConfig(30, 1.0, 0.0, spacing), []
    ddim(
        mixture,
        lambda x, t: mixture.predict(x, t, None),
        [Request(Prompt(""), 0, 0, 0)],
        config,
        observe=lambda x, t: seen.append((x.clone(), t)),
    )
    times = mixture.schedule.timesteps(30, spacing)
    assert [t for _, t in seen] == times
    noises = [
        (x - float(mixture.schedule.alpha(t)) * mean) / float(mixture.schedule.sigma(t))
        for x, t in seen
        if mixture.schedule.sigma(t) > 0.02
    ]
    assert len(noises) >= 25
    for noise in noises[1:]:  # a shifted timestep gives another noise, up to six times as large
        assert torch.allclose(noise, noises[0], atol=2e-3)


@pytest.mark.parametrize("shift", [0, 38])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_training_tells_the_network_the_timestep_of_the_state(spacing, shift, make_training):
    sampling = SamplingConfig(5, 3.0, 0.0, spacing)
    training = make_training(sampling=sampling, timestep_shift=shift, batch=40)
    backbone = training.backbone
    seen = training.roll_out(0)
    grid = backbone.schedule.timesteps(5, spacing)
    assert list(seen.t) == grid
    assert len(seen.x) == 5
    network, told = backbone._network, []
    backbone._network = lambda x, t, c: (told.append((x.clone(), t.clone())), network(x, t, c))[1]
    training._trajectories, training._round = seen, 0
    training.loss(draws_of(training, step=1))
    assert len(told[-1][0]) == 40  # the call with gradients
    assert len(told) > 2  # those of the frozen network
    for x, t in told:
        for state, time in zip(x, t.tolist(), strict=True):
            (at,) = {int(n) for n in (seen.x == state).flatten(2).all(2).nonzero()[:, 0]}
            assert at >= 1
            assert time == min(grid[at] + shift, 999)
    assert len(set(told[-1][1].tolist())) == 4


def test_trajectories_are_on_policy(make_training, randomise):
    training = make_training()
    before = training.roll_out(0)
    randomise(training.bank)
    after = training.roll_out(0)
    assert torch.equal(before.x[0], after.x[0])
    assert (before.x[1:] - after.x[1:]).abs().amax((2, 3, 4)).min() > 1e-3
    assert not torch.equal(before.x[0], training.roll_out(1).x[0])
    assert torch.bincount(after.category).tolist() == [2, 2]


def test_prompt_pairs_name_the_category_or_are_empty(data):
    pairs = _fairgen.prompt_pairs("list", data.neutral_prompts, [Phrase("asian")])
    assert pairs[0] == ("a photo of a person", "a photo of an asian person")
    assert len(pairs) == 3
    assert _fairgen.prompt_pairs("empty", data.neutral_prompts, [Phrase("asian")]) == [
        ("", "asian")
    ]


def test_prompt_pairs_of_a_group_name_all_its_levels(data):
    pairs = _fairgen.prompt_pairs(
        "list", data.neutral_prompts, [Phrase("female"), Phrase("asian")]
    )
    assert pairs[0] == ("a photo of a person", "a photo of an asian female person")
    empty = _fairgen.prompt_pairs(
        "empty", data.neutral_prompts, [Phrase("female"), Phrase("asian")]
    )
    assert empty == [("", "asian female")]


# 9. Indicator: see test_indicator.py


# 10. Integration


@pytest.mark.slow
def test_fairgen_on_the_shipped_backbone(tmp_path):
    from fairbench.backbones.base import load_backbone
    from fairbench.datasets.base import get_dataset
    from fairbench.instruments.measuring import load_instruments
    from fairbench.methods.vanilla import Vanilla
    from fairbench.metrics.fairness import fairness_discrepancy
    from fairbench.runs.running import training_data

    dataset, images = get_dataset("cartoonfaces"), 128
    spec = dataset.backbone("cartoonfaces-sd")
    task = dataset.task("gender_by_role", conditional=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(spec.name, spec.folder, device=device, dtype=torch.float32)
    judge = load_instruments(str(device), DATASET.instruments()).judges[0]
    counts = (images,) * len(task.prompts)
    preparation = Preparation(0, spec.sampling, counts, tmp_path, lambda *_: None)
    data = training_data(dataset, FairGen.card)

    def measured(sampler):
        """Mean discrepancy over prompts, and (P, K) hit rates where groups were asked for."""
        distances, hits = [], []
        for p, prompt in enumerate(task.prompts):
            samples = sampler([Request(prompt, p, i, 0) for i in range(images)])
            labels = judge(samples.images)["gender"].argmax(1)
            distances.append(fairness_discrepancy(labels, task.target))
            if samples.requested is not None:
                right = labels == samples.requested
                hits.append([right[samples.requested == k].mean() for k in range(2)])
        return float(np.mean(distances)), np.array(hits)

    base, _ = measured(Vanilla().prepare(task, backbone, data, preparation))
    cond_sampler = _fairgen.prepare(
        FairGen(indicator="stratified"), task, backbone, data, preparation
    )
    cond, hits = measured(cond_sampler)
    # At full strength adapters in both branches hit every group of this backbone too. They are
    # told apart at half of it, and at the release's guidance, which amplifies a prompt's own bias.
    half, half_hits = {}, {}
    for branch in ("cond", "both"):
        weaker = FairGen(indicator="stratified", cfg_branch=branch, strength=0.5)
        sampler = _fairgen.prepare(weaker, task, backbone, data, preparation)
        sampler.config = dataclasses.replace(spec.sampling, guidance=7.5)
        half[branch], half_hits[branch] = measured(sampler)
    loss = cond_sampler.facts["normalised_loss"]["gender"]
    seen = f"{base:.3f}, {cond:.3f}, loss {loss:.3f}, hits\n{hits}\nhalf {half}\n{half_hits}"
    assert base >= 0.4, seen
    assert cond <= 0.10, seen
    assert hits.min() >= 0.9, seen
    assert loss <= 0.2, seen
    assert half["cond"] < half["both"], seen
    assert (half_hits["cond"] >= half_hits["both"]).all(), seen


# Training: resuming, and the key under which it is kept


class StopError(Exception):
    pass


LONG = {"iterations": 4, "rollout_every": 2, "sampling": SamplingConfig(2, 3.0)}


@pytest.fixture
def uninterrupted(make_training, make_preparation):
    training = make_training(**LONG)
    training.run(make_preparation())
    return training


def run_counting(training, preparation):
    seen = []
    watching = dataclasses.replace(preparation, progress=lambda w, done, t: seen.append(done))
    training.run(watching)
    return seen


def assert_same_adapters(training, other):
    states = training.bank.state_dict(), other.bank.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(value.any() for name, value in states[0].items() if name.startswith("up"))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_training_resumes_to_the_last_bit(
    stop, uninterrupted, make_training, make_preparation, tmp_path, monkeypatch
):
    """At fresh trajectories, which are made again, and between them, where old ones are."""
    monkeypatch.setattr(_trainer, "CHECKPOINT_SECONDS", -1.0)
    preparation = dataclasses.replace(make_preparation(), cache=tmp_path / "parts")

    def progress(what, done, total):
        if done == stop + 1:
            raise StopError

    first = make_training(**LONG)
    with pytest.raises(StopError):
        first.run(dataclasses.replace(preparation, progress=progress))
    (left,) = preparation.cache.rglob("*.pt")
    assert left.name.endswith(".partial.pt")
    resumed = make_training(**LONG)
    assert run_counting(resumed, preparation) == list(range(stop, 5))
    assert_same_adapters(resumed, uninterrupted)
    assert resumed.normalised_loss == uninterrupted.normalised_loss
    assert [path.suffix for path in preparation.cache.rglob("*.*")] == [".safetensors"]


def test_a_training_that_diverges_stops(make_training, make_preparation, monkeypatch):
    training = make_training(**LONG)
    whole = training.loss
    monkeypatch.setattr(
        training, "loss", lambda draws: whole(draws) * (float("nan") if draws.step == 2 else 1)
    )
    with pytest.raises(InputError, match=r"diverged: loss nan .* step 3 of 4; .*learning_rate"):
        training.run(make_preparation())
    assert all(torch.isfinite(p).all() for p in training.bank.parameters())


def test_finished_adapters_are_loaded(uninterrupted, make_training, make_preparation):
    loaded = make_training(**LONG)
    assert run_counting(loaded, make_preparation()) == []
    assert_same_adapters(loaded, uninterrupted)
    assert loaded.facts == uninterrupted.facts


def test_key_covers_what_training_depends_on(make_training, make_backbone):
    key = make_training().key
    assert make_training().key == key
    others = [make_training(**{name: value}).key for name, value in CHANGED.items()]
    others += [
        make_training(seed=1).key,
        make_training(make_backbone(sha256="other")).key,
        make_training(make_backbone(network_batch=5)).key,  # rows of a trajectory
        make_training(levels=("male", "female")).key,
        make_training(attribute="sex").key,
        make_training(sampling=SamplingConfig(5, 3.0)).key,
        make_training(sampling=SamplingConfig(4, 3.0, 0.0, "linspace")).key,
    ]
    half = make_backbone()
    half.unet.half()
    others.append(make_training(half).key)
    assert len({key, *others}) == 1 + len(others)


CHANGED = {
    "cfg_branch": "both",
    "neutral": "empty",
    "eta": 2.0,
    "rank": 2,
    "iterations": 3,
    "batch": 7,
    "learning_rate": 0.01,
    "rollout_every": 3,
    "rollout_guidance": 2.0,
    "timestep_shift": 38,
}
SAMPLING_ONLY = {"strength": 2.0, "indicator": "stratified", "merged": True}
ELSEWHERE = {"joint", "orthogonality", "accumulate"}
"""The attribute, the references and the trainer's plan stand for them."""


def test_key_leaves_out_what_only_sampling_depends_on(make_training):
    key = make_training().key
    assert all(make_training(**{n: value}).key == key for n, value in SAMPLING_ONLY.items())
    assert make_training(sampling=SamplingConfig(4, 7.5, 1.0)).key == key


def test_every_parameter_is_one_of_training_or_of_sampling():
    names = {field.name for field in dataclasses.fields(FairGen)}
    assert names == {*CHANGED, *SAMPLING_ONLY, *ELSEWHERE}
    assert set(_fairgen.TRAINING_PARAMETERS) == set(CHANGED)


def test_key_covers_orthogonality_only_where_it_acts(make_training, make_backbone):
    def key(weight, references=(), seed=0):
        method = FairGen(**QUICK, orthogonality=weight)
        like = make_training(seed=seed)
        return AdapterTraining(
            method,
            like.backbone,
            "gender",
            GENDERS,
            DATA,
            SamplingConfig(4, 3.0),
            seed,
            references,
        ).key

    race = make_training(attribute="race", levels=("asian", "black", "white"))
    other = make_training(attribute="race", levels=("asian", "black", "white"), seed=1)
    plain = key(0.0)
    assert plain == make_training().key == key(2.0) == key(0.0, [race])
    keys = [key(2.0, [race]), key(1.0, [race]), key(2.0, [other]), key(2.0, [race, other])]
    assert len({plain, *keys}) == 5


def test_preparing_twice_trains_once(make_backbone, make_task, data, make_preparation):
    seen = []
    preparation = make_preparation(lambda what, done, total: seen.append((what, done, total)))
    task = make_task("gender", "race")
    for changes in ({}, SAMPLING_ONLY):
        prepared(FairGen(**QUICK, **changes), task, make_backbone(), data, preparation)
    assert [done for _, done, _ in seen] == [0, 1, 2, 0, 1, 2]
    assert {total for _, _, total in seen} == {2}


# Several attributes


def test_gates_of_several_attributes_are_summed(
    make_backbone, make_task, data, make_preparation, make_requests
):
    task, backbone = make_task("gender", "race"), make_backbone()
    method = FairGen(**QUICK, strength=1.5)
    sampler = prepared(method, task, backbone, data, make_preparation())
    categories = ["gender=female", "gender=male", "race=asian", "race=black", "race=white"]
    assert list(sampler.bank.categories) == categories
    for group, (gender, race) in enumerate(task.cells):
        on = {categories[int(c)] for c in sampler.group_gates[group].nonzero()}
        assert on == {f"gender={gender}", f"race={race}"}
    assert set(sampler.group_gates.unique().tolist()) == {0.0, 1.5}
    assert sampler.extra_parameters == 5 * sampler.facts["parameters_a_category"]
    assert set(sampler.facts["normalised_loss"]) == {"gender", "race"}
    alone = [
        prepared(method, make_task(name), backbone, data, make_preparation()).bank
        for name in ("gender", "race")
    ]
    group = task.groups.index("male/black")
    for name in cross_attention_linears(backbone.unet):
        wanted = 1.5 * (
            alone[0].delta(name, torch.tensor([0.0, 1.0]))
            + alone[1].delta(name, torch.tensor([0.0, 1.0, 0.0]))
        )
        assert wanted.any()
        assert torch.allclose(sampler.bank.delta(name, sampler.group_gates[group]), wanted)


@pytest.mark.parametrize("indicator", ["iid", "stratified"])
def test_a_joint_target_reaches_the_adapters(
    indicator, make_backbone, make_task, data, make_preparation, make_requests
):
    target = (0.5, 0.0, 0.0, 0.0, 0.2, 0.3)  # no product of shares of gender and race
    task = make_task("gender", "race", target=target)
    method = FairGen(**QUICK, indicator=indicator)
    sampler = prepared(method, task, make_backbone(), data, make_preparation())
    opened = []
    gated = sampler.bank.gated
    sampler.bank.gated = lambda gates: (opened.append(gates), gated(gates))[1]
    requests = make_requests(task, 8)
    requested = sampler(requests).requested.tolist()
    assert set(requested) <= {0, 4, 5}
    assert len(set(requested)) > 1
    steps = 2
    seen = torch.cat([opened[0], opened[steps]])
    assert torch.equal(seen, sampler.group_gates[requested])
    groups = [sampler.group(r) for r in make_requests(task, 64)]
    assert set(groups) == {0, 4, 5}


def test_overlap_is_the_mean_squared_cosine(backbone, randomise):
    bank = randomise(AdapterBank(backbone.unet, ("a", "b")), seed=1)
    others = [
        randomise(AdapterBank(backbone.unet, names), seed=seed)
        for seed, names in ((2, ("c", "d", "e")), (3, ("f",)))
    ]
    layers = []
    for other in others:
        for key in bank.up:
            squares = [
                torch.nn.functional.cosine_similarity(
                    one[key][k].flatten(), two[key][m].flatten(), 0
                )
                ** 2
                for one, two in ((bank.up, other.up), (bank.down, other.down))
                for k in range(2)
                for m in range(len(other.categories))
            ]
            layers.append(2 * sum(squares) / len(squares))
    seen = _fairgen.overlap(bank, others)
    assert float(seen.detach()) == pytest.approx(
        float(sum(layers).detach() / len(layers)), rel=1e-4
    )
    assert float(_fairgen.overlap(bank, [bank]).detach()) > 0.9  # itself, and the other category
    seen.backward()
    assert all(p.grad is not None and p.grad.any() for p in bank.parameters())
    assert all(p.grad is None for other in others for p in other.parameters())
    # The gradient leads to orthogonal adapters, not to anti-parallel ones.
    flipped = randomise(AdapterBank(backbone.unet, ("a", "b")), size=-0.4, seed=1)
    assert torch.allclose(_fairgen.overlap(flipped, others), seen)
    fresh = AdapterBank(backbone.unet, ("a", "b"))
    start = _fairgen.overlap(fresh, others)
    start.backward()
    assert torch.isfinite(start)
    assert all(torch.isfinite(p.grad).all() for p in fresh.parameters())


def test_orthogonality_makes_attributes_orthogonal_and_leaves_the_first_alone(
    make_backbone, make_task, data, make_preparation
):
    task, backbone = make_task("gender", "race"), make_backbone()
    options = {**QUICK, "iterations": 4, "rollout_every": 4}
    plain, tied = (
        prepared(
            FairGen(**options, orthogonality=weight), task, backbone, data, make_preparation()
        )
        for weight in (0.0, 20.0)
    )
    for one, two in zip(plain.bank.parameters(), tied.bank.parameters(), strict=True):
        assert torch.equal(one[:2], two[:2])
        assert not torch.equal(one[2:], two[2:])
    assert set(plain.facts["overlap"]) == set(tied.facts["overlap"]) == {"race"}
    assert 0 <= tied.facts["overlap"]["race"] < 0.7 * plain.facts["overlap"]["race"]


def test_joint_adapters_are_one_a_group(make_backbone, make_task, data, make_preparation):
    task, backbone = make_task("gender", "race"), make_backbone()
    method = FairGen(**QUICK, joint=True, strength=1.5)
    sampler = prepared(method, task, backbone, data, make_preparation())
    assert list(sampler.bank.categories) == [f"gender/race={group}" for group in task.groups]
    assert torch.equal(sampler.group_gates, 1.5 * torch.eye(6))
    assert sampler.extra_parameters == 6 * sampler.facts["parameters_a_category"]
    assert set(sampler.facts["normalised_loss"]) == {"gender/race"}
    assert "overlap" not in sampler.facts


def test_joint_changes_nothing_for_one_attribute(
    make_backbone, make_task, data, make_preparation, make_requests
):
    task, seen = make_task("gender"), []
    preparation = make_preparation(lambda what, done, total: seen.append(done))
    made = []
    for joint in (False, True):
        method = FairGen(**QUICK, joint=joint)
        sampler = prepared(method, task, make_backbone(), data, preparation)
        made.append(sampler(make_requests(task, 4)).images)
    assert np.array_equal(*made)
    assert seen == [0, 1, 2]  # trained once


def test_orthogonality_of_joint_adapters_is_refused():
    with pytest.raises(InputError, match="leave one of them out"):
        FairGen(joint=True, orthogonality=1.0)


def test_unseen_prompts_are_those_that_the_task_does_not_evaluate(
    make_backbone, make_task, data, make_preparation, monkeypatch
):
    learned = []
    monkeypatch.setattr(
        AdapterTraining,
        "run",
        lambda training, preparation: (
            learned.append({pair[0] for pairs in training.pairs for pair in pairs}),
            setattr(
                training,
                "facts",
                {"seconds": 0.0, "diagnostics_last_tenth": {"normalised_loss": 0.0}},
            ),
        ),
    )
    every = {prompt.text for prompt in data.neutral_prompts}
    first = data.neutral_prompts[0]
    task = dataclasses.replace(make_task("gender"), prompts=(first,))
    for neutral in ("list", "unseen"):
        method = FairGen(**QUICK, neutral=neutral)
        prepared(method, task, make_backbone(), data, make_preparation())
    assert learned == [every, every - {first.text}]
    assert len(every) > 1
    whole = dataclasses.replace(task, prompts=data.neutral_prompts)
    with pytest.raises(InputError, match="evaluates every neutral prompt"):
        prepared(FairGen(neutral="unseen"), whole, make_backbone(), data, make_preparation())


def test_as_released_differs_where_the_card_says():
    released = FairGen(**FairGen.presets["as_released"])
    assert (released.neutral, released.cfg_branch) == ("empty", "both")
    assert released.indicator == "per_prompt"
    assert 33 <= released.timestep_shift <= 42
    assert FairGen().timestep_shift == 0
    # Each of its differences has a preset, and together they are it.
    apart = ("empty_prompt", "both_branches", "draw_a_prompt", "shifted_timesteps")
    together = {name: value for one in apart for name, value in FairGen.presets[one].items()}
    assert FairGen(**together) == released
    for method, expected in (
        (FairGen(), ("method", True)),
        (FairGen(neutral="empty"), ("method", True)),
        (released, ("ablation", False)),
        (FairGen(indicator="per_prompt"), ("ablation", False)),
        (FairGen(timestep_shift=33), ("ablation", False)),
    ):
        card = method.configured_card()
        assert (card.role, card.ranked) == expected
