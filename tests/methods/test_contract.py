from __future__ import annotations

import dataclasses
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from fairbench.core.errors import InputError
from fairbench.core.method import Method, MethodCard
from fairbench.core.parameters import parameters_of
from fairbench.diffusion import training
from fairbench.methods import get_method, make_method, method_names

NAMES = method_names()
# Method -> the small backbone that it is tested on, and parameters that make it quick.
TRAINED = {"steps": 2, "batch": 4, "learning_rate": 0.05}
RATIO = {"ratio_steps": 2, "ratio_batch": 4, "ratio_width": 8}
CLASSIFIED = {"classifier_steps": 2}
BOTTLENECK = {**CLASSIFIED, "trajectories": 12, "skip_first": 0}
SMALL = {
    "balanced_data": ("pixels", TRAINED),
    "debiased_loss_weighting": ("pixels", TRAINED),
    "distribution_guidance": ("pixels", {**BOTTLENECK, "batch": 4}),
    "dsm_observed": ("pixels", TRAINED),
    "dsm_reference": ("pixels", TRAINED),
    "fair_prompt": ("mixture", {}),
    "fairgen": ("unet", {"iterations": 2, "batch": 4, "learning_rate": 0.05}),
    "fairgen_distilled": (
        "pixels",
        {"iterations": 2, "batch": 4, "learning_rate": 0.05, "classifier_iterations": 2},
    ),
    "invdiff": ("pixels", {**TRAINED, "risk_draws": 1}),
    "iw": ("pixels", TRAINED | RATIO),
    "latent_editing": ("pixels", BOTTLENECK),
    "prompt_append": ("mixture", {}),
    "rejection": ("pixels", {**CLASSIFIED, "max_attempts": 1}),
    "sample_guidance": ("pixels", BOTTLENECK),
    "tiw": ("pixels", TRAINED | RATIO),
    "universal_guidance": ("pixels", {**CLASSIFIED, "scale": 1.0}),
    "vanilla": ("mixture", {}),
}
VARIANTS = [
    *SMALL.items(),
    ("fairgen", ("unet", {**SMALL["fairgen"][1], "merged": True})),
    ("fairgen", ("unet", {**SMALL["fairgen"][1], "cfg_branch": "both"})),
    ("fairgen", ("unet", {**SMALL["fairgen"][1], "indicator": "stratified"})),
    ("fairgen", ("unet", {**SMALL["fairgen"][1], "joint": True})),
    ("fairgen_distilled", ("pixels", {"classifier_iterations": 2, "distil": False})),
    ("invdiff", ("unet", {**SMALL["invdiff"][1], "mixing": "convex"})),
    ("prompt_append", ("mixture", {"indicator": "per_prompt"})),
    ("tiw", ("unet", SMALL["tiw"][1])),
    ("distribution_guidance", ("mixture", {**BOTTLENECK, "batch": 3, "asymmetric": True})),
    ("latent_editing", ("mixture", {**BOTTLENECK, "indicator": "stratified"})),
    ("rejection", ("mixture", {**CLASSIFIED, "max_attempts": 3})),
    ("sample_guidance", ("mixture", {**BOTTLENECK, "indicator": "stratified"})),
    ("universal_guidance", ("mixture", {**CLASSIFIED, "scale": 1.0})),
]

CHANGED = ("merged", "cfg_branch", "indicator", "mixing", "joint", "distil")


def variant_id(value):
    if isinstance(value, tuple):
        own = {k: v for k, v in value[1].items() if k in CHANGED}
        return "-".join(map(str, own.values())) or "default"
    return None


@pytest.fixture
def make_small(make_backbone, make_unconditional, make_mixture):
    """A fresh small backbone of a kind: unet (takes prompts), pixels (takes none), mixture."""

    def make(kind):
        makers = {"unet": make_backbone, "pixels": make_unconditional, "mixture": make_mixture}
        return makers[kind]()

    return make


@pytest.fixture
def prepared(make_small, make_task, make_preparation, data):
    """A method's sampler on a small backbone, and its task of two prompts."""

    def make(name, small, seed=0):
        kind, parameters = small
        backbone = make_small(kind)
        task = make_task("gender", prompts=2)
        method = get_method(name)(**parameters)
        return method.prepare(task, backbone, data, make_preparation(seed=seed)), task

    return make


