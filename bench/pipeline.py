"""One run: config -> images -> measurements -> scores -> record and sample grid."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairbench import cartoonfaces
from fairbench.cache import cache_folder, load_arrays, remove, save_arrays
from fairbench.config import RunConfig, check_writable, parse_target, silent
from fairbench.datasets import BackboneSpec, Dataset, get_dataset
from fairbench.errors import FairbenchError, InputError
from fairbench.measuring import (
    Instruments,
    Measurements,
    image_sha256,
    load_instruments,
    measure,
)
from fairbench.pictures import sample_grid
from fairbench.records import (
    SCHEMA,
    Record,
    find_record,
    read_record,
    read_records,
    record_path,
    run_key,
    write_record,
)
from fairbench.registry import make_method
from fairbench.scoring import METRIC_VERSION, Sample, score_all
from fairbench.types import (
    Method,
    MethodCard,
    Preparation,
    Request,
    Sampler,
    SamplingConfig,
    Task,
    TrainingData,
)

if TYPE_CHECKING:
    import torch

__all__ = ["Outcome", "Reporter", "baseline_of", "evaluate", "run"]

Progress = Callable[[str, int, int], None]
GRID_COLUMNS = 16


@dataclass(frozen=True)
class Reporter:
    """Where a run says what it does.

    Attributes:
        progress: ``progress(what, done, total)``.
        note: One line that the user should see.
        warn: One line about something that may be wrong.
    """

    progress: Progress = silent
    note: Callable[[str], None] = lambda line: None
    warn: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Outcome:
    """What a run left behind: a record, where it lies, and whether it was there before."""

    record: Record
    path: Path
    found: bool


@dataclass(frozen=True)
class Plan:
    """A checked configuration: everything resolved, nothing computed."""

    config: RunConfig
    dataset: Dataset
    task: Task
    backbone: BackboneSpec
    method: Method
    preset: str | None
    sampling: SamplingConfig
    device: torch.device
    dtype: torch.dtype

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


def plan_run(config: RunConfig) -> Plan:
    """Check everything that can be checked cheaply.

    Raises:
        InputError: With the first thing that is wrong.
    """
    method, preset = make_method(config.method, config.parameters)
    dataset = get_dataset(config.dataset)
    backbone = dataset.backbone(config.backbone)
    task = dataset.task(config.task, conditional=backbone.conditional)
    task = parse_target(config.target, task)
    sampling = config.sampling(backbone.sampling, conditional=backbone.conditional)
    check_writable(config.results)
    from fairbench.devices import resolve_device, resolve_dtype

    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    return Plan(config, dataset, task, backbone, method, preset, sampling, device, dtype)


def generation_config(plan: Plan, backbone_sha256: str) -> dict[str, Any]:
    """Everything that the images depend on, and nothing else."""
    card = plan.method.card
    config: dict[str, Any] = {
        "method": card.name,
        "version": plan.method.version,
        "parameters": asdict(plan.method),  # type: ignore[call-overload]
        "backbone": plan.backbone.name,
        "backbone_sha256": backbone_sha256,
        "prompts": [prompt.text for prompt in plan.task.prompts],
        "num_images": plan.config.num_images,
        "seed": plan.config.seed,
        "sampling": asdict(plan.sampling),
        "dtype": str(plan.dtype).removeprefix("torch."),
    }
    if card.uses_target:
        config["target"] = dict(zip(plan.task.groups, plan.task.target, strict=True))
    if card.trains:
        config["neutral_prompts"] = [prompt.text for prompt in plan.dataset.prompts]
    if card.supervision & {"reference-set", "labels"}:
        config["data_sha256"] = plan.dataset.data_sha256()
    if card.batch_coupled:
        config["batch_size"] = plan.config.batch_size
    return config


def run(config: RunConfig, reporter: Reporter | None = None) -> Outcome:
    """Do one run, or find its record.

    Args:
        config: What to do.
        reporter: Told what happens; silent by default.
    Raises:
        FairbenchError: If the user's input or environment is wrong.
    """
    report = reporter or Reporter()
    plan = plan_run(config)
    from fairbench.backbones import weights_sha256

    instruments = load_instruments(str(plan.device))
    images_config = generation_config(plan, weights_sha256(plan.backbone.folder))
    generation_key = run_key(images_config)
    full_config = images_config | measuring_config(plan.dataset, plan.task, instruments)
    full_config["preset"] = plan.preset
    key = run_key({k: v for k, v in full_config.items() if k != "preset"})
    name = plan.method.card.name
    path = record_path(config.results, plan.dataset.name, name, key)
    found = None
    if path.exists():
        read_record(path)  # a damaged one is named now, not after the work
        found = find_record(config.results, plan.dataset.name, name, key, report.warn)
    if found is not None and not config.force:
        return Outcome(found, path, True)
    blank = _blank_record(plan, key, generation_key, full_config)
    with _failures_recorded(config.results, blank):
        record = _compute(plan, blank, instruments, report)
    return Outcome(record, write_record(config.results, record), False)


def measuring_config(dataset: Dataset, task: Task, instruments: Instruments) -> dict[str, Any]:
    """Everything that the scores depend on beside the images."""
    return {
        "dataset": dataset.name,
        "task": task.name,
        "target": dict(zip(task.groups, task.target, strict=True)),
        "hashes": {
            **instruments.hashes(),
            "reference": dataset.data_sha256(),
        },
        "reference": _strata(task),
        "metric_version": METRIC_VERSION,
    }


def _strata(task: Task) -> list[dict[str, str]]:
    return [dict(prompt.stratum) for prompt in task.prompts]


def _blank_record(plan: Plan, key: str, generation_key: str, config: Mapping[str, Any]) -> Record:
    from fairbench.provenance import environment

    return Record(
        schema=SCHEMA,
        key=key,
        generation_key=generation_key,
        status="interrupted",
        error=None,
        method=plan.method.card.name,
        dataset=plan.dataset.name,
        task=plan.task.name,
        config=config,
        card=_plain_card(plan.method.card),
        environment=environment(plan.device),
        seconds={},
        peak_memory_mib=0.0,
        extra_parameters=0,
        network_calls_per_image=0.0,
        scores=(),
        groups={},
        facts={},
        manifest=(),
        created=_now(),
    )


def _plain_card(card: MethodCard) -> dict[str, Any]:
    return asdict(card) | {
        "supervision": sorted(card.supervision),
        "deviations": list(card.deviations),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextmanager
def _failures_recorded(results: Path, blank: Record) -> Iterator[None]:
    """Leave a record of a run that fails or is interrupted; it never counts as found."""
    try:
        yield
    except KeyboardInterrupt:
        write_record(results, dataclasses.replace(blank, error="interrupted"))
        raise
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        write_record(results, dataclasses.replace(blank, status="failed", error=line))
        raise


@dataclass(frozen=True)
class Generated:
    """Images of a run in the order of its requests, and what they cost."""

    images: NDArray[np.uint8]
    requested: NDArray[np.int64] | None
    network_calls: NDArray[np.int64]
    seconds: float
    prepare_seconds: float
    extra_parameters: int
    facts: Mapping[str, Any]


def _compute(plan: Plan, blank: Record, instruments: Instruments, report: Reporter) -> Record:
    cache = cache_folder()
    generated = generate(plan, str(blank.generation_key), cache, report)
    manifest = _manifest(plan.requests, generated.images)
    _compare_manifests(plan.config.results, blank, manifest, report)
    started = time.monotonic()
    measured = measure(generated.images, instruments, cache, report.progress)
    reference, labels = reference_measurements(plan.task, instruments, cache, report.progress)
    sample = Sample(
        measured,
        np.array([request.prompt_index for request in plan.requests]),
        generated.requested,
    )
    scores, tables, facts = score_all(
        sample,
        reference,
        labels,
        plan.task,
        plan.dataset.attributes,
        plan.dataset.sensitive,
        _instrument_names(instruments),
    )
    from fairbench.devices import peak_memory_mib

    record = dataclasses.replace(
        blank,
        status="complete",
        seconds={
            "prepare": round(generated.prepare_seconds, 3),
            "generate": round(generated.seconds, 3),
            "measure": round(time.monotonic() - started, 3),
        },
        peak_memory_mib=round(peak_memory_mib(plan.device), 1),
        extra_parameters=generated.extra_parameters,
        network_calls_per_image=float(generated.network_calls.mean()),
        scores=scores,
        groups=tables,
        facts={**generated.facts, **facts},
        manifest=manifest,
        created=_now(),
    )
    picture = record_path(
        plan.config.results, record.dataset, record.method, record.key
    ).with_suffix(".png")
    _draw_grid(picture, record, generated.images, measured, plan, instruments)
    return record


def _instrument_names(instruments: Instruments) -> dict[str, str]:
    first, second = instruments.judges
    return {"judge": first.name, "second": second.name, "encoder": instruments.encoder.name}


def reference_measurements(
    task: Task, instruments: Instruments, cache: Path, progress: Progress
) -> tuple[Measurements, dict[str, NDArray[np.uint8]]]:
    """Features and true labels of the evaluation images that match the task's prompts.

    The evaluation split is balanced over role, gender and race, so that any choice of roles is
    balanced over gender and race.
    """
    split = cartoonfaces.load_split("evaluation")
    chosen = np.zeros(len(split), dtype=bool)
    for prompt in task.prompts:
        matching = np.ones(len(split), dtype=bool)
        for name, level in prompt.stratum.items():
            matching &= split.labels[name] == cartoonfaces.ATTRIBUTES[name].index(level)
        chosen |= matching
    part = split.take(chosen)
    return measure(part.images, instruments, cache, progress), dict(part.labels)


def _manifest(
    requests: Sequence[Request], images: NDArray[np.uint8]
) -> tuple[tuple[int, int, str], ...]:
    return tuple(
        (request.prompt_index, request.image_index, digest)
        for request, digest in zip(requests, image_sha256(images), strict=True)
    )


def _compare_manifests(
    results: Path, blank: Record, manifest: tuple[tuple[int, int, str], ...], report: Reporter
) -> None:
    """Say so if an earlier record has other images for the same generation key."""
    for earlier in read_records(results, report.warn):
        same = earlier.generation_key == blank.generation_key and earlier.status == "complete"
        if same and earlier.manifest != manifest:
            differ = sum(a != b for a, b in zip(earlier.manifest, manifest, strict=False))
            report.warn(
                f"{differ} of {len(manifest)} images differ from those of record {earlier.key}, "
                f"made from the same configuration with {_versions(earlier)}; another machine or "
                "other package versions round differently"
            )
            return


def _versions(record: Record) -> str:
    packages = record.environment.get("packages", {})
    return f"torch {packages.get('torch')} and diffusers {packages.get('diffusers')}"


def generate(plan: Plan, key: str, cache: Path, report: Reporter) -> Generated:
    """Make the images of a run, batch by batch; what an interrupted run made is kept.

    Args:
        plan: What to make.
        key: Generation key.
        cache: Cache folder.
        report: Told about progress.
    """
    folder = cache / "images" / key
    whole = folder / "all.npz"
    if plan.config.force:
        remove(folder)
    stored = load_arrays(whole)
    if stored is not None:
        report.note(f"images found in the cache ({len(stored['images'])})")
        return _unpacked(stored)
    started = time.monotonic()
    with _method_cache(cache, forced=plan.config.force) as method_cache:
        sampler, width = _prepared(plan, method_cache, report)
    prepared = time.monotonic() - started
    requests = plan.requests
    done = _finished_batches(folder)
    todo = [request for i, request in enumerate(requests) if i not in done]
    position = {id(request): i for i, request in enumerate(requests)}
    size = plan.config.batch_size or width
    made = len(requests) - len(todo)
    for batch in sampler.batches(todo, size):
        report.progress("generating images", made, len(requests))
        at = time.monotonic()
        samples = sampler(batch)
        asked = samples.requested
        arrays = {
            "index": np.array([position[id(request)] for request in batch]),
            "images": samples.images,
            "requested": np.full(len(batch), -1) if asked is None else asked,
            "network_calls": samples.network_calls,
            "seconds": np.array([(time.monotonic() - at) / len(batch)] * len(batch)),
        }
        first = int(arrays["index"].min())
        save_arrays(folder / f"batch-{first:07d}-{len(batch)}.npz", arrays)
        done |= _rows(arrays)
        made += len(batch)
        report.progress("generating images", made, len(requests))
    arrays = {
        name: np.stack([done[i][name] for i in range(len(requests))])
        for name in ("images", "requested", "network_calls", "seconds")
    }
    # What a resumed run prepared again was paid for by the run that trained it.
    prepared = max(prepared, float(sampler.facts.get("training_seconds", 0.0)))
    arrays["prepare_seconds"] = np.array(prepared)
    arrays["extra_parameters"] = np.array(sampler.extra_parameters)
    arrays["facts"] = np.array(json.dumps(dict(sampler.facts)))
    save_arrays(whole, arrays)
    for part in folder.glob("batch-*.npz"):
        part.unlink()
    return _unpacked(arrays)


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
        if arrays is not None:
            done |= _rows(arrays)
    return done


def _unpacked(arrays: Mapping[str, NDArray[Any]]) -> Generated:
    requested = arrays["requested"]
    return Generated(
        images=arrays["images"],
        requested=None if (requested < 0).any() else requested,
        network_calls=arrays["network_calls"],
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
    with tempfile.TemporaryDirectory(dir=cache) as fresh:
        yield Path(fresh)
        shutil.copytree(fresh, kept, dirs_exist_ok=True)


def _prepared(plan: Plan, cache: Path, report: Reporter) -> tuple[Sampler, int]:
    """The method, ready to sample, and the backbone's network batch."""
    from fairbench.backbones import load_backbone

    backbone = load_backbone(
        plan.backbone.name, plan.backbone.folder, device=plan.device, dtype=plan.dtype
    )
    if backbone.image_size != plan.dataset.image_size:
        raise InputError(
            f"backbone {backbone.name} makes images of {backbone.image_size} pixels, data set "
            f"{plan.dataset.name} has {plan.dataset.image_size}; choose one of "
            f"{', '.join(spec.name for spec in plan.dataset.backbones)}"
        )
    preparation = Preparation(
        seed=plan.config.seed,
        sampling=plan.sampling,
        images_per_prompt=plan.images_per_prompt,
        cache=cache,
        progress=report.progress,
    )
    data = training_data(plan.dataset, plan.method.card)
    return plan.method.prepare(plan.task, backbone, data, preparation), backbone.network_batch


