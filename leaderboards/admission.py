"""Which rows are ranked, and why the others aren't.

A block's protocol is that of its baseline, the undebiased backbone: it is never voted by rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, cast

from fairbench.core.errors import InputError
from fairbench.core.keys import canonical
from fairbench.core.score import RANKED
from fairbench.datasets.base import get_dataset
from fairbench.leaderboards.averages import Cell
from fairbench.leaderboards.counts import RAW
from fairbench.leaderboards.row import Row
from fairbench.methods import make_method
from fairbench.metrics.counting import wilson_interval
from fairbench.runs.config import MINIMUM_IMAGES
from fairbench.runs.copies import MOST_COPIES

__all__ = [
    "Baselines",
    "Reason",
    "admit",
    "differences",
    "flatten",
    "samplings",
    "told_defaults",
]

BASELINE = "vanilla"

# What a method may choose for itself. Two rows may differ in these and still be compared; in
# everything else that the run key hashes over, they may not.
_OWN = frozenset(
    {
        "method",
        "version",
        "parameters",
        "preset",
        "batch_size",
        "network_batch",
        "decode_batch",
        "seed",
        "evaluated",
        "images",
        "baseline",
        "labels",
        "scoring_seed",
    }
)
_SEEDS = 3
_LOST_VALIDITY = 0.10
_WORSE, _DOUBTFUL = 5.0, 2.0


@dataclass(frozen=True)
class Reason:
    """Why a row isn't ranked.

    Attributes:
        word: One word for tables, such as ``"validity"``.
        text: What was expected and what is seen.
    """

    word: str
    text: str


BLOCK_SAMPLING = {"steps": "{} steps", "guidance": "guidance {}"}
"""Sampling settings that tell blocks apart -> how they are said."""


@dataclass(frozen=True)
class Admission:
    """What is decided for one block.

    Attributes:
        ranked_by: The column that rows are ranked by.
        reasons: Place of a row -> why it isn't ranked; empty for one that is.
        comparable: Place of a row -> ``"yes"``, or ``"no: "`` and in what it departs from the
            protocol.
        doubtful: Places of rows whose quality may be much worse than the baseline's.
        seeds: Fewest seeds of a ranked row.
        unchecked: Checks that nothing here could be put to.
    """

    ranked_by: str
    reasons: Mapping[tuple[str, ...], tuple[Reason, ...]]
    comparable: Mapping[tuple[str, ...], str]
    doubtful: frozenset[tuple[str, ...]]
    seeds: int
    unchecked: tuple[str, ...]


class Baselines:
    """Finds the undebiased backbone's row for another.

    Args:
        rows: All rows of all blocks.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row.method == BASELINE:
                self._rows[_surroundings(row.config)].append(row)

    def of(self, row: Row) -> Row | None:
        """The baseline with the same backbone, prompts and sampling, whatever its target and n.

        Of several the same task's, then the largest; one that the row's records name before all.
        """
        if row.given is not None:
            return row.given
        found = self._rows.get(_surroundings(row.config), [])
        return max(
            found, key=lambda one: (one.task == row.task, *_weight(one), one.keys), default=None
        )

    def protocol(self, block: Sequence[Row]) -> Row | None:
        """The baseline whose settings a block's rows must share; None if there is none.

        It has the block's steps and guidance, is sampled in all else as the backbone declares, if
        that is known, and is the largest.
        """
        first = block[0]
        declared = block_sampling(first)
        prompts = {canonical(row.config.get("prompts")) for row in block}
        found = [
            row
            for rows in self._rows.values()
            for row in rows
            if (row.dataset, row.backbone) == (first.dataset, first.backbone)
            and canonical(row.config.get("prompts")) in prompts
            and (row.task == first.task or _even(row.config))
            and _same(row.config.get("sampling") or {}, declared)
        ]
        return max(
            found,
            key=lambda one: (
                _even(one.config),
                _number(one),
                one.task == first.task,
                *_weight(one),
                one.keys,
            ),
            default=None,
        )