def images_of(sampler, requests, size):
    """Request -> its image, made in the sampler's own batches."""
    made = {}
    for batch in sampler.batches(requests, size):
        samples = sampler(batch)
        coupled = len(batch) > 1 and len(set(samples.batch_id)) == 1
        assert 1 <= len(batch) <= size or coupled
        assert samples.images.dtype == np.uint8
        assert len(samples.images) == len(samples.network_calls) == len(samples.batch_id)
        assert len(samples.images) == len(batch)
        if samples.requested is not None:
            assert len(samples.requested) == len(batch)
        for request, image in zip(batch, samples.images, strict=True):
            assert (request.prompt_index, request.image_index) not in made
            made[request.prompt_index, request.image_index] = image
    assert len(made) == len(requests)
    return made


def test_every_method_has_a_small_setting():
    assert set(SMALL) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_card_and_parameters(name):
    method = get_method(name)
    assert dataclasses.is_dataclass(method)
    assert isinstance(method(), Method)
    assert isinstance(method.card, MethodCard)
    assert method.card.name == name
    assert method.card.title
    assert method.version >= 1
    for field in dataclasses.fields(method):
        assert field.metadata.get("help"), field.name
        assert field.default is not dataclasses.MISSING
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method(), field.name, field.default)
    assert [p.name for p in parameters_of(method)] == [f.name for f in dataclasses.fields(method)]
    hash(method())


@pytest.mark.parametrize("name", NAMES)
def test_parameters_outside_their_limits_are_refused_however_a_method_is_made(name):
    method = get_method(name)
    for field in dataclasses.fields(method):
        wrong = [None, [1]]
        if isinstance(field.default, bool):
            wrong += ["true", 2]
        elif isinstance(field.default, str):
            wrong += ["", 3]
        else:
            wrong += ["1", True, float("nan"), float("-inf")]
            if "minimum" in field.metadata:
                wrong.append(type(field.default)(field.metadata["minimum"] - 1))
        for value in wrong:
            with pytest.raises(InputError, match=f"param {field.name} must be"):
                method(**{field.name: value})


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_what_the_command_line_would_accept(name):
    method = get_method(name)
    every = []
    for preset, values in method.presets.items():
        chosen, seen = make_method(name, [f"preset={preset}"])
        assert seen == preset
        assert values
        assert chosen not in every
        every.append(chosen)
        spelled = [
            f"{key}={str(value).lower() if isinstance(value, bool) else value}"
            for key, value in values.items()
        ]
        assert make_method(name, spelled)[0] == chosen
    assert set(every) != {method()}  # one preset may name the default, beside others


