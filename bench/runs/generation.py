"""Making the images of a run: batch by batch, kept in the cache, resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import InputError
from fairbench.core.method import (
    ImageSet,
    MethodCard,
    Preparation,
    Request,
    Sampler,
    Samples,
    TrainingData,
)
from fairbench.core.progress import Progress, Reporter
from fairbench.datasets.base import Dataset, ImageSource, matches
from fairbench.runs.hidden_labels import hidden_label_facts
from fairbench.runs.pixels import pixels_of
from fairbench.runs.plan import Plan
from fairbench.runs.supply import reference_source, training_source
from fairbench.storage.cache import array_headers, load_arrays, remove, save_arrays
from fairbench.storage.files import working_folder

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone

__all__ = ["Generated", "find_generated", "generate", "help_to_prepare", "training_data"]

PER_IMAGE = frozenset({"images", "requested", "network_calls", "batch_id", "seconds"})
STORED = PER_IMAGE | {"prepare_seconds", "extra_parameters", "facts"}
WHOLE = "all.npz"
DIAGNOSTIC = "diagnostic."
MAKING = "generating images"


@dataclass(frozen=True)
class Generated:
    """Images of a run in the order of its requests, and what they cost."""

    images: NDArray[np.uint8]
    requested: NDArray[np.int64] | None
    network_calls: NDArray[np.int64]
    batch_id: NDArray[np.int64]
    seconds: float
    prepare_seconds: float
    extra_parameters: int
    facts: Mapping[str, Any]


def generate(plan: Plan, key: str, cache: Path, report: Reporter) -> Generated:
    """Make the images of a run, batch by batch; what an interrupted run made is kept.

    Args:
        plan: What to make.
        key: Generation key.
        cache: Cache folder.
        report: Told about progress.
    """
    folder = cache / "images" / key
    whole = folder / WHOLE
    if plan.config.force:
        remove(folder)
    found = find_generated(key, cache)
    if found is not None:
        report.note(f"images found in the cache ({len(found.images)})")
        return found
    started = time.monotonic()
    backbone = _backbone(plan)
    with _method_cache(cache, forced=plan.config.force) as method_cache:
        sampler, audit = _prepared(plan, backbone, method_cache, report)
    prepared = time.monotonic() - started
    # A trained network is behind a backbone of its own; out of memory, its calls become smaller.
    network: Backbone = getattr(sampler, "backbone", backbone)
    requests = plan.requests
    from fairbench.diffusion.sampling import listening

    done = _finished_batches(folder)
    todo = [request for i, request in enumerate(requests) if i not in done]
    position = {id(request): i for i, request in enumerate(requests)}
    size = backbone.network_batch
    made = len(requests) - len(todo)
    for batch in sampler.batches(todo, size):
        at = time.monotonic()
        with listening(_Steps(report.progress, made, len(batch), len(requests))):
            samples = _sampled(sampler, network, batch, report)
        asked = samples.requested
        arrays = {
            "index": np.array([position[id(request)] for request in batch]),
            "images": samples.images,
            "requested": np.full(len(batch), -1) if asked is None else asked,
            "network_calls": samples.network_calls,
            "batch_id": samples.batch_id,
            "seconds": np.array([(time.monotonic() - at) / len(batch)] * len(batch)),
            **{DIAGNOSTIC + name: rows for name, rows in samples.diagnostics.items()},
        }
        first = int(arrays["index"].min())
        save_arrays(folder / f"batch-{first:07d}-{len(batch)}.npz", arrays)
        done |= _rows(arrays)
        made += len(batch)
        report.progress(MAKING, made, len(requests))
    stacked = {
        name: np.stack([done[i][name] for i in range(len(requests))]) for name in sorted(done[0])
    }
    arrays = {name: stacked[name] for name in sorted(PER_IMAGE)}
    seen = {
        name.removeprefix(DIAGNOSTIC): rows
        for name, rows in stacked.items()
        if name.startswith(DIAGNOSTIC)
    }
    observed = sampler.observed({**seen, "batch_id": arrays["batch_id"]})
    # What a resumed run prepared again was paid for by the run that trained it.
    prepared = max(prepared, float(sampler.facts.get("training_seconds", 0.0)))
    arrays["prepare_seconds"] = np.array(prepared)
    arrays["extra_parameters"] = np.array(sampler.extra_parameters)
    facts = {**sampler.facts, **observed, **audit, "network_batch": network.network_batch}
    arrays["facts"] = np.array(json.dumps(facts))
    save_arrays(whole, arrays)
    for part in folder.glob("batch-*.npz"):
        part.unlink(missing_ok=True)
    return _unpacked(arrays)


class _Steps:
    """Progress of one batch of images, in images: each step of sampling is a part of its rows.

    Args:
        progress: What shows it.
        before: Images made before.
        count: Images of the batch.
        total: Images in all.
    """

    def __init__(self, progress: Progress, before: int, count: int, total: int) -> None:
        self._progress, self._before, self._count, self._total = progress, before, count, total
        self._whole = 0
        progress(MAKING, before, total)

    def __call__(self, step: int, steps: int, rows: int) -> None:
        if step == steps:
            self._whole += rows
        # A method may make more than the images that it hands over.
        made = min(self._whole + rows * (step % steps) / steps, self._count)
        self._progress(MAKING, self._before + made, self._total)


def find_generated(key: str, cache: Path) -> Generated | None:
    """The images of a generation key, if the cache holds all of them."""
    stored = load_arrays(cache / "images" / key / WHOLE)
    if stored is None or not stored.keys() >= STORED:
        return None
    return _unpacked(stored)


def help_to_prepare(plan: Plan, key: str, cache: Path, report: Reporter) -> None:
    """Prepare the method together with the first process, which then goes on alone.

    Nothing is done if that process has nothing to prepare, because the images are there.

    Args:
        plan: What to make.
        key: Generation key.
        cache: Cache folder.
        report: Told about progress.
    """
    # Names alone: nothing is unpacked to look at them.
    stored = None if plan.config.force else array_headers(cache / "images" / key / WHOLE)
    if stored is None or not stored.keys() >= STORED:
        with _method_cache(cache, forced=plan.config.force) as method_cache:
            _prepared(plan, _backbone(plan), method_cache, report)


def _rows(arrays: Mapping[str, NDArray[Any]]) -> dict[int, dict[str, Any]]:
    """Image index -> its row of every array."""
    names = [name for name in arrays if name != "index"]
    return {
        int(index): {name: arrays[name][row] for name in names}
        for row, index in enumerate(arrays["index"])
    }


def _finished_batches(folder: Path) -> dict[int, dict[str, Any]]:
    done: dict[int, dict[str, Any]] = {}
    for part in sorted(folder.glob("batch-*.npz")):
        arrays = load_arrays(part)
        if arrays is not None and arrays.keys() >= PER_IMAGE:
            done |= _rows(arrays)
    return done


def _unpacked(arrays: Mapping[str, NDArray[Any]]) -> Generated:
    requested = arrays["requested"]
    return Generated(
        images=arrays["images"],
        requested=None if (requested < 0).any() else requested,
        network_calls=arrays["network_calls"],
        batch_id=arrays["batch_id"],
        seconds=float(arrays["seconds"].sum()),
        prepare_seconds=float(arrays["prepare_seconds"]),
        extra_parameters=int(arrays["extra_parameters"]),
        facts=json.loads(str(arrays["facts"])),
    )


@contextmanager
def _method_cache(cache: Path, *, forced: bool) -> Iterator[Path]:
    """Where a method keeps what it trains; a forced run trains anew, then replaces the old."""
    kept = cache / "trained"
    if not forced:
        yield kept
        return
    with working_folder(cache) as work:
        fresh = work / "trained"
        fresh.mkdir()
        yield fresh
        for path in sorted(fresh.rglob("*")):
            if path.is_file():  # each takes its place at once
                place = kept / path.relative_to(fresh)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)


def _backbone(plan: Plan) -> Backbone:
    from fairbench.backbones.base import load_backbone

    backbone = load_backbone(
        plan.backbone.name,
        plan.backbone.folder,
        device=plan.device,
        dtype=plan.dtype,
        network_batch=plan.config.network_batch,
    )
    backbone.decode_batch = plan.config.decode_batch
    return backbone


def _prepared(
    plan: Plan, backbone: Backbone, cache: Path, report: Reporter
) -> tuple[Sampler, dict[str, Any]]:
    """The sampler, and facts about what the method handed in for an audit.

    The method gets a plain place to put values into. Labels that its card doesn't declare are
    read after it is prepared, so that nothing which it holds leads to them.
    """
    handed_in: dict[str, NDArray[Any]] = {}
    preparation = Preparation(
        seed=plan.config.seed,
        sampling=plan.sampling,
        images_per_prompt=plan.images_per_prompt,
        cache=cache,
        progress=report.progress,
        audit=handed_in.__setitem__,
        dtype=str(plan.dtype).removeprefix("torch."),
    )
    card = plan.method.configured_card()
    from fairbench.diffusion.backbone import check_needs

    check_needs(card, backbone)
    data = training_data(plan.dataset, card, backbone.image_size, plan.bias)
    import torch

    try:
        sampler = plan.method.prepare(plan.task, backbone, data, preparation)
    except (MemoryError, RuntimeError) as error:
        # A CPU's allocator has no error of its own.
        full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not full and "can't allocate memory" not in str(error):
            raise
        raise InputError(
            f"{backbone.device} has too little memory to prepare {card.name} on {backbone.name}; "
            "lower what its --param make large, such as batch, or use another --device"
        ) from None
    return sampler, _audited(plan, card, handed_in)


def _audited(plan: Plan, card: MethodCard, scores: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What hidden labels say of scores of the training images; empty without scores."""
    if not scores:
        return {}
    dataset = plan.dataset
    images = training_source(dataset, card, plan.bias)
    attributes = {name: dataset.attributes[name] for name in dataset.sensitive}
    return {"audit": hidden_label_facts(scores, _image_set(images, dataset, True), attributes)}


