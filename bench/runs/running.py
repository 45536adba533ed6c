"""One run: config -> images -> measurements -> scores -> record and sample grid."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fairbench.core.errors import FairbenchError, InputError
from fairbench.core.measurements import Measurements
from fairbench.core.method import MethodCard, Request
from fairbench.core.progress import Reporter
from fairbench.core.record import SCHEMA, PerImage, Record
from fairbench.datasets.base import ImageSource
from fairbench.diffusion.devices import begin_run, is_main_process, process_count
from fairbench.instruments.measuring import Instruments, load_instruments
from fairbench.runs.config import RunConfig
from fairbench.runs.evaluation import share_readings
from fairbench.runs.generation import check_disk, generate, train
from fairbench.runs.judging import Judging, choose_judges
from fairbench.runs.pictures import sample_grid
from fairbench.runs.plan import (
    Keys,
    Plan,
    backbone_facts,
    backbone_notes,
    plan_keys,
    plan_run,
)
from fairbench.runs.rescoring import refreshed
from fairbench.runs.scoring import score_generated
from fairbench.runs.times import now
from fairbench.storage.cache import cache_folder
from fairbench.storage.files import sweep
from fairbench.storage.places import place_of
from fairbench.storage.pruning import clean
from fairbench.storage.readings import ImageList
from fairbench.storage.records import (
    RecordError,
    find_record,
    read_manifest,
    read_record,
    read_records,
    record_path,
    write_record,
)

__all__ = [
    "Outcome",
    "baseline_of",
    "instruments_of",
    "plan_keys_of",
    "prepare",
    "run",
    "same_instruments",
    "take_part",
]

GRID_COLUMNS = 16


@dataclass(frozen=True)
class Outcome:
    """What a run left behind: a record, where it lies, and whether it was there before."""

    record: Record
    path: Path
    found: bool

    @property
    def manifest(self) -> tuple[tuple[int, int, str], ...]:
        """Rows (prompt index, image index, sha256) of the images, in order."""
        return read_manifest(self.path, self.record)


def run(config: RunConfig, reporter: Reporter | None = None) -> Outcome:
    """Do one run, or find its record, in a folder or at an address.

    Args:
        config: What to do. Records at an address are mirrored in the cache, where the outcome's
            path is; what is new is published there before this returns or raises.
        reporter: Told what happens; silent by default.
    Raises:
        FairbenchError: If the user's input or environment is wrong.
        SystemExit: With code 0, on a process that helped another, which writes the record.
    """
    place = place_of(config.results)
    place.update()
    try:
        outcome = take_part(dataclasses.replace(config, results=place.folder), reporter)
    finally:
        place.publish_new()  # that of a failed run, too
    if outcome is None:
        raise SystemExit(0)
    if config.force:
        place.replace(outcome.path)
    return outcome


def take_part(
    config: RunConfig, reporter: Reporter | None = None, *, tidy: bool = True
) -> Outcome | None:
    """As :func:`run`, on one of several processes that share a run, and in a folder alone.

    All of them make images and look at them; the first scores them and writes the record.

    Args:
        config: What to do.
        reporter: Told what happens; silent by default.
        tidy: Whether what killed programs left in the cache and among the records is looked for
            first, which takes as long as both are large.

    Returns:
        The outcome; None on any process but the first.
    """
    report = reporter or Reporter()
    plan = plan_run(config, report)
    if config.target != "uniform" and not plan.method.configured_card().uses_target:
        report.warn(
            f"{config.method} doesn't follow a target: its images are those that it makes without "
            "one, and only measured against it"
        )
    if config.bias != "default" and plan.method.configured_card().training_set != "biased":
        report.warn(f"{config.method} trains on no biased images, so --bias changes nothing of it")
    if config.data_parallel and process_count() > 1 and not plan.method.shares_training:
        report.note(
            f"{config.method}'s training can't be shared: the first process trains, the others "
            "load what it trained"
        )
    strange = foreign_training_set(plan)
    if strange is not None:
        report.note(strange)
    for note in backbone_notes(plan):
        report.note(note)
    if tidy and is_main_process():
        clean(cache_folder())
        sweep(config.folder)
    begin_run(plan.device)
    judging, instruments = _instruments(plan, report)
    keys = plan_keys(plan, instruments)
    key, generation_key, full_config = keys.run, keys.generation, keys.config
    path = _place(plan, keys)
    found = find_record(path)
    if found is not None and not config.force:
        if not is_main_process():
            return None
        return Outcome(refreshed(found, path, plan, instruments, report), path, True)
    check_disk(plan, generation_key, cache_folder())
    if not is_main_process():
        made = generate(plan, generation_key, cache_folder(), report)
        share_readings(plan.question, made.images, instruments, cache_folder(), plan.device)
        return None
    blank = _blank_record(plan, key, generation_key, full_config)
    told = backbone_facts(plan) | ({} if strange is None else {"training_set": strange})
    blank = dataclasses.replace(blank, facts={**told, **judging.facts()})
    with _failures_recorded(config.folder, blank):
        record, images = _compute(plan, blank, instruments, report)
    path = write_record(config.folder, record, images)
    return Outcome(read_record(path), path, False)


def prepare(
    config: RunConfig, until: Literal["train", "images"], report: Reporter | None = None
) -> None:
    """Do the first part of a run, which is then found in the cache by all runs that share it.

    Args:
        config: The run.
        until: ``"train"``: what its method trains; ``"images"``: its images too.
        report: Told what happens; silent by default.

    Raises:
        FairbenchError: As :func:`run`.
    """
    told = report or Reporter()
    plan = plan_run(config, told)
    begin_run(plan.device)
    if until == "train":
        train(plan, cache_folder(), told)
        return
    key = plan_keys(plan, instruments_of(plan, told)).generation
    check_disk(plan, key, cache_folder())
    generate(plan, key, cache_folder(), told)


def plan_keys_of(config: RunConfig, report: Reporter) -> tuple[Plan, Keys, Path]:
    """What a run would be found by, without doing it: its plan, keys and the record's place.

    Args:
        config: The run.
        report: Told about the reading of a data set that wasn't prepared yet.
    Raises:
        FairbenchError: As :func:`run`.
    """
    plan = plan_run(config, report)
    _, instruments = _instruments(plan, report)
    keys = plan_keys(plan, instruments)
    return plan, keys, _place(plan, keys)


def _place(plan: Plan, keys: Keys) -> Path:
    name = plan.method.configured_card().name
    return record_path(plan.config.folder, plan.dataset.name, name, keys.run)


def instruments_of(plan: Plan, report: Reporter) -> Instruments:
    """What the images of a planned run are measured with, loaded.

    Raises:
        FairbenchError: If no judge can answer its task, or weights are missing.
    """
    return _instruments(plan, report)[1]


def _instruments(plan: Plan, report: Reporter) -> tuple[Judging, Instruments]:
    """What a run's images are measured with."""
    config = plan.config
    judging = choose_judges(
        plan.dataset,
        plan.task,
        cache_folder(),
        report,
        asked=config.judges,
        accept=config.accept_judge,
        controls=plan.question.controls,
        device=str(plan.device),
        allow_download=config.allow_download,
    )
    instruments = load_instruments(
        str(plan.device),
        plan.dataset.instruments(),
        config.encoders,
        judges=judging.judges,
        faces=config.faces,
        allow_download=config.allow_download,
    )
    return judging, instruments