def admit(block: Sequence[Row], baselines: Baselines) -> Admission:
    """Decide which rows of one block are ranked.

    Args:
        block: All rows of one data set, task and backbone.
        baselines: Of all rows, whatever their task.
    """
    protocol = baselines.protocol(block)
    if protocol is None:  # no row is ranked then, but what they don't share is still said
        protocol = max(block, key=lambda one: (one.may_rank, *_weight(one), one.keys))
    expected = _settings(protocol.config)
    comparable = {row.place: _compare(row, protocol, expected) for row in block}
    reasons: dict[tuple[str, ...], list[Reason]] = {row.place: [] for row in block}
    candidates = []
    for row in block:
        mine = reasons[row.place]
        if (role := _by_role(row)) is not None:
            mine.append(role)
        if comparable[row.place] != "yes":
            mine.append(Reason("protocol", comparable[row.place].removeprefix("no: ")))
        if not mine:
            candidates.append(row)
    settings = dict(_other_settings(candidates))
    for place, reason in settings.items():
        reasons[place].append(reason)
    candidates = [row for row in candidates if row.place not in settings]
    ranked_by = RANKED if all(RANKED in row.scores for row in candidates) else RAW
    if not candidates and not any(RANKED in row.scores for row in block):
        ranked_by = RAW
    level = [row for row in block if comparable[row.place] == "yes"]
    seeds = min(_SEEDS, max((len(row.seeds) for row in level), default=1))
    checks = _Checks(ranked_by, seeds, baselines)
    for row in candidates:
        reasons[row.place] += checks.of(row)
    ranked = [row for row in candidates if not reasons[row.place]]
    doubtful = frozenset(row.place for row in candidates if checks.is_doubtful(row))
    return Admission(
        ranked_by,
        {place: tuple(found) for place, found in reasons.items()},
        comparable,
        doubtful,
        min((len(row.seeds) for row in ranked), default=seeds),
        checks.unchecked(candidates),
    )


class _Checks:
    """What a candidate must pass."""

    def __init__(self, ranked_by: str, seeds: int, baselines: Baselines) -> None:
        self._ranked_by, self._seeds, self._baselines = ranked_by, seeds, baselines

    def of(self, row: Row) -> Iterator[Reason]:
        """Why a row isn't ranked."""
        cell = row.scores.get(self._ranked_by)
        if cell is None:
            yield Reason("unmeasured", f"{self._ranked_by} isn't in its record; run it again")
        elif cell.n < MINIMUM_IMAGES:
            yield Reason(
                "images", f"only {cell.n} valid images, at least {MINIMUM_IMAGES} are needed"
            )
        baseline = self._baselines.of(row)
        if baseline is None:
            yield Reason("baseline", f"there is no {BASELINE} row; {_command(row)}")
        else:
            yield from _validity(row, baseline)
            yield from _quality(row, baseline)
        if row.copies is not None:
            if row.copies.share > MOST_COPIES:
                yield Reason(
                    "duplicates",
                    f"{row.copies.share:.1%} of its images are exact copies of others of it, at "
                    f"most {MOST_COPIES:.0%} may be; {row.copies.distinct:,} are distinct",
                )
            if row.copies.leaked:
                yield Reason(
                    "leak",
                    f"{row.copies.leaked} of its images are images of the evaluation split",
                )
        if "quota" in row.flags:
            yield Reason(
                "quota",
                "its shares hit the target more closely than independent images could: groups "
                "were dealt out, not drawn",
            )
        if len(row.seeds) < self._seeds:
            yield Reason(
                "seeds", f"{len(row.seeds)} of the {self._seeds} seeds that this table asks for"
            )

    def is_doubtful(self, row: Row) -> bool:
        """Whether the quality may be more than twice as bad as the baseline's."""
        baseline = self._baselines.of(row)
        if baseline is None or row.quality is None or baseline.quality is None:
            return False
        worst = max(baseline.quality.high, row.real_distance)
        return row.quality.high > _DOUBTFUL * worst

    def unchecked(self, candidates: Sequence[Row]) -> tuple[str, ...]:
        """Checks that no candidate could be put to."""
        absent = []
        with_baseline = [
            (row, baseline)
            for row in candidates
            if (baseline := self._baselines.of(row)) is not None
        ]
        if with_baseline:
            if not any("validity" in (*a.scores, *b.scores) for a, b in with_baseline):
                absent.append("validity")
            if not any(a.quality or b.quality for a, b in with_baseline):
                absent.append("quality")
        if candidates and all(row.copies is None for row in candidates):
            absent.append("duplicates")
        if candidates and all(
            row.copies is None or row.copies.leaked is None for row in candidates
        ):
            absent.append("leak")
        return tuple(absent)