def _sampled(
    sampler: Sampler, backbone: Backbone, batch: Sequence[Request], report: Reporter
) -> Samples:
    """Sample a batch; out of memory, with half the network batch, which the record says."""
    import torch

    while True:
        try:
            return sampler(batch)
        except torch.OutOfMemoryError:
            if backbone.network_batch == 1:
                raise InputError(
                    f"{backbone.device} has too little memory for one image of {backbone.name}; "
                    "free some or choose another --device"
                ) from None
            backbone.network_batch //= 2
            report.warn(f"out of memory: going on with {backbone.network_batch} rows a call")


def training_data(
    dataset: Dataset, card: MethodCard, side: int | None = None, bias: str = "default"
) -> TrainingData:
    """What a method may learn from: what its card declares, nothing more.

    Args:
        dataset: Whose images.
        card: Declares what the method learns from.
        side: Pixels a side that images are brought to; None leaves them as they are.
        bias: Of the images that it trains on, where its card says biased.

    Raises:
        InputError: If the data set lacks what the card declares.
    """
    labelled = "labels" in card.supervision
    training = reference = None
    if card.training_set != "none":
        training = _image_set(training_source(dataset, card, bias), dataset, labelled, side)
    if "reference-set" in card.supervision:
        reference = _image_set(reference_source(dataset, card), dataset, labelled, side)
    return TrainingData(
        neutral_prompts=dataset.subjects if "prompts" in card.supervision else (),
        subjects=dataset.subjects if training or reference else (),
        training=training,
        reference=reference,
        attributes=dataset.attributes if labelled else {},
    )


def _image_set(
    source: ImageSource, dataset: Dataset, labelled: bool, side: int | None = None
) -> ImageSet:
    """Images of a source, `side` pixels a side, with the subject that each shows, -1 for none."""
    subjects = np.full(len(source), -1)
    for i, prompt in enumerate(dataset.subjects):
        subjects[matches(prompt, source.labels, dataset.attributes, len(source))] = i
    labels = dict(source.labels) if labelled else None
    return ImageSet(pixels_of(source, side), subjects, labels)
