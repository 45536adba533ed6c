"""The questions of a plan: what each is found by, how long it takes, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairbench.core.documents import from_json
from fairbench.core.errors import FairbenchError, InputError, UnfitError
from fairbench.core.keys import run_key
from fairbench.core.progress import Reporter
from fairbench.core.record import Record
from fairbench.runs.baselines import shipped_records
from fairbench.runs.config import RunConfig
from fairbench.runs.durations import Duration, alike, duration
from fairbench.storage.places import Place
from fairbench.storage.records import RecordError, read_record
from fairbench.sweep.state import Failure, State

if TYPE_CHECKING:
    import torch

    from fairbench.runs.plan import Keys
    from fairbench.runs.plan import Plan as RunPlan

__all__ = ["Asked", "Asking", "Standing", "Standings", "ask", "standings"]

Standing = Literal["done", "running", "failed", "missing"]

SHARED_BY_RUNS = ("num_images", "prompts", "target")
"""What the images of a run depend on and most trainings don't."""

SAMPLE = 50
"""Records of a method that durations are read from, at most."""


@dataclass(frozen=True)
class Asked:
    """One run of a plan, checked.

    Attributes:
        config: The run.
        title: What a reader calls it.
        dataset, method, backbone: Their names.
        keys: Run keys of records that answer it: first this machine's, then those of machines
            with other number formats, where the user leaves the format open.
        generation: Key of its images, on this machine.
        training: Equal for runs that may share what their method trains; None if it trains
            nothing.
        steps: Sampling steps.
        took: How long runs of its kind took; None if there is no record of one.
    """

    config: RunConfig
    title: str
    dataset: str
    method: str
    backbone: str
    keys: tuple[str, ...]
    generation: str
    training: str | None
    steps: int
    took: Duration | None = None

    @property
    def key(self) -> str:
        """Its run key on this machine."""
        return self.keys[0]

    @property
    def records(self) -> list[str]:
        """Where records that answer it lie below the results."""
        return [f"{self.dataset}/{self.method}/{key}.json" for key in self.keys]

    @property
    def hours(self) -> float | None:
        """How long it takes; None if nobody knows."""
        return None if self.took is None else self.took.hours(self.config.num_images)


@dataclass(frozen=True)
class Asking:
    """The questions of a plan.

    Attributes:
        asked: Each once.
        left_out: Why combinations of the plan aren't among them, a line each.
    """

    asked: tuple[Asked, ...]
    left_out: tuple[str, ...]


def ask(runs: Sequence[RunConfig], place: Place, report: Reporter) -> Asking:
    """Check every run of a plan, and find its keys.

    A combination of method, backbone and task that doesn't go together is left out, so that
    ``methods = "all"`` means every one that can be asked.

    Args:
        runs: Of a plan.
        place: Where its records are, up to date.
        report: Told about progress.

    Raises:
        FairbenchError: For the first run that is wrong by itself, or if none is left.
    """
    made: dict[RunConfig, _Planned | UnfitError] = {}
    found: dict[str, Asked] = {}
    left_out: dict[str, None] = {}
    shared = _Shared()
    for number, config in enumerate(runs):
        report.progress("checking the plan", number, len(runs))
        config = replace(config, results=place.folder)
        alone = replace(config, seed=0)
        if alone not in made:
            made[alone] = _planned(alone, shared, report)
        planned = made[alone]
        if isinstance(planned, UnfitError):
            left_out[str(planned)] = None
            continue
        one = planned.asked(config, shared)
        found.setdefault(one.key, one)
    report.progress("checking the plan", len(runs), len(runs))
    if not found:
        raise InputError(f"no run of this plan can be made: {next(iter(left_out), 'it is empty')}")
    durations = _Durations(place.folder)
    timed = [replace(one, took=durations.of(one)) for one in found.values()]
    return Asking(tuple(timed), tuple(left_out))