def _validity(row: Row, baseline: Row) -> Iterator[Reason]:
    mine, theirs = row.scores.get("validity"), baseline.scores.get("validity")
    if theirs is None:
        return
    if mine is None:
        yield Reason("validity", "its valid share wasn't measured, the baseline's was")
        return
    # Square and add: the interval of a difference from those of its terms. Pooled counts: what
    # differs between seeds is no excuse for images that aren't valid.
    above = wilson_interval(*_hits(row, mine))[1] - mine.value
    below = theirs.value - wilson_interval(*_hits(baseline, theirs))[0]
    if mine.value - theirs.value + math.hypot(above, below) < -_LOST_VALIDITY:
        yield Reason(
            "validity",
            f"{mine.value:.1%} of its images are valid, {theirs.value:.1%} of the baseline's; at "
            f"most {100 * _LOST_VALIDITY:.0f} points fewer may be",
        )


def _hits(row: Row, cell: Cell) -> tuple[float, float]:
    """Valid images and all of them."""
    images = cell.n * len(row.seeds)
    return min(1.0, max(0.0, cell.value)) * images, float(images)


def _quality(row: Row, baseline: Row) -> Iterator[Reason]:
    mine, theirs = row.quality, baseline.quality
    if theirs is None:
        return
    if mine is None:
        yield Reason("quality", "its distance to real images wasn't measured, the baseline's was")
        return
    allowed = _WORSE * max(theirs.value, row.real_distance)
    if mine.low > allowed:
        yield Reason(
            "quality",
            f"its kernel distance to real images in its own shares is {mine.low:.4g} or more; "
            f"{allowed:.4g} may be, {_WORSE:g} times the baseline's",
        )


def _by_role(row: Row) -> Reason | None:
    if row.role != "method":
        return Reason(row.role, f"{row.role}s aren't ranked")
    if not row.may_rank and "evaluated" in row.config:
        return Reason("baseline", f"images made elsewhere need one; {_command(row)}")
    if not row.may_rank:
        return Reason("unranked", "its card doesn't ask for a rank")
    return None


def _other_settings(candidates: Sequence[Row]) -> Iterator[tuple[tuple[str, ...], Reason]]:
    """Rows that aren't the one ranked row of their method."""
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in candidates:
        by_method[row.method].append(row)
    for rows in by_method.values():
        kept = []
        for row in rows:
            departs = _departs(row)
            if departs:
                yield row.place, Reason("setting", f"{departs}; one row a method is ranked")
            else:
                kept.append(row)
        kept.sort(key=lambda row: (int(row.config.get("version", 0)), *_weight(row), row.keys))
        for row in kept[:-1]:
            newest = int(kept[-1].config.get("version", 0))
            yield (
                row.place,
                Reason(
                    "setting",
                    f"another row of {row.method} (version {newest}, {len(kept[-1].seeds)} seeds) "
                    "is the ranked one",
                ),
            )


def _departs(row: Row) -> str:
    """In what a row departs from what its card ranks; empty if in nothing that is known."""
    preset, ranked = str(row.config.get("preset") or ""), row.ranked_preset
    if preset != ranked:
        return f"preset {preset or 'none'}, ranked is {ranked or 'none'}"
    if bias := row.config.get("bias"):
        return f"trained with the bias {bias}"
    told = dict(flatten(row.config.get("parameters", {})))
    defaults = told_defaults(row.method, preset)
    changed = [name for name in sorted(told) if name in defaults and told[name] != defaults[name]]
    return ", ".join(f"{name}={told[name]}, default {defaults[name]}" for name in changed)


