"""Records to rows: seeds are averaged, rows compared, then ranked.

One row is one configuration of one method; its records differ in nothing but the seed. One block
is one data set, task and backbone; only rows of one block are ever ranked against each other.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

from fairbench.core.errors import InputError
from fairbench.core.keys import canonical
from fairbench.core.record import Record
from fairbench.core.score import RANKED, Score
from fairbench.datasets.base import get_dataset
from fairbench.methods import make_method
from fairbench.metrics import corrected_noise_floor, mean_noise_floor
from fairbench.runs.config import MINIMUM_IMAGES

__all__ = ["RANKED_BY", "UNRANKED", "Cell", "Row", "rows"]

RANKED_BY = RANKED
UNRANKED = "–"
QUOTA_CHANCE = 0.001

# What a method may choose for itself. Two rows may differ in these and still be compared; in
# everything else that the run key hashes over, they may not.
_OWN = frozenset(
    {"method", "version", "parameters", "preset", "batch_size", "seed", "evaluated", "images"}
)
# The stage of `Record.seconds` in which images are made; training and scoring are others.
_SAMPLING_STAGE = "generate"


@dataclass(frozen=True)
class Cell:
    """One score of one row, averaged over seeds.

    Attributes:
        value: Mean over the seeds.
        low, high: The wider of two 95 % intervals: of Student's t over the seeds, and within one
            run (mean of the seeds' ends); None where neither exists.
        interval: Which of the two it is.
        floor: 95 % quantile of such a mean when every run is perfectly fair, or None.
        n: Images a run that the score rests on; the smallest of the seeds'.
        better, unit: As in `Score`.
    """

    value: float
    low: float | None
    high: float | None
    interval: str
    floor: float | None
    n: int
    better: Literal["lower", "higher", "neither"]
    unit: str

    @property
    def at_floor(self) -> bool:
        """Whether a perfectly fair generator would often score no better."""
        return self.floor is not None and self.value <= self.floor


@dataclass(frozen=True)
class Row:
    """One configuration of one method.

    Attributes:
        dataset, task, backbone: The block it is shown in.
        rank: Such as ``"3"``, ``"1–2"`` for a tie, ``"–"`` if unranked.
        method: Name of the method.
        label: Preset, and what tells the row from others of this method and block: parameters,
            sampling settings and targets in which they differ and that aren't the default.
        role: As on the method's card.
        supervision: What the method learns from, sorted; empty for nothing.
        comparable: ``"yes"``, or ``"no: "`` and in what it differs from the block's protocol.
        flags: ``"quota"`` if a run's shares hit the target more closely than independent images
            could: its groups were dealt out, not drawn.
        seeds: Seeds averaged over, ascending.
        n: Images a run.
        scores: Name -> averaged score, for the scores that every seed has.
        seconds_per_image: Sampling alone, in seconds; None if no images were made.
        network_calls_per_image: Denoiser evaluations.
        extra_parameters: Parameters added to the backbone.
        config: What the run key hashes over, without the seed.
        keys: Run keys, in the order of `seeds`.
    """

    dataset: str
    task: str
    backbone: str
    rank: str
    method: str
    label: str
    role: str
    supervision: tuple[str, ...]
    comparable: str
    flags: tuple[str, ...]
    seeds: tuple[int, ...]
    n: int
    scores: Mapping[str, Cell]
    seconds_per_image: float | None
    network_calls_per_image: float
    extra_parameters: int
    config: Mapping[str, Any] = field(repr=False)
    keys: tuple[str, ...]
    may_rank: bool = field(repr=False)

    @property
    def block(self) -> tuple[str, str, str]:
        """Data set, task and backbone."""
        return self.dataset, self.task, self.backbone


def rows(
    records: Iterable[Record],
    *,
    dataset: str | None = None,
    task: str | None = None,
    warn: Callable[[str], None],
) -> list[Row]:
    """The rows of a leaderboard: block by block, ranked ones first, incomparable ones last.

    Args:
        records: Any records; only complete ones are used.
        dataset: Keep this data set alone.
        task: Keep this task alone.
        warn: Told in one line about each record or score that is left out.
    """
    by_configuration: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    kept = list(records)
    newest = _newest(kept)
    for record in kept:
        if dataset not in (None, record.dataset) or task not in (None, record.task):
            continue
        if record.status != "complete":
            warn(f"{_name(record)}: left out, because its run is {record.status}")
            continue
        if _breadth(record) < newest[_question(record)]:
            warn(f"{_name(record)}: left out, because another record scores its images anew")
            continue
        configuration = canonical(_without_seed(record))
        by_configuration[record.dataset, record.task, record.method, configuration].append(record)
    merged = [_merge(group, warn) for _, group in sorted(by_configuration.items())]
    merged.sort(key=lambda row: row.block)
    blocks = itertools.groupby(merged, key=lambda row: row.block)
    return [row for _, block in blocks for row in _arrange(list(block))]


def _newest(records: Iterable[Record]) -> dict[str, tuple[int, int, int]]:
    """Question -> the best `_breadth` that a complete record answers it with."""
    newest: dict[str, tuple[int, int, int]] = {}
    for record in records:
        if record.status == "complete":
            question = _question(record)
            newest[question] = max(newest.get(question, (0, 0, 0)), _breadth(record))
    return newest


def _breadth(record: Record) -> tuple[int, int, int]:
    """Version of the metrics, and how many instruments and control variables they come with."""
    config = record.config
    hashes, controls = config.get("hashes", ()), config.get("control", ())
    return int(config.get("metric_version", 0)), len(hashes), len(controls)


def _question(record: Record) -> str:
    """What images were measured, and for which task and target."""
    images = record.generation_key or record.config.get("images", record.key)
    return canonical([record.dataset, record.task, record.method, images, _target(record)])


def _target(record: Record) -> Any:
    return record.config.get("target")


def _merge(records: Sequence[Record], warn: Callable[[str], None]) -> Row:
    """One row of the records that differ in the seed only."""
    by_seed: dict[int, Record] = {}
    for record in sorted(records, key=lambda record: (record.created, record.key)):
        seed = int(record.config.get("seed", 0))
        if seed in by_seed:
            warn(f"{_name(by_seed[seed])}: left out, because {record.key} repeats its seed")
        by_seed[seed] = record
    seeds = sorted(by_seed)
    runs = [by_seed[seed] for seed in seeds]
    first = runs[0]
    seconds = [_seconds_per_image(run) for run in runs]
    return Row(
        dataset=first.dataset,
        task=first.task,
        backbone=str(first.config.get("backbone") or ""),
        rank=UNRANKED,
        method=first.method,
        label="",
        role=str(first.card.get("role", "method")),
        supervision=tuple(sorted(first.card.get("supervision", ()))),
        comparable="yes",
        flags=_flags(runs),
        seeds=tuple(seeds),
        n=_images(first),
        scores=_average_scores(runs, warn),
        seconds_per_image=_mean(value for value in seconds if value is not None),
        network_calls_per_image=_exact_mean(run.network_calls_per_image for run in runs),
        extra_parameters=first.extra_parameters,
        config=_without_seed(first),
        keys=tuple(run.key for run in runs),
        may_rank=_may_rank(first.card),
    )


def _flags(runs: Sequence[Record]) -> tuple[str, ...]:
    checks = [run.facts.get("fairness", {}).get("quota", {}) for run in runs]
    if any(check.get("quota", False) for check in checks):
        return ("quota",)
    statistics_ = [check.get("statistic") for check in checks]
    if len(runs) < 2 or None in statistics_:
        return ()
    # One run of one prompt can't tell; several that all hit the target exactly can.
    from scipy.special import chdtr

    degrees = sum(int(check["degrees"]) for check in checks)
    chance = float(chdtr(degrees, sum(float(value) for value in statistics_ if value is not None)))
    return ("quota",) if degrees and chance < QUOTA_CHANCE else ()


def _average_scores(runs: Sequence[Record], warn: Callable[[str], None]) -> dict[str, Cell]:
    by_name: dict[str, list[Score]] = defaultdict(list)
    for run in runs:
        for score in run.scores:
            by_name[score.name].append(score)
    cells = {}
    for name, scores in by_name.items():
        if len(scores) == len(runs):
            cells[name] = replace(_average(scores), floor=_floor_of_mean(name, scores, runs))
        else:
            warn(f"{_name(runs[0])}: {name} left out; {len(scores)} of {len(runs)} seeds have it")
    return cells


def _average(scores: Sequence[Score]) -> Cell:
    first = scores[0]
    value = _exact_mean(score.value for score in scores)
    low, high, interval = _wider(_within_run(scores), _over_seeds(scores))
    return Cell(
        value=value,
        low=low,
        high=high,
        interval=interval,
        floor=first.floor,
        n=min(score.n for score in scores),
        better=first.better,
        unit=first.unit,
    )


def _floor_of_mean(name: str, scores: Sequence[Score], runs: Sequence[Record]) -> float | None:
    """What 95 % of means over so many perfectly fair runs stay below.

    It is lower than the floor of one run. Records that don't say what their floor rests on have
    one only where there is a single seed.
    """
    if len(runs) == 1:
        return scores[0].floor
    fair = [run.facts.get("fair", {}).get(name) for run in runs]
    if None in fair or any(score.floor is None for score in scores):
        return None
    sizes, target = [n for run in fair for n in run["n"]], fair[0]["target"]
    if "confusion" in fair[0]:
        # One judge's errors are the same in all runs, so they don't average out.
        return corrected_noise_floor(sizes, fair[0]["confusion"], target)
    return mean_noise_floor(sizes, target)


_Interval = tuple[float | None, float | None, str]
_NO_INTERVAL: _Interval = (None, None, "")


def _within_run(scores: Sequence[Score]) -> _Interval:
    """Mean ends of the runs' own intervals; not narrowed for the number of seeds."""
    lows = [score.low for score in scores if score.low is not None]
    highs = [score.high for score in scores if score.high is not None]
    if len(lows) < len(scores) or len(highs) < len(scores):
        return _NO_INTERVAL
    return _exact_mean(lows), _exact_mean(highs), f"within run: {scores[0].interval}"


def _over_seeds(scores: Sequence[Score]) -> _Interval:
    """Student's t interval of the mean over S seeds, S - 1 degrees of freedom."""
    count = len(scores)
    if count < 2:
        return _NO_INTERVAL
    # scipy.stats has the same quantile, but takes a second to import.
    from scipy.special import stdtrit

    values = [score.value for score in scores]
    # Rounded, so that tables don't change with the last digits of another scipy.
    quantile = round(float(stdtrit(count - 1, (1 + scores[0].level) / 2)), 9)
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    mean = _exact_mean(values)
    return mean - half, mean + half, f"t over {count} seeds"


def _wider(one: _Interval, other: _Interval) -> _Interval:
    return max(one, other, key=_width)


def _width(interval: _Interval) -> float:
    low, high, _ = interval
    return -1.0 if low is None or high is None else high - low


def _arrange(block: list[Row]) -> list[Row]:
    """Label, compare, rank and order the rows of one block."""
    protocol = _protocol(block)
    compared = [replace(row, comparable=_compare(row, protocol)) for row in _label(block)]
    ranked = [row for row in compared if _is_ranked(row)]
    rest = [row for row in compared if not _is_ranked(row)]
    return [*_rank(ranked), *sorted(rest, key=_order_unranked)]


def _is_ranked(row: Row) -> bool:
    return row.may_rank and row.comparable == "yes" and RANKED_BY in row.scores


def _rank(ranked: Iterable[Row]) -> Iterator[Row]:
    """Rows by rising discrepancy; all at or below the lowest floor share the first ranks.

    Two such values can't be told from a fair generator's, so their order would be chance.
    """
    table = list(ranked)
    floors = [row.scores[RANKED_BY].floor for row in table]
    # One floor for all: by its own, a row of few valid images would be let off more than others.
    least = min((floor for floor in floors if floor is not None), default=-math.inf)
    ordered = sorted(table, key=lambda row: _order_ranked(row, least))
    tied = sum(row.scores[RANKED_BY].value <= least for row in ordered)
    for place, row in enumerate(ordered, start=1):
        yield replace(row, rank=f"1–{tied}" if place <= tied and tied > 1 else str(place))


def _order_ranked(row: Row, floor: float) -> tuple[bool, float, str, str, tuple[str, ...]]:
    value = row.scores[RANKED_BY].value
    return value > floor, value, row.method, row.label, row.keys


def _order_unranked(row: Row) -> tuple[bool, float, str, str, tuple[str, ...]]:
    cell = row.scores.get(RANKED_BY)
    value = math.inf if cell is None else cell.value
    return row.comparable != "yes", value, row.method, row.label, row.keys


def _protocol(block: Sequence[Row]) -> Mapping[str, str]:
    """The settings of the row that most others agree with; ranked methods decide first.

    Of equally common settings, those with more images win.
    """
    voters = [row for row in block if row.may_rank] or list(block)
    settings = [_settings(row.config) for row in voters]

    def support(index: int) -> tuple[int, int, int, str]:
        mine = settings[index]
        agreeing = sum(not _differences(other, mine) for other in settings)
        return agreeing, voters[index].n, len(mine), canonical(mine)

    return settings[max(range(len(voters)), key=support)]


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Everything in a configuration that isn't the method's own, as dotted name -> text."""
    return dict(_flatten({name: config[name] for name in config if name not in _OWN}))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else canonical(value)


def _differences(mine: Mapping[str, str], protocol: Mapping[str, str]) -> list[str]:
    # A setting that only one side has, such as a hash of training data, isn't a difference.
    return sorted(name for name in mine.keys() & protocol.keys() if mine[name] != protocol[name])


def _compare(row: Row, protocol: Mapping[str, str]) -> str:
    mine = _settings(row.config)
    ranked = row.scores.get(RANKED_BY)
    if ranked is not None and ranked.n < MINIMUM_IMAGES:
        return f"no: only {ranked.n} valid images, at least {MINIMUM_IMAGES} needed"
    if ranked is None and "fairness_discrepancy" in row.scores:
        return f"no: {RANKED_BY} isn't in its record; run it again with this version"
    differences = [
        f"{name} {_short(mine[name])}, others {_short(protocol[name])}"
        for name in _differences(mine, protocol)
    ]
    return f"no: {'; '.join(differences)}" if differences else "yes"


def _short(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:12]}…"


def _label(block: Sequence[Row]) -> list[Row]:
    """Rows with labels that tell them from other rows of their method and preset."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in block:
        groups[row.method, _preset(row)].append(row)
    labels: dict[tuple[str, ...], str] = {}
    for group in groups.values():
        varying = _varying(group)
        short = [_label_of(row, varying, _defaults(row)) for row in group]
        whole = [_label_of(row, varying, {}) for row in group]
        # Records from before a parameter was there are told from its default by whole ones only.
        told = short if len(set(short)) == len(set(whole)) else whole
        labels.update((row.keys, label) for row, label in zip(group, told, strict=True))
    return [replace(row, label=labels[row.keys]) for row in block]


def _preset(row: Row) -> str:
    return str(row.config.get("preset") or "")


def _choices(row: Row) -> dict[str, str]:
    told = ("version", "batch_size", "sampling")
    chosen = {name: row.config[name] for name in told if name in row.config}
    target = row.config.get("target") or {}
    if len(set(target.values())) > 1:  # even shares are every task's own
        chosen["target"] = target
    return dict(_flatten({**row.config.get("parameters", {}), **chosen}))


def _varying(group: Sequence[Row]) -> list[str]:
    """Names of the parameters in which the rows differ, sorted."""
    choices = [_choices(row) for row in group]
    names = sorted(set().union(*choices))
    return [name for name in names if len({choice.get(name) for choice in choices}) > 1]


def _defaults(row: Row) -> dict[str, str]:
    """Today's parameters of the row's method and preset, and its backbone's sampling settings."""
    found: dict[str, Any] = {}
    with suppress(InputError):  # another package's method
        preset = _preset(row)
        method, _ = make_method(row.method, [f"preset={preset}"] if preset else [])
        found |= asdict(cast("Any", method))
    with suppress(InputError):  # another package's data set
        shipped = {spec.name: spec for spec in get_dataset(row.dataset).backbones}
        if row.backbone in shipped:
            found["sampling"] = asdict(shipped[row.backbone].sampling)
    return dict(_flatten(found))


def _label_of(row: Row, varying: Sequence[str], defaults: Mapping[str, str]) -> str:
    choices = _choices(row)
    told = [name for name in varying if name in choices and choices[name] != defaults.get(name)]
    parts = [f"{name}={choices[name]}" for name in told]
    return ", ".join(filter(None, [_preset(row), *parts]))


def _may_rank(card: Mapping[str, Any]) -> bool:
    return bool(card.get("ranked", True)) and card.get("role") not in ("control", "oracle")


def _without_seed(record: Record) -> dict[str, Any]:
    # Control variables add tables and change no score.
    return {k: value for k, value in record.config.items() if k not in ("seed", "control")}


def _images(record: Record) -> int:
    return int(record.config.get("num_images", len(record.manifest)))


def _seconds_per_image(record: Record) -> float | None:
    seconds, images = record.seconds.get(_SAMPLING_STAGE), _images(record)
    return seconds / images if seconds is not None and images else None


def _mean(values: Iterable[float]) -> float | None:
    kept = list(values)
    return _exact_mean(kept) if kept else None


def _exact_mean(values: Iterable[float]) -> float:
    # Correctly rounded, unlike fmean: the mean of equal values is that value, to the last digit.
    return float(statistics.mean(map(float, values)))


def _name(record: Record) -> str:
    return f"{record.dataset}/{record.method}/{record.key}"