class _Shared:
    """What is the same for many runs and takes long: hashes of backbones, loaded instruments."""

    def __init__(self) -> None:
        self._hashes: dict[Path, str] = {}
        self._instruments: dict[tuple[Any, ...], Any] = {}

    def weights(self, folder: Path) -> str:
        if folder not in self._hashes:
            from fairbench.backbones.base import weights_sha256

            self._hashes[folder] = weights_sha256(folder)
        return self._hashes[folder]

    def instruments(self, plan: RunPlan, report: Reporter) -> Any:
        config = plan.config
        about = (
            *(
                config.dataset,
                config.data_root,
                plan.task.name,
                config.judges,
                config.accept_judge,
            ),
            *(config.controls, config.encoders, config.faces, str(plan.device)),
        )
        if about not in self._instruments:
            from fairbench.runs.running import instruments_of

            self._instruments[about] = instruments_of(plan, report)
        return self._instruments[about]


@dataclass(frozen=True)
class _Planned:
    """A checked run without its seed."""

    plan: RunPlan
    instruments: Any

    def asked(self, config: RunConfig, shared: _Shared) -> Asked:
        plan = replace(self.plan, config=config)
        sha256 = shared.weights(plan.backbone.folder)
        here = _keys(plan, self.instruments, sha256, None)
        others = [
            _keys(replace(plan, dtype=dtype), self.instruments, sha256, autocast).run
            for dtype, autocast in _formats(plan, here)
        ]
        card = plan.method.configured_card()
        generation = {k: v for k, v in here.config.items() if k in _GENERATION}
        training = None
        if card.trains or card.training_set != "none" or "reference-set" in card.supervision:
            training = run_key({k: v for k, v in generation.items() if k not in SHARED_BY_RUNS})
        words = [card.name, *config.parameters, plan.task.name, plan.backbone.name]
        if config.steps is not None:
            words.append(f"steps={config.steps}")
        return Asked(
            config,
            " ".join([*words, f"n={config.num_images}", f"seed {config.seed}"]),
            plan.dataset.name,
            card.name,
            plan.backbone.name,
            tuple(dict.fromkeys([here.run, *others])),
            here.generation,
            training,
            plan.sampling.steps,
        )


_GENERATION = frozenset(
    {
        *("method", "version", "parameters", "backbone_sha256", "num_images", "seed", "sampling"),
        *("dtype", "autocast", "bias", "data_sha256", "neutral_prompts", "compiled", "prompts"),
        *("backbone_settings", "network_batch", "decode_batch", "processes", "target"),
    }
)
"""Names in a run's configuration that its images may depend on."""


def _planned(config: RunConfig, shared: _Shared, report: Reporter) -> _Planned | UnfitError:
    from fairbench.runs.plan import plan_run

    try:
        plan = plan_run(config, report)
        return _Planned(plan, shared.instruments(plan, report))
    except UnfitError as error:
        return error
    except FairbenchError as error:
        raise type(error)(f"{_words(config)}: {error}") from None


def _words(config: RunConfig) -> str:
    words = [config.method, *config.parameters, config.task, config.backbone]
    return " ".join(word for word in words if word)


def _keys(plan: RunPlan, instruments: Any, sha256: str, autocast: torch.dtype | None) -> Keys:
    from fairbench.runs.plan import plan_keys

    return plan_keys(plan, instruments, backbone_sha256=sha256, autocast=autocast)


def _formats(plan: RunPlan, here: Keys) -> Iterator[tuple[torch.dtype, torch.dtype | None]]:
    """Number formats of images and of training that ``auto`` may mean on another machine."""
    import torch

    open_ = plan.config.dtype == "auto" and plan.backbone.expected_sha256() is None
    dtypes = (torch.float32, torch.bfloat16, torch.float16) if open_ else (plan.dtype,)
    trains = "autocast" in here.config
    autocasts = (torch.float32, torch.bfloat16) if trains else (None,)
    for dtype in dtypes:
        for autocast in autocasts:
            yield dtype, autocast


