"""Diffusion models of pixels: without prompts, or with classes in their place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fairbench.backbones.base import Description, Family
from fairbench.backbones.diffusers_pipelines import DiffusersBackbone, describe_unet, loader_of
from fairbench.backbones.folders import PipelineFolder
from fairbench.core.errors import InputError
from fairbench.core.method import SamplingConfig

SAMPLING = SamplingConfig(steps=25, guidance=1.0)
PARTS = ("scheduler", "unet")


def class_names(index: Mapping[str, Any], count: int) -> dict[str, int]:
    """Name -> class of a class-conditional model.

    Args:
        index: What ``model_index.json`` says; its ``id2label`` names classes, one by one or by
            synonyms with commas between, as diffusers' DiT has it.
        count: Rows of the network's table; one more than there are names is the empty class.
    """
    labels = index.get("id2label")
    if not isinstance(labels, dict):
        return {str(number): number for number in range(count)}
    names: dict[str, int] = {}
    for number, said in sorted(labels.items(), key=lambda item: int(item[0])):
        for name in str(said).split(","):
            names.setdefault(name.strip().lower(), int(number))
    return names


def class_of(text: str, names: Mapping[str, int]) -> int | None:
    """The class that a prompt names, the longest name in it; None if it names none."""
    found = [name for name in names if re.search(rf"\b{re.escape(name)}\b", text.lower())]
    return names[max(found, key=len)] if found else None


class PixelBackbone(DiffusersBackbone):
    """A pixel model whose prompts, where it takes any, name one of its classes; as its base."""

    def __init__(self, name: str, pipeline: Any, **options: Any) -> None:
        super().__init__(name, pipeline, **options)
        self.classes = self._unet.config.get("num_class_embeds")
        self.conditional = self.classes is not None
        self.name_classes(class_names({}, self.classes or 0))

    def name_classes(self, names: Mapping[str, int]) -> None:
        """Say what classes are called; one that has no name is the empty one.

        Args:
            names: Name -> class.
        """
        self.names = dict(names)
        free = set(range(self.classes or 0)) - set(self.names.values())
        self.empty_class = max(free) if free else None

    def embed(self, prompts: Sequence[str]) -> Tensor | None:
        """The class of each prompt, (B, 1, 1) float32; None for an unconditional model.

        Raises:
            InputError: If a prompt names no class, or it is empty and there is no empty class.
        """
        if not self.conditional:
            return None
        found: list[int] = []
        for prompt in prompts:
            one = class_of(prompt, self.names) if prompt else self.empty_class
            if one is None and not prompt:
                raise InputError(
                    f"{self.name} has no empty class, which guidance and methods with empty "
                    "prompts need; leave --guidance at 1, or use another method"
                )
            if one is None:
                some = ", ".join(list(self.names)[:8])
                raise InputError(
                    f"the prompt {prompt!r} names no class of {self.name}; its {len(self.names)} "
                    f"class names are {some}{', …' if len(self.names) > 8 else ''}; give the "
                    "names of classes as id2label in its model_index.json"
                )
            found.append(one)
        return torch.tensor(found, dtype=torch.float32, device=self.device)[:, None, None]

    def _network(self, x_t: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return super()._network(x_t, t, None)
        dtype = next(self._unet.parameters()).dtype
        labels = context[:, 0, 0].round().long()
        return cast("Tensor", self._unet(x_t.to(dtype), t, class_labels=labels).sample).float()


def describe(pipeline: PipelineFolder) -> Description:
    """What the folder's JSON says: a U-Net with a table of classes takes prompts."""
    conditional = pipeline.config("unet").get("num_class_embeds") is not None
    return describe_unet(
        pipeline, SAMPLING, conditional=conditional, parts=PARTS, inputs={"num_class_embeds": None}
    )


def load(name: str, folder: Path, **options: Any) -> PixelBackbone:
    """Load the folder, with the names of its classes if it has any."""
    backbone = cast("PixelBackbone", loader_of(PixelBackbone, PARTS)(name, folder, **options))
    if backbone.classes is not None:
        index = PipelineFolder.read(folder).index
        backbone.name_classes(class_names(index, backbone.classes))
    return backbone


FAMILY = Family(
    name="ddpm",
    title="DDPM and DDIM pipelines in pixel space, unconditional or with classes as prompts",
    pipelines=("DDPMPipeline", "DDIMPipeline"),
    conditional=False,
    sampling=SAMPLING,
    load=load,
    parts=PARTS,
    describe=describe,
)