def test_public_files_import_no_torch():
    code = (
        "import sys; from fairbench.methods import get_method, method_names\n"
        "methods = [get_method(n) for n in method_names()]; [m() for m in methods]\n"
        "print(len(methods), 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(len(NAMES)), "False", "False"]


@pytest.mark.parametrize(("name", "small"), VARIANTS, ids=variant_id)
def test_an_image_depends_on_its_request_alone(name, small, prepared, make_requests):
    sampler, task = prepared(name, small)
    requests = make_requests(task, 5)  # 10 images: more than two network batches of 4
    whole = images_of(sampler, requests, 10)
    assert len({image.tobytes() for image in whole.values()}) == len(requests)
    order = np.random.default_rng(0).permutation(len(requests))
    for size in (1, 3):
        again = images_of(sampler, [requests[i] for i in order], size)
        for key, image in whole.items():
            assert np.array_equal(again[key], image), (size, key)


COUPLED = [name for name in NAMES if get_method(name).card.batch_coupled]


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_batches_hold_one_prompt_and_are_the_same_whoever_asks(
    name, prepared, make_requests
):
    sampler, task = prepared(name, SMALL[name])
    requests = make_requests(task, 6)  # a batch of 4 and a short one of 2, for either prompt
    whole, together = {}, {}
    for batch in sampler.batches(requests, 3):
        assert len({request.prompt_index for request in batch}) == 1
        samples = sampler(batch)
        assert len(set(samples.batch_id)) == 1
        together.setdefault(int(samples.batch_id[0]), []).extend(batch)
        whole |= {
            (r.prompt_index, r.image_index): image
            for r, image in zip(batch, samples.images, strict=True)
        }
    assert sorted(map(len, together.values())) == [2, 2, 4, 4]
    some = [requests[i] for i in (7, 2, 5)]
    for request, image in zip(some, sampler(some).images, strict=True):
        assert np.array_equal(whole[request.prompt_index, request.image_index], image)


@pytest.mark.parametrize(("name", "small"), SMALL.items(), ids=variant_id)
def test_prepared_anew_a_seed_gives_the_same_images(
    name, small, prepared, make_requests, tmp_path
):
    def run(seed):
        sampler, task = prepared(name, small, seed)
        return images_of(sampler, make_requests(task, 2, seed), 4)

    first = run(0)
    for path in tmp_path.rglob("*.*"):
        path.unlink()  # train again, don't load
    second, other = run(0), run(1)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert not any(np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("name", "small"), SMALL.items(), ids=variant_id)
def test_global_random_state_is_neither_used_nor_changed(
    name,
    small,
    make_small,
    make_task,
    make_preparation,
    make_requests,
    data,
    tmp_path,
):
    made = []
    for seed in (11, 12):
        kind, parameters = small
        backbone = make_small(kind)
        task = make_task("gender", prompts=2)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        preparation = make_preparation(cache=tmp_path / str(seed))
        method = get_method(name)(**parameters)
        sampler = method.prepare(task, backbone, data, preparation)
        made.append(images_of(sampler, make_requests(task, 2), 4))
        after = random.getstate(), np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
        assert after[0] == before[0]
        assert np.array_equal(after[1], before[1])
        assert torch.equal(after[2], before[2])
    assert all(np.array_equal(made[0][key], made[1][key]) for key in made[0])


@pytest.mark.parametrize(("name", "small"), SMALL.items(), ids=variant_id)
def test_network_calls_are_those_that_were_made(name, small, prepared, make_requests, monkeypatch):
    sampler, task = prepared(name, small)
    backbone = sampler.backbone
    # On the class: a method may have a second network behind a backbone of its own.
    network, calls = type(backbone)._network, []
    monkeypatch.setattr(
        type(backbone),
        "_network",
        lambda self, x, t, c: (calls.append(len(x)), network(self, x, t, c))[1],
    )
    samples = sampler(make_requests(task, 3)[:3])  # one network batch, one prompt
    assert samples.network_calls.tolist() == [len(calls)] * 3
    assert set(calls) == {backbone.network_batch}


@pytest.mark.parametrize("name", ["fair_prompt", "fairgen", "prompt_append"])
def test_methods_that_need_prompts_say_so(name, make_mixture, make_task, make_preparation, data):
    mixture = make_mixture()
    mixture.conditional = False
    with pytest.raises(InputError, match="text-to-image"):
        get_method(name)().prepare(make_task(), mixture, data, make_preparation())


# What GPUs do to save memory, on whatever device there is


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["unet", "pixels"])
def test_activations_made_again_give_the_same_weights(
    kind, precision, make_small, make_task, make_preparation, data, tmp_path, monkeypatch
):
    weights, passes = [], []
    for recomputing in (False, True):
        monkeypatch.setattr(training, "recomputes_activations", lambda _, way=recomputing: way)
        backbone, count = make_small(kind), []
        # The trained copy of the network has the hook too.
        first = backbone.unet.down_blocks[0].resnets[0]
        first.register_forward_pre_hook(lambda *_, count=count: count.append(None))
        method = get_method("balanced_data")(steps=3, batch=4, precision=precision)
        preparation = make_preparation(cache=tmp_path / str(recomputing))
        sampler = method.prepare(make_task(), backbone, data, preparation)
        weights.append([p.detach().clone() for p in sampler.backbone.unet.parameters()])
        passes.append(len(count))
    assert passes == [3, 6]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    before = make_small(kind).unet.parameters()
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], before, strict=True))
