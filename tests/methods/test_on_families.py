"""Every method on every family of backbones that it fits; others refuse it in one line."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fairbench.backbones.base import able_families, load_backbone
from fairbench.build.stand_ins import write_stand_in
from fairbench.core.errors import InputError
from fairbench.diffusion.backbone import lacking
from fairbench.methods import get_method, method_names
from fairbench.methods.parts import contract

KINDS = {
    "sd1": "stable_diffusion",
    "sd_zero_snr": "stable_diffusion",
    "sdxl": "sdxl",
    "ddpm": "ddpm",
    "learned_variance": "ddpm",
    "classes": "ddpm",
    "ldm": "latent",
    "sd3": "black_box",
}
QUICK = ("sd_zero_snr", "sdxl", "learned_variance", "classes", "ldm", "sd3")
"""Kinds that differ most from the small backbones, on which every method's contract is held."""

WHOLE = {"vanilla", "prompt_append", "fair_prompt", "rejection"}
NEEDS_SIGNAL = {"universal_guidance"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    made = {}

    def load(kind):
        if kind not in made:
            folder = write_stand_in(kind, tmp_path_factory.mktemp(kind) / kind)
            made[kind] = load_backbone(
                kind,
                folder,
                device=torch.device("cpu"),
                dtype=torch.float32,
                network_batch=4,
            )
            if kind == "classes":  # an empty class too, which the fourth row is
                made[kind].name_classes({"person": 0, "tennis player": 1, "santa": 2})
        return copy.deepcopy(made[kind])

    return load


def fits(name, kind, backbone):
    """Whether the method's card and needs allow the backbone."""
    card = get_method(name).card
    needs = card.needs <= set(FAMILIES[KINDS[kind]])
    if kind == "sd_zero_snr" and name in NEEDS_SIGNAL:
        return False
    return needs and contract.fits(card, backbone)


FAMILIES = {
    family: {need for need, able in able_families().items() if family in able}
    for family in set(KINDS.values())
}


def test_families_differ_in_what_they_have():
    every = {"predictions", "training", "bottleneck", "ddim"}
    assert {name: FAMILIES[name] for name in FAMILIES} == {
        "stable_diffusion": every | {"cross-attention"},
        "sdxl": every | {"cross-attention"},
        "ddpm": every,
        "latent": every,
        "black_box": set(),
    }
    assert {name for name in method_names() if not get_method(name).card.needs} == WHOLE


@pytest.mark.parametrize("kind", QUICK)
@pytest.mark.parametrize("name", method_names())
def test_a_method_runs_or_is_refused(name, kind, loaded, tmp_path):
    trial = contract.Trial(name, kind, tmp_path, make=lambda: loaded(kind))
    if not fits(name, kind, loaded(kind)):
        with pytest.raises(InputError) as caught:
            trial.sampler()
        message = str(caught.value)
        assert "\n" not in message
        assert name in message or "fairgen" in message
        assert "--backbone" in message or "needs" in message or "use" in message
        return
    sampler, requests = trial.sampler(), trial.requests(3)[:3]
    together = sampler(requests)
    assert together.images.shape == (3, *(loaded(kind).image_size,) * 2, 3)
    assert len({image.tobytes() for image in together.images}) == 3
    (batch,) = sampler.batches(requests[1:2], 1)
    np.testing.assert_array_equal(sampler(batch).images[0], together.images[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("what", contract.SAMPLING_CHECKS)
def test_the_whole_contract(what, name, kind, loaded, tmp_path):
    trial = contract.Trial(name, kind, tmp_path, make=lambda: loaded(kind))
    if fits(name, kind, loaded(kind)) and not (
        KINDS[kind] == "black_box" and what.startswith("network calls")
    ):
        contract.SAMPLING_CHECKS[what](trial)


def test_what_is_lacking_is_said_with_the_families_that_have_it():
    card = get_method("fairgen").card
    said = str(lacking(card, "tiny", ["cross-attention"], able_families()))
    assert said == (
        "fairgen needs cross-attention, which tiny hasn't; choose another --backbone, of one of "
        "the families sdxl, stable_diffusion"
    )
