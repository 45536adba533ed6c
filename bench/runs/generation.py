"""Making the images of a run: batch by batch, kept in the cache, resumable."""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import InputError
from fairbench.core.method import (
    Check,
    ImageSet,
    MethodCard,
    Preparation,
    Sampler,
    TrainingData,
)
from fairbench.core.progress import Progress, Reporter
from fairbench.datasets.base import ArrayImages, Dataset, ImageSource, matches
from fairbench.diffusion.devices import (
    is_main_process,
    meet,
    process_count,
    process_index,
    training_alone,
)
from fairbench.runs.hidden_labels import hidden_label_facts
from fairbench.runs.pixels import pixels_of
from fairbench.runs.plan import Plan, image_side, shares_training
from fairbench.runs.supply import reference_source, training_source
from fairbench.storage.cache import load_arrays, save_arrays
from fairbench.storage.files import FREE, remove, working_folder
from fairbench.storage.readings import ImageList
from fairbench.storage.shards import IMAGES, ShardImages

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone

__all__ = [
    "Generated",
    "check_disk",
    "find_generated",
    "generate",
    "train",
    "training_data",
]

PER_IMAGE = frozenset({"requested", "network_calls", "batch_id", "seconds"})
STORED = PER_IMAGE | {"prepare_seconds", "extra_parameters", "facts"}
PLACES = frozenset({"shard", "row", "shards", "sha256", "side"})
WHOLE = "all.npz"
DIAGNOSTIC = "diagnostic."
MAKING = "generating images"


@dataclass(frozen=True)
class Generated:
    """Images of a run in the order of its requests, and what they cost."""

    images: ImageSource
    requested: NDArray[np.int64] | None
    network_calls: NDArray[np.int64]
    batch_id: NDArray[np.int64]
    seconds: float
    prepare_seconds: float
    extra_parameters: int
    facts: Mapping[str, Any]


def generate(plan: Plan, key: str, cache: Path, report: Reporter) -> Generated:
    """Make the images of a run, batch by batch; what an interrupted run made is kept.

    Several processes share the batches, which are cut the same however many there are; all of
    them get all images.

    Args:
        plan: What to make.
        key: Generation key.
        cache: Cache folder.
        report: Told about progress.
    """
    folder = cache / "images" / key
    if plan.config.force:
        if is_main_process():
            remove(folder)
        meet(plan.device)
    found = find_generated(key, cache)
    if found is not None:
        report.note(f"images found in the cache ({len(found.images)})")
        return found
    started = time.monotonic()
    backbone = _backbone(plan, report)
    sampler, audit, checks = _prepared_by_all(plan, backbone, cache, report)
    prepared = time.monotonic() - started
    # A trained network is behind a backbone of its own; out of memory, its calls become smaller.
    network: Backbone = getattr(sampler, "backbone", backbone)
    requests = plan.requests
    import torch

    from fairbench.diffusion.sampling import listening

    done = _finished_batches(folder)
    position = {id(request): i for i, request in enumerate(requests)}
    batches = sampler.batches(requests, backbone.network_batch)
    waiting = deque(batches[process_index() :: process_count()])
    total = sum(map(len, waiting))
    made = sum(position[id(request)] in done for batch in waiting for request in batch)
    whole = plan.method.configured_card().batch_coupled
    _as_small_as_before(network, done, report)
    while waiting:
        batch = [one for one in waiting.popleft() if position[id(one)] not in done]
        if not batch:
            continue
        parts = [batch] if whole else sampler.batches(batch, network.network_batch)
        if len(parts) > 1:  # each is kept once it is made
            waiting.extendleft(reversed(parts))
            continue
        at = time.monotonic()
        try:
            with listening(_Steps(report.progress, made, len(batch), total)):
                samples = sampler(batch)
        except torch.OutOfMemoryError:
            _halve(network, report)
            waiting.appendleft(batch)
            continue
        asked = samples.requested
        arrays = {
            "index": np.array([position[id(request)] for request in batch]),
            IMAGES: samples.images,
            "requested": np.full(len(batch), -1) if asked is None else asked,
            "network_calls": samples.network_calls,
            "batch_id": samples.batch_id,
            "seconds": np.array([(time.monotonic() - at) / len(batch)] * len(batch)),
            "rows": np.full(len(batch), network.network_batch),
            **{DIAGNOSTIC + name: rows for name, rows in samples.diagnostics.items()},
        }
        first = int(arrays["index"].min())
        path = folder / f"batch-{first:07d}-{len(batch)}.npz"
        save_arrays(path, arrays)
        done |= _rows(arrays, path.name)
        made += len(batch)
        report.progress(MAKING, made, total)
    if process_count() > 1:
        meet(plan.device)
        if not is_main_process():
            meet(plan.device)  # until the first process has put them together
            return _found_again(key, cache)
        done = _finished_batches(folder)
    stacked = {
        name: np.stack([done[i][name] for i in range(len(requests))]) for name in sorted(done[0])
    }
    arrays = {name: stacked[name] for name in sorted(PER_IMAGE)}
    arrays |= _places(stacked)
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
    examined = _examined(plan, backbone, checks, report)
    shapes = _shapes(network, stacked["rows"])
    facts = {**sampler.facts, **observed, **audit, **examined, **shapes}
    if network.decode_batch != plan.config.decode_batch:  # out of memory, it was halved
        facts["decode_batch"] = network.decode_batch
    arrays["facts"] = np.array(json.dumps(facts))
    save_arrays(folder / WHOLE, arrays)
    meet(plan.device)
    return _unpacked(arrays, folder)


