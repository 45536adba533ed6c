"""The data sets: their attributes, tasks, backbones and splits, by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fairbench.core.errors import InputError, unknown_name
from fairbench.core.method import ImageSet, SamplingConfig
from fairbench.core.specs import BackboneSpec
from fairbench.core.task import Prompt, Task
from fairbench.datasets import cartoonfaces

__all__ = ["DATASETS", "Dataset", "get_dataset"]

ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class Dataset:
    """A data set with every attribute known.

    Attributes:
        name: Its name on the command line.
        title: One line.
        image_size: Pixels a side.
        attributes: Attribute -> levels in declared order.
        sensitive: The attributes whose shares a fair generator is asked for.
        prompts: Neutral prompts, without attribute words; the first is the general one.
        tasks: Task name -> its attributes; a task that ends in ``_by_<attribute>`` asks every
            prompt and is ranked on the mean over prompts.
        backbones: The first is the default.
    """

    name: str
    title: str
    image_size: int
    attributes: Mapping[str, tuple[str, ...]]
    sensitive: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    tasks: Mapping[str, tuple[str, ...]]
    backbones: tuple[BackboneSpec, ...]

    def backbone(self, name: str | None) -> BackboneSpec:
        """A backbone by name, the default for None, or a pipeline folder by its path.

        Raises:
            InputError: If it is neither a known name nor a folder.
        """
        if name is None:
            return self.backbones[0]
        for spec in self.backbones:
            if spec.name == name:
                return spec
        folder = Path(name).resolve()
        index = folder / "model_index.json"
        if not index.is_file():
            raise unknown_name("backbone", name, [spec.name for spec in self.backbones])
        try:
            conditional = "text_encoder" in json.loads(index.read_text())
        except ValueError:
            raise InputError(
                f"{index} isn't JSON; give --backbone a folder made by save_pretrained"
            ) from None
        sampling = SamplingConfig(steps=25, guidance=7.5 if conditional else 1.0)
        return BackboneSpec(folder.name, folder, conditional, sampling, f"pipeline at {folder}")

    def task(self, name: str | None, *, conditional: bool) -> Task:
        """A task by name, the first for None, with a uniform target.

        Raises:
            InputError: If there is no such task, or it needs prompts and the backbone takes none.
        """
        if name is None:
            name = next(iter(self.tasks))
        if name not in self.tasks:
            raise unknown_name("task", name, self.tasks)
        by_prompt = "_by_" in name
        if by_prompt and not conditional:
            raise InputError(
                f"task {name!r} asks prompts and the backbone takes none; choose one of "
                f"{', '.join(task for task in self.tasks if '_by_' not in task)}"
            )
        prompts = self.prompts if by_prompt else self.prompts[:1]
        if not conditional:
            prompts = (Prompt(""),)
        attributes = {key: self.attributes[key] for key in self.tasks[name]}
        groups = 1
        for levels in attributes.values():
            groups *= len(levels)
        target = (1 / groups,) * groups
        return Task(name, MappingProxyType(attributes), prompts, target, by_prompt)

    def training_images(self, composition: str, *, labelled: bool) -> ImageSet:
        """The images that backbones were trained on, or as many balanced ones.

        Args:
            composition: ``"biased"`` or ``"balanced"``.
            labelled: Whether labels come with them.
        """
        profile = {"biased": cartoonfaces.DEFAULT_BIAS, "balanced": cartoonfaces.BALANCED}
        return self._image_set(cartoonfaces.training_split(profile[composition]), labelled)

    def reference_images(self, n: int, *, labelled: bool) -> ImageSet:
        """The first `n` of the balanced images that methods may use as a reference set."""
        split = cartoonfaces.load_split("method_reference")
        return self._image_set(split.take(np.arange(min(n, len(split)))), labelled)

    def _image_set(self, split: cartoonfaces.Split, labelled: bool) -> ImageSet:
        subjects = np.full(len(split), -1)
        for i, prompt in enumerate(self.prompts):
            matches = [
                split.labels[a] == self.attributes[a].index(level)
                for a, level in prompt.stratum.items()
            ]
            subjects[np.logical_and.reduce(matches)] = i
        return ImageSet(split.images, subjects, dict(split.labels) if labelled else None)

    def data_sha256(self) -> str:
        """Hash of the shipped data files."""
        splits = {k: v["sha256"] for k, v in cartoonfaces.manifest()["splits"].items()}
        return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()


CARTOONFACES = Dataset(
    name="cartoonfaces",
    title="32 x 32 cartoon faces from a public generator, every attribute known; embedded",
    image_size=32,
    attributes=cartoonfaces.ATTRIBUTES,
    sensitive=("gender", "race"),
    prompts=tuple(
        Prompt(role, {"role": role}, cartoonfaces.TEMPLATE)
        for role in cartoonfaces.ATTRIBUTES["role"]
    ),
    tasks=MappingProxyType(
        {
            "gender": ("gender",),
            "race": ("race",),
            "gender_race": ("gender", "race"),
            "gender_by_role": ("gender",),
        }
    ),
    backbones=(
        BackboneSpec(
            "cartoonfaces-sd",
            ASSETS / "backbones" / "cartoonfaces-sd",
            True,
            SamplingConfig(steps=25, guidance=3.0),
            "tiny StableDiffusionPipeline, text-to-image; understands roles and attribute words",
            cartoonfaces.training_split,
        ),
        BackboneSpec(
            "cartoonfaces-ddpm",
            ASSETS / "backbones" / "cartoonfaces-ddpm",
            False,
            SamplingConfig(steps=50, guidance=1.0),
            "tiny unconditional pixel model (UNet2DModel) trained on the same biased images",
            cartoonfaces.training_split,
        ),
    ),
)

DATASETS: Mapping[str, Dataset] = MappingProxyType({CARTOONFACES.name: CARTOONFACES})


def get_dataset(name: str) -> Dataset:
    """A data set by name.

    Raises:
        InputError: If there is none of that name.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]
