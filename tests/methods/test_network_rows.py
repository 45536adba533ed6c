"""How many rows the denoising network computes for so many images: none beyond network batches."""

from __future__ import annotations

import math

import pytest
import torch

from fairbench.backbones.base import load_backbone
from fairbench.build.stand_ins import STAND_INS, write_stand_in
from fairbench.core.method import Request, SamplingConfig
from fairbench.core.task import Prompt
from fairbench.diffusion.backbone import WholeCall
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.methods import get_method, method_names
from fairbench.methods.parts import contract

COUNT = 5
LEVELS = 2


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def counted(backbone, monkeypatch):
    """Rows of each call of the backbone's network from now on, whatever network it has."""
    kind, rows = type(backbone), []
    network = kind._network

    def counting(self, x, t, context):
        rows.append(len(x))
        return network(self, x, t, context)

    monkeypatch.setattr(kind, "_network", counting)
    return rows


def parameters_of(name, width):
    quick = dict(get_method(name).quick)
    if "batch" in quick and get_method(name).card.batch_coupled:
        quick["batch"] = width  # a coupled batch is one network batch
    return quick


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("name", method_names())
def test_a_method_computes_whole_network_batches_alone(
    name, width, make_text_unet, monkeypatch, tmp_path
):
    card = get_method(name).card
    kind = "pixels" if card.prompts == "none" else "text"
    if card.batch_coupled and width < LEVELS:
        width = LEVELS

    def make():
        backbone = make_text_unet() if kind == "text" else contract.SMALL_BACKBONES[kind]()
        backbone.network_batch = width
        return backbone

    trial = contract.Trial(name, kind, tmp_path, parameters_of(name, width), make)
    backbone = trial.fresh()
    sampler = trial.sampler(backbone=backbone)
    rows = counted(backbone, monkeypatch)
    batches = sampler.batches(trial.requests(COUNT)[:COUNT], width)
    calls = [int(sum(sampler(batch).network_calls)) for batch in batches]
    filled = sum(call // len(batch) for call, batch in zip(calls, batches, strict=True)) * width
    assert max(rows) <= width
    if name == "rejection":  # attempts ahead of their turn fill what would be empty
        assert sum(rows) >= sum(calls)
        assert width > 1 or sum(rows) == sum(calls)
        return
    assert len(batches) == math.ceil(COUNT / width)
    assert sum(rows) == filled
    if width == 1:
        assert sum(rows) == sum(calls)  # not one that nobody asked for


PROMPTS = {"classes": "1", "ddpm": "", "ddim": "", "learned_variance": "", "thresholding": ""}
PROMPTS["ldm"] = ""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = write_stand_in(kind, tmp_path_factory.mktemp(kind) / kind)
        return made[kind]

    return folder


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("scheduler", ["ddim", "own"])
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("kind", STAND_INS)
def test_a_family_computes_whole_network_batches_alone(kind, width, scheduler, folder_of):
    folder = folder_of(kind)
    backbone = load_backbone(
        kind, folder, device=torch.device("cpu"), dtype=torch.float32, network_batch=width
    )
    called_whole = backbone.capability(WholeCall) is not None
    if called_whole and scheduler == "ddim":
        pytest.skip("it is called with its own")
    pipeline = backbone._pipeline if called_whole else backbone
    network = getattr(pipeline, "transformer", None) or pipeline.unet
    rows = []
    network.register_forward_pre_hook(
        lambda _, args, given: rows.append(len(args[0] if args else given["hidden_states"])),
        with_kwargs=True,
    )
    text = PROMPTS.get(kind, "person")
    guidance = 3.0 if text == "person" and kind != "lcm" else 1.0
    sampler = DDIMSampler(backbone, SamplingConfig(3, guidance, scheduler=scheduler))
    requests = [Request(Prompt(text), 0, i, 0) for i in range(COUNT)]
    batch = backbone.network_batch  # one image a call where it takes no list of generators
    made = sampler(requests)
    assert made.network_calls.sum() >= COUNT * 3
    wanted = int(made.network_calls[0]) * batch * math.ceil(COUNT / batch)
    # Both branches of the last image's guidance fit one call.
    spared = (
        made.network_calls[0] // 2 * batch
        if guidance != 1 and not called_whole and batch == 4
        else 0
    )
    assert sum(rows) == wanted - spared
    assert max(rows) <= batch * (2 if called_whole else 1)