def _blank_record(plan: Plan, key: str, generation_key: str, config: Mapping[str, Any]) -> Record:
    from fairbench.runs.provenance import environment

    return Record(
        schema=SCHEMA,
        key=key,
        generation_key=generation_key,
        status="interrupted",
        error=None,
        method=plan.method.configured_card().name,
        dataset=plan.dataset.name,
        task=plan.task.name,
        config=config,
        card=_plain_card(plan.method.configured_card()),
        environment=environment(plan.device),
        seconds={},
        peak_memory_mib=0.0,
        extra_parameters=0,
        network_calls_per_image=0.0,
        scores=(),
        groups={},
        facts={},
        manifest=(),
        created=now(),
    )


def foreign_training_set(plan: Plan) -> str | None:
    """What must be said of the images that a method trains on; None if nothing must.

    They are the data set's own draw. For a backbone whose training isn't known they needn't be
    what it was trained on, as the methods' papers have it.
    """
    card = plan.method.configured_card()
    known = plan.dataset.trained_on(plan.backbone) is not None
    if card.training_set == "none" or (known and plan.bias == "default"):
        return None
    images = f"the {card.training_set} images of {plan.dataset.name}"
    if plan.bias != "default":
        images = f"images of {plan.dataset.name} with the bias {plan.bias}"
    was = "was trained on others" if known else "was trained on isn't known"
    backbone = plan.backbone.name
    return f"{card.name} trains on {images}; {backbone if known else f'what {backbone}'} {was}"


def _plain_card(card: MethodCard) -> dict[str, Any]:
    return asdict(card) | {
        "supervision": sorted(card.supervision),
        "needs": sorted(card.needs),
        "deviations": list(card.deviations),
    }


