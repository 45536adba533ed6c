"""Every method's contract: the checks of ``fairbench check-method``, on every method there is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fairbench.backbones.small import SMALL_BACKBONES
from fairbench.core.method import MethodBase, MethodCard
from fairbench.diffusion import training
from fairbench.methods import get_method, method_names
from fairbench.methods.parts import contract

NAMES = method_names()


def quick(name, **changes):
    return {**get_method(name).quick, **changes}


VARIANTS = [
    ("fairgen", "text", quick("fairgen", merged=True)),
    ("fairgen", "text", quick("fairgen", cfg_branch="both")),
    ("fairgen", "text", quick("fairgen", indicator="stratified")),
    ("fairgen", "text", quick("fairgen", joint=True)),
    ("fairgen_distilled", "pixels", {"classifier_iterations": 2, "distil": False}),
    ("invdiff", "text", quick("invdiff", mixing="convex")),
    ("prompt_append", "mixture", {"indicator": "per_prompt"}),
    ("distribution_guidance", "mixture", quick("distribution_guidance", batch=3, asymmetric=True)),
    ("latent_editing", "mixture", quick("latent_editing", indicator="stratified")),
    ("rejection", "mixture", quick("rejection", max_attempts=3)),
    ("sample_guidance", "mixture", quick("sample_guidance", indicator="stratified")),
]
"""Settings beside the quick ones, whose samplers take another way."""


@pytest.fixture(params=SMALL_BACKBONES)
def trial(request, name, tmp_path):
    """The method on each small backbone; those that it refuses are skipped."""
    if request.param not in fitting(name, tmp_path):
        pytest.skip(f"{name} doesn't work on {request.param}")
    return contract.Trial(name, request.param, tmp_path)


KINDS = {}


def fitting(name, folder):
    if name not in KINDS:
        KINDS[name] = contract.fitting(name, folder)
    return KINDS[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", contract.FILE_CHECKS)
def test_the_file(name, what):
    contract.FILE_CHECKS[what](name)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_backbone_fits_and_others_are_refused(name, tmp_path):
    assert fitting(name, tmp_path)
    contract.backbones_that_do_not_fit_are_refused(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", contract.SAMPLING_CHECKS)
def test_the_images(what, trial):
    contract.SAMPLING_CHECKS[what](trial)


@pytest.mark.parametrize(("name", "kind", "parameters"), VARIANTS)
def test_an_image_depends_on_its_request_alone_with_other_settings(
    name, kind, parameters, tmp_path
):
    contract.one_image_a_request(contract.Trial(name, kind, tmp_path, parameters))


COUPLED = [name for name in NAMES if get_method(name).card.batch_coupled]


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_batches_hold_one_prompt_and_are_the_same_whoever_asks(name, tmp_path):
    trial = contract.Trial(name, "pixels", tmp_path)
    sampler, requests = (
        trial.sampler(),
        trial.requests(6),
    )
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


# What the checks say of methods that break the contract


@dataclasses.dataclass(frozen=True)
class Broken(MethodBase):
    """Takes its noise from the global state."""

    card = MethodCard("broken", "no debiasing", "", "none")

    def prepare(self, task, backbone, data, preparation):
        from fairbench.diffusion.sampling import DDIMSampler

        class Sampler(DDIMSampler):
            def branch(self, name, context, requests, groups):
                plain = super().branch(name, context, requests, groups)
                shift = torch.randn(1)

                def denoise(x, t):
                    predicted = plain(x, t)
                    return predicted.with_value(predicted.value + shift)

                return denoise

        return Sampler(backbone, preparation.sampling)


def test_a_broken_method_is_found_out(monkeypatch):
    scanner = type(
        "Scanner", (), {"files": lambda _: ["broken"], "foreign": dict, "load": lambda *_: Broken}
    )
    monkeypatch.setattr("fairbench.methods.METHODS", scanner())
    problems = {one.what: one.problem for one in contract.check_method("broken") if one.problem}
    assert (
        "global state of torch"
        in problems["global random state is neither used nor changed (mixture)"]
    )
    assert "differ" in problems["one image a request, whatever batch it is made in (pixels)"]
    assert not any("card" in what for what in problems)


# What GPUs do to save memory, on whatever device there is


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["text", "pixels"])
def test_activations_made_again_give_the_same_weights(
    kind, precision, make_task, make_preparation, data, tmp_path, monkeypatch
):
    weights, passes = [], []
    for recomputing in (False, True):
        monkeypatch.setattr(training, "recomputes_activations", lambda _, way=recomputing: way)
        backbone, count = SMALL_BACKBONES[kind](), []
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
    before = SMALL_BACKBONES[kind]().unet.parameters()
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], before, strict=True))