@cache
def told_defaults(method: str, preset: str) -> Mapping[str, str]:
    """Today's parameters of a method and preset; empty for another package's method."""
    with suppress(InputError):
        made, _ = make_method(method, [f"preset={preset}"] if preset else [])
        return dict(flatten(asdict(cast("Any", made))))
    return {}


def declared_sampling(dataset: str, backbone: str) -> Mapping[str, Any]:
    """How a backbone says that it is sampled; empty for one that no data set names."""
    return samplings(dataset).get(backbone, {})


@cache
def samplings(dataset: str) -> Mapping[str, Mapping[str, Any]]:
    """Backbone of a data set -> how it says that it is sampled."""
    with suppress(InputError):  # another package's data set
        return {spec.name: asdict(spec.sampling) for spec in get_dataset(dataset).backbones}
    return {}


def block_sampling(row: Row) -> dict[str, Any]:
    """How a row's block is sampled: as declared, if that is known, but for steps and guidance."""
    given = row.config.get("sampling") or {}
    own = {name: given[name] for name in BLOCK_SAMPLING if name in given}
    return {**declared_sampling(row.dataset, row.backbone), **own}


def sampled(dataset: str, backbone: str, config: Mapping[str, Any]) -> str:
    """Steps and guidance in words, where the backbone doesn't declare the same ones."""
    given, declared = config.get("sampling") or {}, declared_sampling(dataset, backbone)
    told = []
    for name, words in BLOCK_SAMPLING.items():
        if name in given and given[name] != declared.get(name):
            told.append(words.format(_short(str(given[name]).removesuffix(".0"))))
    return ", ".join(told)


def _compare(row: Row, protocol: Row, expected: Mapping[str, str]) -> str:
    """Whether a row has the protocol of its block, and its settings, which are given."""
    mine, theirs = _settings(row.config), dict(expected)
    if protocol.task != row.task:  # a baseline's own question isn't the row's
        for name in list(theirs):
            if name == "task" or name.startswith(("target.", "readings.")):
                del theirs[name]
        if not _even(row.config):
            return "no: its target isn't even"
    theirs |= flatten({"sampling": block_sampling(row)})
    apart = differences(mine, theirs)
    told = [f"{name} {_short(mine[name])}, protocol {_short(theirs[name])}" for name in apart]
    return f"no: {'; '.join(told)}" if told else "yes"


def differences(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Names of settings that both have and that differ, sorted."""
    # A setting that only one side has, such as a hash of training data, isn't a difference.
    return sorted(name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name])


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and text of every value of a tree."""
    for name, value in tree.items():
        if type(value) is dict or isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else canonical(value)


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Everything in a configuration that isn't the method's own, as dotted name -> text."""
    return dict(flatten({name: config[name] for name in config if name not in _OWN}))


def _surroundings(config: Mapping[str, Any]) -> str:
    """What a row and its baseline share: backbone, prompts, sampling, data set."""
    sampling = dict(flatten(config.get("sampling") or {}))
    backbone = [config.get("backbone"), config.get("backbone_sha256")]
    return canonical([config.get("dataset"), backbone, config.get("prompts"), sampling])


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return not differences(dict(flatten(one)), dict(flatten(other)))


def _even(config: Mapping[str, Any]) -> bool:
    return len(set((config.get("target") or {}).values())) <= 1


def _weight(row: Row) -> tuple[int, int, int]:
    return _number(row), len(row.seeds), len(row.config.get("hashes", ()))


def _number(row: Row) -> int:
    return int(row.config.get("num_images", row.n))


def _short(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:12]}…"


def _command(row: Row) -> str:
    if "evaluated" in row.config:
        return "name its record with fairbench evaluate --baseline"
    seeds = ",".join(map(str, row.seeds))
    backbone = f" --backbone {row.backbone}" if row.backbone else ""
    return (
        f"make it with: fairbench run --method {BASELINE} --dataset {row.dataset} "
        f"--task {row.task}{backbone} --num-images {_number(row)} --seeds {seeds}"
    )
