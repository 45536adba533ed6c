"""No method reads a tensor of the device inside the sampling loop, where a GPU would wait for it.

On a CPU nothing is copied, so it is followed which tensors would be on a GPU: all but those that
are made without a device, or from such ones alone.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fairbench.core.method import SamplingConfig
from fairbench.diffusion.sampling import DDIMSampler, listening
from fairbench.methods import get_method, method_names
from fairbench.methods.parts import contract

READING = frozenset(
    {
        "__array__",
        "__bool__",
        "__contains__",
        "__float__",
        "__index__",
        "__int__",
        "cpu",
        "equal",
        "item",
        "masked_select",
        "nonzero",
        "numpy",
        "tolist",
        "unique",
    }
)
"""Functions that wait for a number of the device, or whose result's shape depends on one."""


class Followed(TorchFunctionMode):
    """Counts what would be copied from a GPU; `near` marks tensors that would be on the host."""

    def __init__(self):
        super().__init__()
        self.copies, self.looking = [], False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        near = all(getattr(one, "near", False) for one in given)
        moved = kwargs.get("device") is not None or (
            name == "to" and any(isinstance(one, torch.device) for one in tree_leaves(args))
        )
        masked = name in ("__getitem__", "__setitem__") and any(
            one.dtype == torch.bool and not getattr(one, "near", False) for one in given[1:]
        )
        if self.looking and not near and (name in READING or masked):
            self.copies.append(name)
        result = function(*args, **kwargs)
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                if any(one is source for source in given):
                    if name != "to" or not moved:
                        continue  # changed in place
                    result = one = one.view(one.shape)
                one.near = name == "cpu" or (near and not moved)
        return result


def followed(sampler, requests, backbone):
    """What a sampler copies between its first step and its last one, and the steps seen."""
    mode, steps = Followed(), []
    backbone.schedule.alphas_cumprod.near = True

    def listen(step, whole, rows):
        steps.append(step)
        mode.looking = step < whole

    with mode, listening(listen):
        for batch in sampler.batches(requests, backbone.network_batch):
            sampler(batch)
    return mode.copies, steps


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kinds_of(name):
    """Kinds of backbones that a method's card allows."""
    card = get_method(name).card
    kinds = {"text": "needed", "pixels": "none"}
    return [
        kind
        for kind, prompts in kinds.items()
        if card.prompts in ("either", prompts)
        and (kind == "text" or "cross-attention" not in card.needs)
    ]


def changed(name, **parameters):
    return {**get_method(name).quick, **parameters}


CASES = [(name, kind, None) for name in method_names() for kind in kinds_of(name)]
CASES += [
    ("distribution_guidance", "text", changed("distribution_guidance", batch=3, asymmetric=True)),
    ("fairgen", "text", changed("fairgen", cfg_branch="both")),
    ("fairgen", "text", changed("fairgen", joint=True)),
    ("fairgen", "text", changed("fairgen", merged=True)),
    ("invdiff", "text", changed("invdiff", mixing="convex")),
]


def test_every_method_is_followed():
    assert {name for name, _, _ in CASES} == {*method_names()}


@pytest.mark.parametrize(("name", "kind", "parameters"), CASES)
def test_a_method_copies_nothing_inside_the_loop(name, kind, parameters, make_text_unet, tmp_path):
    make = make_text_unet if kind == "text" else None
    trial = contract.Trial(name, kind, tmp_path, parameters, make)
    backbone = trial.fresh()
    sampler, requests = trial.sampler(backbone=backbone), trial.requests(3)
    for eta in (0.0, 0.5):
        sampler.config = dataclasses.replace(sampler.config, eta=eta)
        copies, steps = followed(sampler, requests, backbone)
        assert steps[:2] == [1, 2]  # the second one is looked at as a whole
        assert copies == []


def test_a_copy_would_be_seen(make_text_unet):
    class Reading(DDIMSampler):
        def branch(self, name, context, requests, groups):
            plain = super().branch(name, context, requests, groups)

            def denoise(x, t):
                predicted = plain(x, t)
                value = predicted.value
                low, high = float(value.min()), value.amax((1, 2, 3)).tolist()
                if bool((value > 1).any()) or max(high) < low:
                    value = torch.where(value > 1, 1, value)
                value[value < -1] = -1
                return predicted.with_value(value)

            return denoise

    backbone = make_text_unet()
    sampler = Reading(backbone, SamplingConfig(3, 1.0))
    copies, _ = followed(sampler, contract.Trial("vanilla", "text", None).requests(1), backbone)
    seen = ["__float__", "tolist", "__bool__", "__setitem__"]
    assert copies == 2 * seen  # the first step is made before anything is looked at