@contextmanager
def _failures_recorded(results: Path, blank: Record) -> Iterator[None]:
    """Leave a record of a run that fails or is interrupted; it never counts as found."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(FairbenchError, OSError):
            write_record(results, dataclasses.replace(blank, error="interrupted"))
        raise
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        with suppress(FairbenchError, OSError):  # what happened first is what is told
            write_record(results, dataclasses.replace(blank, status="failed", error=line))
        raise


def _compute(
    plan: Plan,
    blank: Record,
    instruments: Instruments,
    report: Reporter,
) -> tuple[Record, PerImage]:
    cache = cache_folder()
    generated = generate(plan, str(blank.generation_key), cache, report)
    manifest = _manifest(plan.requests, generated.images.listing)
    _compare_manifests(plan.config.folder, blank, manifest, report)
    started = time.monotonic()
    share_readings(
        plan.question, generated.images, instruments, cache, plan.device, report.progress
    )
    found = score_generated(plan, generated, instruments, cache, report)
    from fairbench.diffusion.devices import peak_memory_mib

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
        scores=found.scores,
        groups=found.tables,
        facts={**generated.facts, **found.facts, **blank.facts},
        created=now(),
    )
    picture = record_path(
        plan.config.folder, record.dataset, record.method, record.key
    ).with_suffix(".png")
    _draw_grid(picture, record, generated.images, found.measured, plan, instruments)
    return record, found.per_image


def _manifest(requests: Sequence[Request], listed: ImageList) -> tuple[tuple[int, int, str], ...]:
    return tuple(
        (request.prompt_index, request.image_index, digest)
        for request, digest in zip(requests, listed.sha256, strict=True)
    )


def _compare_manifests(
    results: Path, blank: Record, manifest: tuple[tuple[int, int, str], ...], report: Reporter
) -> None:
    """Say so if an earlier record has other images for the same generation key."""
    for earlier in _of_same_images(results, blank, report.warn):
        if earlier.generation_key != blank.generation_key or earlier.status != "complete":
            continue
        try:
            path = record_path(results, earlier.dataset, earlier.method, earlier.key)
            had = read_manifest(path, earlier)
        except InputError as error:
            report.warn(str(error))
            continue
        if had != manifest:
            differ = sum(a != b for a, b in zip(had, manifest, strict=False))
            report.warn(
                f"{differ} of {len(manifest)} images differ from those of record {earlier.key}, "
                f"made from the same configuration with {_versions(earlier)}; another machine or "
                "other package versions round differently"
            )
            return


def _of_same_images(results: Path, blank: Record, warn: Callable[[str], None]) -> Iterator[Record]:
    """Records that may be of the same images; only files that name their key are parsed."""
    named = str(blank.generation_key).encode()
    for path in sorted(results.glob(f"*/{blank.method}/*.json")):
        try:
            if path.is_file() and named in path.read_bytes():
                yield read_record(path)
        except RecordError as error:
            warn(str(error))
        except OSError:  # gone meanwhile, or no file
            continue


def _records(results: Path, warn: Callable[[str], None]) -> list[Record]:
    """Records that are there already; the first run makes the folder."""
    return read_records(results, warn) if results.is_dir() else []


def _versions(record: Record) -> str:
    packages = record.environment.get("packages", {})
    return f"torch {packages.get('torch')} and diffusers {packages.get('diffusers')}"


def _draw_grid(
    path: Path,
    record: Record,
    images: ImageSource,
    measured: Measurements,
    plan: Plan,
    instruments: Instruments,
) -> None:
    """A picture beside the record: rows by measured group of the task, first images each."""
    probabilities = measured.probabilities[instruments.judges[0].name]
    shape = [len(levels) for levels in plan.task.attributes.values()]
    labels = tuple(probabilities[name].argmax(1) for name in plan.task.attributes)
    group = np.ravel_multi_index(labels, shape)
    # Without a valid image there is no table, and the images themselves are what is of interest.
    chosen = {} if measured.valid.any() else {"no valid image": np.arange(GRID_COLUMNS)}
    for k, row in enumerate(record.groups.get("/".join(plan.task.attributes), [])):
        mine = np.flatnonzero(measured.valid & (group == k))
        # Spread over the run, so that every prompt is seen.
        spread = np.linspace(0, len(mine) - 1, min(GRID_COLUMNS, len(mine))).astype(int)
        chosen[f"{row['group']}\n{row['share']:.1%}"] = mine[spread]
    height, width = images.listing.height, images.listing.width
    rows = {
        name: np.concatenate(
            [np.empty((0, height, width, 3), np.uint8), *images.take(some).batches(GRID_COLUMNS)]
        )
        for name, some in chosen.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    title = (
        f"{record.method} · {record.task} · {plan.backbone.name} · seed {plan.config.seed} · "
        f"{len(images)} images, rows by measured group"
    )
    sample_grid(rows, path, columns=GRID_COLUMNS, title=title)


def baseline_of(record: Record, results: Path, warn: Callable[[str], None]) -> Record | None:
    """The complete ``vanilla`` record with the same question, seed and number of images."""
    same = ("backbone_sha256", "num_images", "seed", "sampling", "dtype", "target")
    for other in _records(results, warn):
        if (
            other.method == "vanilla"
            and other.status == "complete"
            and other.key != record.key
            and (other.dataset, other.task) == (record.dataset, record.task)
            and all(other.config.get(k) == record.config.get(k) for k in same)
            and same_instruments(other, record)
        ):
            return other
    return None


def same_instruments(one: Record, other: Record) -> bool:
    """Whether what both were measured with is the same; either may have used more."""
    return all(
        _same_where_both_have(one.config, other.config, name) for name in ("hashes", "readings")
    )


def _same_where_both_have(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    """Whether instruments that both records used are the same; one may have used more."""
    mine, theirs = one.get(name, {}), other.get(name, {})
    return all(mine[key] == theirs[key] for key in mine.keys() & theirs.keys())