class _Durations:
    """How long runs took, by records of the folder, else by those that come with fairbench."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: dict[tuple[str, str], list[Record]] = {}
        self._shipped = list(shipped_records())
        self._known: dict[tuple[str, str, str, int], Duration | None] = {}

    def of(self, asked: Asked) -> Duration | None:
        kind = (asked.dataset, asked.method, asked.backbone, asked.steps)
        if kind not in self._known:
            own = self._own(asked.dataset, asked.method)
            self._known[kind] = duration(alike(*kind[1:], own)) or duration(
                alike(*kind[1:], self._shipped)
            )
        return self._known[kind]

    def _own(self, dataset: str, method: str) -> list[Record]:
        """Some records of a method, spread over all there are."""
        if (dataset, method) not in self._records:
            paths = sorted((self._folder / dataset / method).glob("*.json"))
            found = []
            for path in paths[:: max(1, len(paths) // SAMPLE)]:
                try:
                    found.append(read_record(path))
                except RecordError:  # it is named when it is met
                    continue
            self._records[dataset, method] = found
        return self._records[dataset, method]


@dataclass(frozen=True)
class Standings:
    """What became of the questions of a plan.

    Attributes:
        standing: Run key -> done, running, failed or missing.
        failures: Run key -> why it failed; of failed ones alone.
        steps: Keys of all steps that living workers have, of this plan or another.
    """

    standing: Mapping[str, Standing]
    failures: Mapping[str, Failure]
    steps: frozenset[str]

    def of(self, asked: Iterable[Asked], *which: Standing) -> list[Asked]:
        """Those of some questions that stand so."""
        return [one for one in asked if self.standing[one.key] in which]

    def left(self, asked: Iterable[Asked], *, retry_failed: bool) -> list[Asked]:
        """Those that a sweep has to do; what another one is at counts, too.

        What failed isn't among them unless it is asked for, or failed of a full disk.
        """
        return [
            one
            for one in asked
            if self.standing[one.key] in ("missing", "running")
            or (one.key in self.failures and (retry_failed or self.failures[one.key].passing))
        ]

    def with_failed(self, failed: Mapping[str, str]) -> Standings:
        """As they are, with those as failed that no note could be kept of.

        Args:
            failed: Run key -> why.
        """
        new = {key: line for key, line in failed.items() if self.standing.get(key) == "missing"}
        return replace(
            self,
            standing={**self.standing, **dict.fromkeys(new, "failed")},
            failures={**self.failures, **{key: Failure(line) for key, line in new.items()}},
        )


def standings(asked: Sequence[Asked], place: Place, state: State) -> Standings:
    """What became of questions, from the results alone.

    Args:
        asked: Questions of a plan.
        place: Where the records are, up to date.
        state: Claims and notes beside them.
    """
    notes, running = state.failures(), state.running()
    standing: dict[str, Standing] = {}
    failures: dict[str, Failure] = {}
    there = {path.relative_to(place.folder).as_posix() for path in place.folder.glob("*/*/*.json")}
    for one in asked:
        failure = next((notes[key] for key in one.keys if key in notes), None)
        here: Standing = "missing"
        for name in one.records:
            if name not in there:
                continue
            status, line = _status(place.folder / name)
            if status == "complete":
                here = "done"
                break
            if status == "failed":
                failure = failure or Failure(line)
        if here != "done" and running.intersection(one.keys):
            here = "running"
        elif here != "done" and failure is not None:
            here = "failed"
            failures[one.key] = failure
        standing[one.key] = here
    return Standings(standing, failures, frozenset(running))


def _status(path: Path) -> tuple[str, str]:
    """Status of a record and its error, as little of it parsed as that takes."""
    try:
        data = from_json(path.read_bytes())
        return str(data["status"]), str(data.get("error"))
    except FileNotFoundError:
        return "gone", ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return "failed", f"{path}: expected a record, but {type(error).__name__}: {error}"
