"""A checked configuration, and the keys that it is found by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fairbench.core.documents import from_json
from fairbench.core.errors import AssetError, InputError, UnfitError
from fairbench.core.keys import run_key
from fairbench.core.method import Method, MethodCard, Request, SamplingConfig
from fairbench.core.progress import Reporter
from fairbench.core.specs import BackboneSpec
from fairbench.core.task import Task, parse_target
from fairbench.datasets.base import Dataset
from fairbench.diffusion.devices import process_count
from fairbench.instruments.catalogue import instrument_spec
from fairbench.instruments.measuring import Instruments
from fairbench.methods import make_method
from fairbench.runs.config import RunConfig
from fairbench.runs.evaluation import Question, measuring_config
from fairbench.runs.judging import judging_config
from fairbench.runs.reference import real_images
from fairbench.runs.requisites import find_requisites
from fairbench.runs.supply import check_supply, plain_bias
from fairbench.scores.strata import check_controls
from fairbench.storage.cache import cache_folder
from fairbench.storage.files import check_writable
from fairbench.storage.records import record_path

if TYPE_CHECKING:
    import torch

__all__ = [
    "Keys",
    "Plan",
    "backbone_facts",
    "backbone_notes",
    "find_backbone",
    "generation_config",
    "image_side",
    "plan_keys",
    "plan_run",
]


@dataclass(frozen=True)
class Plan:
    """A checked configuration: everything resolved, nothing computed.

    `bias` is that of the images that the method trains on; the default one for a method that
    trains on none that are biased.
    """

    config: RunConfig
    question: Question
    backbone: BackboneSpec
    method: Method
    preset: str | None
    sampling: SamplingConfig
    device: torch.device
    dtype: torch.dtype
    bias: str

    @property
    def dataset(self) -> Dataset:
        """The data set."""
        return self.question.dataset

    @property
    def task(self) -> Task:
        """The task, with its target."""
        return self.question.task

    @property
    def requests(self) -> list[Request]:
        """All images of the run, prompt by prompt."""
        counts = self.images_per_prompt
        return [
            Request(prompt, p, i, self.config.seed)
            for p, prompt in enumerate(self.task.prompts)
            for i in range(counts[p])
        ]

    @property
    def images_per_prompt(self) -> tuple[int, ...]:
        """Images of each prompt; they differ by at most one."""
        each, more = divmod(self.config.num_images, len(self.task.prompts))
        return tuple(each + (p < more) for p in range(len(self.task.prompts)))


def plan_run(config: RunConfig, report: Reporter | None = None) -> Plan:
    """Check everything that can be checked cheaply; a data set's files are read once for all.

    Args:
        config: What to do.
        report: Told about the reading of a data set that wasn't prepared yet.

    Raises:
        InputError: With the first thing that is wrong.
        AssetError: If files of the data set or the backbone are missing.
    """
    method, preset = make_method(config.method, config.parameters)
    dataset = find_requisites(
        config.dataset,
        config.data_root,
        generating=True,
        backbone=config.backbone,
        allow_download=config.allow_download,
    )
    backbone = find_backbone(dataset, config.backbone, allow_download=config.allow_download)
    dataset = dataset.sized(image_side(backbone.folder))
    card = method.configured_card()
    _check_prompts(card, backbone, dataset)
    _check_needs(card, backbone)
    task = dataset.task(config.task, conditional=backbone.conditional)
    task = parse_target(config.target, task)
    bias = plain_bias(dataset, config.bias)
    if card.training_set != "biased":
        bias = "default"
    controls = check_controls(config.controls, dataset.attributes, dataset.crossed(task.name))
    sampling = config.sampling(backbone.sampling, conditional=backbone.conditional)
    if sampling.scheduler == "own" and "ddim" in card.needs:
        raise InputError(
            f"--scheduler own: {card.name} needs DDIM's timesteps; leave it out, or use a method "
            "that only needs predictions"
        )
    _check_batches(config, backbone)
    for name in config.encoders:
        instrument_spec(name, "encoder")
    folder = record_path(config.folder, dataset.name, method.card.name, "key").parent
    check_writable(folder, "--results")
    check_writable(cache_folder(), "FAIRBENCH_CACHE")
    dataset.prepare(report or Reporter())
    check_supply(dataset, card, bias)
    real_images(dataset, task)  # what quality is measured against must be there
    from fairbench.diffusion.devices import resolve_device, resolve_dtype

    device = resolve_device(config.device)
    embedded = backbone.expected_sha256() is not None
    dtype = resolve_dtype(config.dtype, device, embedded=embedded)
    question = Question(dataset, task, backbone, controls)
    return Plan(config, question, backbone, method, preset, sampling, device, dtype, bias)


DECODERS = ("vae", "vqvae")
"""Folders of what decodes latents."""


def _check_batches(config: RunConfig, backbone: BackboneSpec) -> None:
    if config.decode_batch is not None and not any(
        (backbone.folder / name).is_dir() for name in DECODERS
    ):
        raise InputError(
            f"--decode-batch: {backbone.name} has no decoder that images go through; leave it out"
        )


def find_backbone(
    dataset: Dataset, name: str | None, *, allow_download: bool = False
) -> BackboneSpec:
    """A backbone: one of the data set's by name, its first for None, a folder, or a hub id.

    Args:
        dataset: Whose backbones are known by name.
        name: As on the command line.
        allow_download: Whether a hub id that isn't in the hub's cache may be downloaded.
    Raises:
        InputError: If it is neither a known name nor looks like a path or a hub id.
        AssetError: If it is nowhere, or no backbone family reads what is there.
    """
    known = {spec.name for spec in dataset.backbones}
    # A name without a slash or an ending that is no file here is a misspelt one.
    own = name is None or name in known or not (Path(name).exists() or set(name) & set("/\\.~"))
    spec = dataset.backbone(name) if own else None
    if spec is not None and not spec.hub:
        return spec
    from fairbench.backbones.base import folder_spec
    from fairbench.backbones.folders import resolve_folder

    wanted = str(name) if spec is None else spec.hub
    folder = resolve_folder(wanted, allow_download=allow_download)
    found = folder_spec(folder, None if Path(wanted).exists() else wanted)
    if spec is None:
        return found
    return dataclasses.replace(
        spec, folder=folder, notes=found.notes, facts=found.facts, settings=found.settings
    )


def image_side(folder: Path) -> int | None:
    """Pixels a side of a pipeline's images, as its configuration says; None if it doesn't."""
    try:
        inner = folder / "unet" / "config.json"
        network = from_json((inner if inner.is_file() else folder / "config.json").read_text())
        side = int(network["sample_size"])
        for decoder in (folder / name / "config.json" for name in DECODERS):
            if not decoder.is_file():
                continue
            side *= 2 ** (len(from_json(decoder.read_text())["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return side


def _check_needs(card: MethodCard, backbone: BackboneSpec) -> None:
    """Refuse a backbone whose family lacks what the method needs before anything is loaded."""
    if card.needs <= {"predictions"} and not backbone.settings:
        return  # every family but those that are called as a whole
    from fairbench.backbones.base import able_families, find_family
    from fairbench.diffusion.backbone import lacking

    lacks = sorted(card.needs - find_family(backbone.folder).capabilities)
    if lacks:
        raise lacking(card, backbone.name, lacks, able_families())


def _check_prompts(card: MethodCard, backbone: BackboneSpec, dataset: Dataset) -> None:
    """Refuse a backbone of the wrong kind before anything is loaded."""
    needed = card.prompts == "needed"
    if card.prompts == "either" or backbone.conditional == needed:
        return
    fitting = [spec.name for spec in dataset.backbones if spec.conditional == needed]
    kind = "a text-to-image backbone" if needed else "a backbone without prompts"
    raise UnfitError(
        f"{card.name} needs {kind}; {backbone.name} is none; choose --backbone "
        f"{' or '.join(fitting)}"
    )


def generation_config(
    plan: Plan, backbone_sha256: str, autocast: torch.dtype | None = None
) -> dict[str, Any]:
    """Everything that the images depend on, and nothing else.

    Args:
        plan: The run.
        backbone_sha256: Hash of its backbone's weights.
        autocast: What ``precision=auto`` means; None: what it means on the plan's device.
    """
    card = plan.method.configured_card()
    config: dict[str, Any] = {
        "method": card.name,
        "version": plan.method.version,
        "parameters": _parameters(plan.method),
        "backbone_sha256": backbone_sha256,
        "prompts": [prompt.text for prompt in plan.task.prompts],
        "num_images": plan.config.num_images,
        "seed": plan.config.seed,
        "sampling": plan.sampling.content(),
        "dtype": str(plan.dtype).removeprefix("torch."),
    }
    asked = getattr(plan.method, "precision", plan.method.training_precision)
    if asked == "auto":  # what it means depends on the machine
        from fairbench.diffusion.devices import resolve_autocast

        autocast = autocast or resolve_autocast(asked, plan.device)
        config["autocast"] = str(autocast).removeprefix("torch.")
    if card.trains and shares_training(plan):  # each process draws rows of its own
        config["processes"] = process_count()
    config |= _batches(plan)
    if plan.config.compile:  # fused kernels round otherwise
        config["compiled"] = True
    if plan.backbone.settings:
        config["backbone_settings"] = plan.backbone.settings
    if card.uses_target:
        config["target"] = dict(zip(plan.task.groups, plan.task.target, strict=True))
    if card.trains and "prompts" in card.supervision:
        config["neutral_prompts"] = [prompt.text for prompt in plan.dataset.subjects]
    if "reference-set" in card.supervision or card.training_set != "none":
        config["data_sha256"] = plan.dataset.data_sha256()
    if plan.bias != "default":
        config["bias"] = plan.bias
    return config


def shares_training(plan: Plan) -> bool:
    """Whether several processes split the steps of what a run trains."""
    able = plan.method.shares_training
    return process_count() > 1 and plan.config.data_parallel and able


def _batches(plan: Plan) -> dict[str, int]:
    """Batch shapes that aren't the backbone's own: kernels round differently for others."""
    from fairbench.backbones.base import default_network_batch

    side = image_side(plan.backbone.folder)
    usual = None if side is None else default_network_batch(side)
    rows, decoded = plan.config.network_batch, plan.config.decode_batch
    batches = {}
    if rows is not None and rows != usual:
        batches["network_batch"] = rows
    if decoded is not None and decoded != (rows or usual):
        batches["decode_batch"] = decoded
    return batches


def _parameters(method: Method) -> dict[str, Any]:
    """The parameters as they enter a key.

    One that is newer than committed records is marked ``omit_default``: at its default, with which
    images are what they were before, it is left out, so that those records are still found.
    """
    return {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(cast("Any", method))
        if not field.metadata.get("omit_default") or getattr(method, field.name) != field.default
    }


@dataclass(frozen=True)
class Keys:
    """What a run is found by.

    Attributes:
        generation: Key of everything that its images depend on.
        run: Key of that, and of everything that its scores depend on.
        config: What the run key is of, with names that change nothing: those of the backbone, the
            preset and the judges, for which the weights' hashes and the parameters stand.
    """

    generation: str
    run: str
    config: Mapping[str, Any]


def plan_keys(
    plan: Plan,
    instruments: Instruments,
    *,
    backbone_sha256: str | None = None,
    autocast: torch.dtype | None = None,
) -> Keys:
    """The keys of a planned run.

    Args:
        plan: The run.
        instruments: What its images will be measured with.
        backbone_sha256: Hash of its backbone's weights where the caller knows it already.
        autocast: As for `generation_config`.
    Raises:
        AssetError: If the backbone's weights aren't those that it was shipped with.
    """
    from fairbench.backbones.base import weights_sha256

    sha256 = backbone_sha256 or weights_sha256(plan.backbone.folder)
    if plan.backbone.expected_sha256() not in (None, sha256):
        raise AssetError(
            f"{plan.backbone.folder}: weights have sha256 {sha256[:8]}…, expected "
            f"{str(plan.backbone.expected_sha256())[:8]}…; reinstall fairbench-diffusion"
        )
    images_config = generation_config(plan, sha256, autocast)
    config = images_config | measuring_config(plan.question, instruments)
    if plan.config.controls:
        config["control"] = sorted(set(plan.config.controls))
    named = config | {"backbone": plan.backbone.name, "preset": plan.preset}
    named |= judging_config(plan.config.judges, plan.config.accept_judge)
    return Keys(run_key(images_config), run_key(config), named)


def backbone_notes(plan: Plan) -> list[str]:
    """What the user must read of the backbone before a run, a line each."""
    own, notes = plan.backbone.facts.get("scheduler"), list(plan.backbone.notes)
    if own not in (None, "DDIMScheduler") and plan.sampling.scheduler == "ddim":
        notes.append(
            f"the scheduler of {plan.backbone.name} is {own}; images are made with DDIM instead "
            "(--scheduler own uses it, with methods that only need predictions)"
        )
    return notes


def backbone_facts(plan: Plan) -> dict[str, Any]:
    """What a record says of a folder of the user's; empty for backbones of the data set."""
    if not plan.backbone.facts:
        return {}
    facts = dict(plan.backbone.facts)
    facts["scheduler"] = {"own": facts.get("scheduler"), "used": plan.sampling.scheduler}
    return {"backbone": facts}