def training_data(dataset: Dataset, card: MethodCard) -> TrainingData:
    """What a method may learn from: what its card declares, nothing more."""
    prompts = dataset.prompts if "prompts" in card.supervision else ()
    if not card.supervision & {"reference-set", "labels"}:
        return TrainingData(prompts)
    split = cartoonfaces.load_split("method_reference")
    part = split.take(np.arange(min(card.reference_images, len(split))))
    labels = dict(part.labels) if "labels" in card.supervision else None
    return TrainingData(prompts, part.images, labels)


def _draw_grid(
    path: Path,
    record: Record,
    images: NDArray[np.uint8],
    measured: Measurements,
    plan: Plan,
    instruments: Instruments,
) -> None:
    """A picture beside the record: rows by measured group of the task, first images each."""
    probabilities = measured.probabilities[instruments.judges[0].name]
    shape = [len(levels) for levels in plan.task.attributes.values()]
    labels = tuple(probabilities[name].argmax(1) for name in plan.task.attributes)
    group = np.ravel_multi_index(labels, shape)
    rows = {}
    for k, row in enumerate(record.groups["/".join(plan.task.attributes)]):
        mine = images[measured.valid & (group == k)]
        # Spread over the run, so that every prompt is seen.
        spread = np.linspace(0, len(mine) - 1, min(GRID_COLUMNS, len(mine))).astype(int)
        rows[f"{row['group']}\n{row['share']:.1%}"] = mine[spread]
    path.parent.mkdir(parents=True, exist_ok=True)
    title = (
        f"{record.method} · {record.task} · {plan.backbone.name} · seed {plan.config.seed} · "
        f"{len(images)} images, rows by measured group"
    )
    sample_grid(rows, path, columns=GRID_COLUMNS, title=title)


