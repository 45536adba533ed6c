import json

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DiffusionPipeline, StableDiffusionPipeline

from fairbench.backbones.base import load_backbone, weights_sha256
from fairbench.build import measure_backbones
from fairbench.build.training import TrainingRun
from fairbench.core.task import Prompt
from fairbench.datasets.cartoonfaces import ASSETS, DATASET
from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES
from fairbench.instruments.measuring import load_instruments

SPECS = {spec.name: spec for spec in CARTOONFACES.backbones}


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


def test_the_folders_are_ordinary_diffusers_pipelines(spec):
    pipeline = DiffusionPipeline.from_pretrained(spec.folder, local_files_only=True)
    kind = StableDiffusionPipeline if spec.conditional else DDIMPipeline
    assert type(pipeline) is kind
    assert weights_sha256(spec.folder) == spec.expected_sha256()


def test_together_they_stay_small():
    folder = ASSETS / "backbones"
    names = {path.name for path in folder.iterdir()}
    assert names == {*SPECS, "analytic-plain", "analytic-text"}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 40e6


MISSES = {
    "cartoonfaces-sd": ["validity"],
    "cartoonfaces-ddpm": [],
}
"""Bars that a backbone is known to miss, as its card and the README say."""


def test_the_card_says_how_it_was_made_and_which_bars_hold(spec):
    card = (spec.folder / "README.md").read_text()
    facts = json.loads((spec.folder / "training.json").read_text())
    for stage in facts["stages"]:
        assert stage["command"] in card
        assert str(stage["seconds"]) in card
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 12
    missed = [row[0].removeprefix("| ") for row in rows if row[3] != "yes"]
    assert missed == MISSES[spec.name]


def test_a_few_images_are_faces_with_the_training_bias(spec):
    instruments = load_instruments("cpu", DATASET.instruments())
    backbone = load_backbone(
        spec.name, spec.folder, device=torch.device("cpu"), dtype=torch.float32
    )
    prompts = CARTOONFACES.subjects if spec.conditional else (Prompt(""),)
    n = 128
    images = measure_backbones.draw(backbone, spec, prompts, n, 1.0)
    assert images.shape == (n, 32, 32, 3)
    valid = instruments.validity(images)["validity"] >= instruments.validity.threshold
    assert valid.mean() >= 0.9
    read = instruments.judges[0](images)
    # Trained: .70 male, .55 white; 3.3 standard errors of 128 images, and the card's own gap.
    assert (read["gender"].argmax(1) == 1).mean() == pytest.approx(0.70, abs=0.15)
    assert (read["race"].argmax(1) == 3).mean() == pytest.approx(0.55, abs=0.21)
    if spec.conditional:
        assert (read["role"].argmax(1) == np.arange(n) % len(prompts)).mean() >= 0.9


def test_training_resumes_exactly(tmp_path):
    def trained(path, stops):
        torch.manual_seed(0)
        start = torch.nn.Linear(3, 1)
        for stop in stops:
            # As another process would: everything but the start comes from the file.
            module = torch.nn.Linear(3, 1)
            module.load_state_dict(start.state_dict())
            run = TrainingRun(path, module, 20, lr=0.1, decay=0.9)

            def loss_of(rng, run=run, stop=stop, module=module):
                if run.step == stop:
                    run.save()
                    raise KeyboardInterrupt
                x = torch.from_numpy(rng.normal(size=(4, 3))).float()
                return (
                    (module(x + 0.1 * torch.randn(4, 3)) - x.sum(1, keepdim=True)).square().mean()
                )

            try:
                run.train(loss_of)
            except KeyboardInterrupt:
                continue
        assert run.step == 20
        return module.weight.detach()

    whole = trained(tmp_path / "whole.pt", [None])
    torch.testing.assert_close(
        trained(tmp_path / "parts.pt", [7, 13, None]), whole, rtol=0, atol=0
    )