def train(plan: Plan, cache: Path, report: Reporter) -> None:
    """Train what a run's method trains, or find it; the cache keeps it.

    Args:
        plan: The run.
        cache: Cache folder.
        report: Told about progress.
    """
    _prepared_by_all(plan, _backbone(plan, report), cache, report)


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
    """The images of a generation key, if the cache holds all of them, whole."""
    folder = cache / "images" / key
    stored = load_arrays(folder / WHOLE)
    if stored is None or not stored.keys() >= STORED:
        return None
    if IMAGES not in stored:  # else they were kept in one file
        if not stored.keys() >= PLACES:
            return None
        # Read once, with their checksums: what is damaged goes, and is made again.
        if not all(load_arrays(folder / str(name)) is not None for name in stored["shards"]):
            return None
    return _unpacked(stored, folder)


def check_disk(plan: Plan, key: str, cache: Path) -> None:
    """Refuse a run whose images don't fit the disk of the cache; those that are there count.

    Args:
        plan: What is to be made.
        key: Generation key.
        cache: Cache folder.
    Raises:
        InputError: With what is free and the largest number that fits.
    """
    side = image_side(plan.backbone.folder)
    folder = cache / "images" / key
    if side is None or (folder / WHOLE).exists():
        return
    size = side * side * 3
    made = sum(path.stat().st_size for path in folder.glob("batch-*.npz")) // size
    free = shutil.disk_usage(cache).free
    missing = max(0, plan.config.num_images - made)
    if missing * size > free:
        raise InputError(
            f"--num-images {plan.config.num_images}: {missing} images of {side}x{side} take "
            f"{missing * size / 2**20:,.1f} MiB of the disk of {cache}, which has "
            f"{free / 2**20:,.1f} free; at most {made + free // size} fit: ask for fewer, {FREE}, "
            "or set FAIRBENCH_CACHE to another folder"
        )


def _found_again(key: str, cache: Path) -> Generated:
    """What all processes have made together."""
    found = find_generated(key, cache)
    if found is None:
        raise InputError(
            f"{cache}: what the other processes made isn't there; FAIRBENCH_CACHE must name a "
            "folder that all of them share"
        )
    return found


def _prepared_by_all(
    plan: Plan, backbone: Backbone, cache: Path, report: Reporter
) -> tuple[Sampler, dict[str, Any], Mapping[str, Check]]:
    """As `_prepared`; of several processes the first trains, unless they were asked to share it.

    The others then load what it trained.
    """
    forced = plan.config.force
    if process_count() == 1 or shares_training(plan):
        with _method_cache(cache, forced=forced) as folder:
            return _prepared(plan, backbone, folder, report)
    with training_alone():
        if is_main_process():
            with _method_cache(cache, forced=forced) as folder:
                made = _prepared(plan, backbone, folder, report)
            meet(plan.device)
            return made
        meet(plan.device)
        with _method_cache(cache, forced=False) as folder:
            return _prepared(plan, backbone, folder, report)


def _rows(arrays: Mapping[str, NDArray[Any]], name: str) -> dict[int, dict[str, Any]]:
    """Image index -> its row of every array of a shard, and where its pixels are."""
    names = [one for one in arrays if one not in ("index", IMAGES)]
    listed = ImageList.of(arrays[IMAGES])
    return {
        int(index): {
            **{one: arrays[one][row] for one in names},
            "shard": name,
            "row": row,
            "sha256": np.frombuffer(bytes.fromhex(listed.sha256[row]), np.uint8),
            "side": np.array([listed.height, listed.width]),
        }
        for row, index in enumerate(arrays["index"])
    }