def baseline_of(record: Record, results: Path, warn: Callable[[str], None]) -> Record | None:
    """The complete ``vanilla`` record with the same question, seed and number of images."""
    same = ("backbone_sha256", "num_images", "seed", "sampling", "dtype", "target", "hashes")
    for other in read_records(results, warn):
        if (
            other.method == "vanilla"
            and other.status == "complete"
            and other.key != record.key
            and (other.dataset, other.task) == (record.dataset, record.task)
            and all(other.config.get(k) == record.config.get(k) for k in same)
        ):
            return other
    return None


def evaluate(
    folder: Path,
    *,
    dataset: str,
    task: str | None,
    name: str,
    target: str = "uniform",
    num_images: int | None = None,
    device: str = "auto",
    results: Path = Path("results"),
    force: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """Measure images made elsewhere.

    Args:
        folder: Holds the images.
        dataset: What they are measured against.
        task: The question; None for the data set's first.
        name: What the row is called.
        target: As for a run.
        num_images: How many must be there; the first so many are taken. None: all.
        device: Where the instruments run.
        results: Folder of records.
        force: Compute although a record exists.
        reporter: Told what happens.
    Raises:
        FairbenchError: If the input is wrong.
    """
    from fairbench.devices import peak_memory_mib, resolve_device
    from fairbench.images import read_folder
    from fairbench.provenance import environment

    report = reporter or Reporter()
    chosen = get_dataset(dataset)
    question = parse_target(target, chosen.task(task, conditional=True))
    if question.per_prompt:
        raise InputError(
            f"task {question.name!r} is a mean over prompts, and a folder of images doesn't say "
            f"which prompt made which; choose one of "
            f"{', '.join(t for t in chosen.tasks if '_by_' not in t)}"
        )
    check_writable(results)
    where = resolve_device(device)
    started = time.monotonic()
    read = read_folder(folder, size=chosen.image_size, limit=num_images, progress=report.progress)
    minimum = 2 if num_images is None else num_images
    _enough(folder, len(read.images), minimum)
    for note in read.notes:
        report.note(note)
    reading = time.monotonic() - started
    instruments = load_instruments(str(where))
    manifest = tuple((0, i, digest) for i, digest in enumerate(image_sha256(read.images)))
    config = {
        "evaluated": name,
        "images": run_key({"sha256": [digest for _, _, digest in manifest]}),
        "num_images": len(read.images),
        "resized_from": list(read.source_size),
        **measuring_config(chosen, question, instruments),
    }
    key = run_key(config)
    path = record_path(results, chosen.name, name, key)
    if path.exists():
        read_record(path)
        found = find_record(results, chosen.name, name, key, report.warn)
        if found is not None and not force:
            return Outcome(found, path, True)
    cache = cache_folder()
    started = time.monotonic()
    measured = measure(read.images, instruments, cache, report.progress)
    reference, labels = reference_measurements(question, instruments, cache, report.progress)
    sample = Sample(measured, np.zeros(len(read.images), dtype=np.int64), None)
    scores, tables, facts = score_all(
        sample,
        reference,
        labels,
        question,
        chosen.attributes,
        chosen.sensitive,
        _instrument_names(instruments),
    )
    record = Record(
        schema=SCHEMA,
        key=key,
        generation_key=None,
        status="complete",
        error=None,
        method=name,
        dataset=chosen.name,
        task=question.name,
        config=config,
        card={"name": name, "role": "method", "ranked": False, "supervision": ["unknown"]},
        environment=environment(where),
        seconds={
            "read": round(reading, 3),
            "measure": round(time.monotonic() - started, 3),
        },
        peak_memory_mib=round(peak_memory_mib(where), 1),
        extra_parameters=0,
        network_calls_per_image=0.0,
        scores=scores,
        groups=tables,
        facts={**facts, "notes": list(read.notes)},
        manifest=manifest,
        created=_now(),
    )
    return Outcome(record, write_record(results, record), False)


def _enough(folder: Path, seen: int, wanted: int) -> None:
    from fairbench.config import MINIMUM_IMAGES

    minimum = max(wanted, MINIMUM_IMAGES)
    if seen < minimum:
        raise InputError(
            f"{folder} holds {seen} images, expected at least {minimum}: with fewer than "
            f"{MINIMUM_IMAGES}, a share's interval is wider than ±10 points"
        )


def failure_line(error: BaseException) -> str:
    """One line about an error."""
    lines = str(error).strip().splitlines()
    kind = "" if isinstance(error, FairbenchError) else f"{type(error).__name__}: "
    return kind + (lines[0] if lines else "no message")
