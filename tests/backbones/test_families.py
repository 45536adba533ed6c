import json

import pytest
import torch

from fairbench.backbones.base import FAMILIES, find_family, load_backbone
from fairbench.core.errors import AssetError
from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES


def test_each_file_is_one_family_and_no_pipeline_has_two():
    families, broken = FAMILIES.entries()
    assert not broken
    assert {name: family.name for name, family in families.items()} == {
        name: name for name in families
    }
    assert {"ddpm", "stable_diffusion"} <= set(families)
    pipelines = [one for family in families.values() for one in family.pipelines]
    assert len(set(pipelines)) == len(pipelines)


def test_shipped_backbones_are_of_a_family_that_says_the_same_of_prompts():
    for spec in CARTOONFACES.backbones:
        assert find_family(spec.folder).conditional == spec.conditional


@pytest.mark.parametrize(
    ("pipeline", "steps", "guidance"),
    [("StableDiffusionPipeline", 25, 7.5), ("DDPMPipeline", 25, 1.0), ("DDIMPipeline", 25, 1.0)],
)
def test_how_a_family_is_sampled(tmp_path, pipeline, steps, guidance):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    sampling = find_family(tmp_path).sampling
    assert (sampling.steps, sampling.guidance, sampling.eta) == (steps, guidance, 0)


def test_an_unknown_class_is_refused_by_name_with_those_that_work(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(AssetError) as caught:
        load_backbone("flux", tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    message = str(caught.value)
    assert "\n" not in message
    for word in (
        "'flux'",
        "NoSuchPipeline",
        "DDIMPipeline, DDPMPipeline, GaussianMixturePipeline, LDMPipeline, StableDiffusion",
    ):
        assert word in message