def _places(stacked: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Where the images are and which they are, as it is stored."""
    shards, shard = np.unique(stacked["shard"], return_inverse=True)
    return {
        "shards": shards,
        "shard": shard.astype(np.int64),
        "row": stacked["row"].astype(np.int64),
        "sha256": stacked["sha256"],
        "side": stacked["side"][0],
    }


def _finished_batches(folder: Path) -> dict[int, dict[str, Any]]:
    done: dict[int, dict[str, Any]] = {}
    for part in sorted(folder.glob("batch-*.npz")):
        arrays = load_arrays(part)
        if arrays is not None and arrays.keys() >= PER_IMAGE | {"index", IMAGES}:
            # Files of older programs don't say.
            arrays.setdefault("rows", np.zeros(len(arrays["index"]), np.int64))
            done |= _rows(arrays, part.name)
    return done


def _unpacked(arrays: Mapping[str, NDArray[Any]], folder: Path) -> Generated:
    requested = arrays["requested"]
    images: ImageSource
    if IMAGES in arrays:
        images = ArrayImages(arrays[IMAGES], {})
    else:
        height, width = (int(side) for side in arrays["side"])
        listed = ImageList(
            tuple(digest.tobytes().hex() for digest in arrays["sha256"]), height, width
        )
        names = [str(name) for name in arrays["shards"]]
        images = ShardImages(folder, names, arrays["shard"], arrays["row"], listed)
    return Generated(
        images=images,
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


def _backbone(plan: Plan, report: Reporter) -> Backbone:
    from fairbench.backbones.base import load_backbone

    backbone = load_backbone(
        plan.backbone.name,
        plan.backbone.folder,
        device=plan.device,
        dtype=plan.dtype,
        network_batch=plan.config.network_batch,
    )
    backbone.decode_batch = plan.config.decode_batch
    if plan.config.compile and (reason := backbone.compile()):
        report.note(f"--compile: going on without, since it failed: {reason}")
    return backbone


def _prepared(
    plan: Plan, backbone: Backbone, cache: Path, report: Reporter
) -> tuple[Sampler, dict[str, Any], Mapping[str, Check]]:
    """The sampler, facts about what the method handed in for an audit, and what it wants checked.

    The method gets a plain place to put values into. Labels that its card doesn't declare are
    read after it is prepared, so that nothing which it holds leads to them.
    """
    handed_in: dict[str, NDArray[Any]] = {}
    checks: dict[str, Check] = {}
    preparation = Preparation(
        seed=plan.config.seed,
        sampling=plan.sampling,
        images_per_prompt=plan.images_per_prompt,
        cache=cache,
        progress=report.progress,
        audit=handed_in.__setitem__,
        examine=checks.__setitem__,
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
    return sampler, _audited(plan, card, handed_in), checks


def _examined(
    plan: Plan, backbone: Backbone, checks: Mapping[str, Check], report: Reporter
) -> dict[str, Any]:
    """Answers to what a method wants checked against all labels; empty without checks."""
    if not checks:
        return {}
    report.note("checking what was learned against hidden labels")
    card = plan.method.configured_card()
    labelled = replace(card, supervision=card.supervision | {"labels"})
    data = training_data(plan.dataset, labelled, backbone.image_size, plan.bias)
    attributes = {name: plan.dataset.attributes[name] for name in plan.dataset.sensitive}
    data = replace(data, attributes=attributes)
    return {"examined": {name: dict(check(data)) for name, check in checks.items()}}


def _audited(plan: Plan, card: MethodCard, scores: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What hidden labels say of scores of the training images; empty without scores."""
    if not scores:
        return {}
    dataset = plan.dataset
    images = training_source(dataset, card, plan.bias)
    attributes = {name: dataset.attributes[name] for name in dataset.sensitive}
    return {"audit": hidden_label_facts(scores, _image_set(images, dataset, True), attributes)}


def _as_small_as_before(
    network: Backbone, done: Mapping[int, Mapping[str, Any]], report: Reporter
) -> None:
    """Begin with the rows a call that an earlier run was brought down to by lack of memory."""
    before = [int(row["rows"]) for row in done.values() if row["rows"] > 0]
    if before and min(before) < network.network_batch:
        network.network_batch = min(before)
        report.note(
            f"an earlier run was out of memory: going on with {network.network_batch} rows a call"
        )


def _halve(network: Backbone, report: Reporter) -> None:
    """Half as many rows a call, which the record says.

    Raises:
        InputError: If there is one row only.
    """
    if network.network_batch == 1:
        raise InputError(
            f"{network.device} has too little memory for one image of {network.name}; "
            "free some or choose another --device"
        ) from None
    network.network_batch //= 2
    report.warn(f"out of memory: going on with {network.network_batch} rows a call")


def _shapes(network: Backbone, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Rows of a network call, and where they changed which images were made at which number."""
    facts: dict[str, Any] = {"network_batch": network.network_batch}
    numbers = sorted({int(one) for one in rows if one > 0})
    if len(numbers) > 1:
        facts["network_batch"] = numbers[0]
        facts["network_batches"] = {
            str(number): _ranges(np.flatnonzero(rows == number)) for number in numbers
        }
    return facts


def _ranges(index: NDArray[np.int64]) -> list[list[int]]:
    """First and last of each run of consecutive numbers."""
    runs = np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)
    return [[int(run[0]), int(run[-1])] for run in runs]


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
