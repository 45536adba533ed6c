"""What only a GPU can show; run by hand: ``pytest -m gpu``. No published weights are needed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fairbench.backbones.diffusers_pipelines import DiffusersBackbone
from fairbench.backbones.small import text_network
from fairbench.core.method import Request, SamplingConfig
from fairbench.datasets.base import get_dataset
from fairbench.diffusion import sampling
from fairbench.diffusion.sampling import DDIMSampler, ddim

pytestmark = pytest.mark.gpu

FORMATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def there():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def made_on(device, dtype=torch.float32):
    return DiffusersBackbone(
        "tiny",
        copy.deepcopy(text_network()),
        sha256="tiny",
        device=torch.device(device),
        dtype=dtype,
        network_batch=4,
    )


def asked(count):
    (prompt,) = get_dataset(None).task("gender", conditional=True).prompts
    return [Request(prompt, 0, i, 0) for i in range(count)]


def sampler(backbone):
    return DDIMSampler(backbone, SamplingConfig(10, 3.0))


@pytest.mark.parametrize("dtype", FORMATS)
def test_images_are_nearly_those_of_a_cpu(dtype):
    expected = sampler(made_on("cpu"))(asked(6)).images.astype(int)
    found = sampler(made_on("cuda", dtype))(asked(6)).images.astype(int)
    assert np.abs(found - expected).mean() < (0.1 if dtype == torch.float32 else 4)


def test_an_image_is_the_same_beside_others():
    backbone = made_on("cuda")
    together = sampler(backbone)(asked(6)).images
    apart = np.concatenate([sampler(backbone)([one]).images for one in asked(6)])
    np.testing.assert_array_equal(together, apart)


def test_the_loop_copies_nothing_back(monkeypatch):
    monkeypatch.setattr(sampling, "_finite", lambda x, backbone: x)  # looked at once, behind it
    backbone, requests = made_on("cuda"), asked(4)
    denoise, _ = sampler(backbone).denoiser(requests, [None] * 4)
    with torch.inference_mode(), torch.profiler.profile() as told:
        found = ddim(backbone, denoise, requests, SamplingConfig(10, 3.0))
        torch.cuda.synchronize()
    assert [event.name for event in told.events() if "DtoH" in event.name] == []
    with torch.profiler.profile() as told:
        found.cpu()
    assert any("DtoH" in event.name for event in told.events())  # so it would be seen


def test_convolutions_are_channels_last():
    (weight, *_) = [
        module.weight
        for module in made_on("cuda").unet.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    assert weight.is_contiguous(memory_format=torch.channels_last)
