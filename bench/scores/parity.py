"""Quality of the groups of the sensitive crossing side by side, of valid images."""

from __future__ import annotations

from dataclasses import replace

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import GroupQuality, Parity
from fairbench.metrics.jackknife import student
from fairbench.scores.parts.columns import distance_specs
from fairbench.scores.parts.evidence import GROUP_N, Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import (
    kernel_score,
    leaving_out_batches,
    share_of_worth,
    worst_score,
)

__all__ = ["FAMILY"]

NEEDS = "enough valid and real images of each group"
WORST = "of each joint cell against real images of it: the worst. Lower is better."
GAP = "of each joint cell against real images of it: largest less smallest. Lower is better."
NO_INTERVAL = "no interval: a group has too few images for draws that have none in common"
APART = "error by draws that have no image in common"
NO_GAP = "no interval: groups that are equal have a gap, too"
SPECS = (
    *(
        spec
        for kind, what in (("frechet", "Fréchet distance"), ("kernel", "kernel distance"))
        for made in (
            ScoreSpec(
                "worst_group",
                f"{what} {WORST}",
                "lower",
                margin=0.2,
                relative=True,
                summary=True,
                main=5 if kind == "kernel" else None,
                needs=NEEDS,
                version=3,
            ),
            ScoreSpec(
                "group_gap",
                f"{what} {GAP}",
                "lower",
                margin=0.3,
                relative=True,
                needs=NEEDS,
                version=2 if kind == "kernel" else 3,
            ),
        )
        for spec in distance_specs(kind, made)
    ),
    ScoreSpec(
        "recall_*_worst_group",
        "recall of each joint cell against real images of it: the worst. Higher is better.",
        "higher",
        margin=0.1,
        summary=True,
        needs=NEEDS,
        unit="share",
        display="recall_<encoder>_worst_group",
        version=3,
    ),
    ScoreSpec(
        "recall_*_group_gap",
        f"recall {GAP}",
        "lower",
        margin=0.1,
        summary=True,
        needs=NEEDS,
        display="recall_<encoder>_group_gap",
        version=3,
    ),
)


def compute(evidence: Evidence) -> Found:
    """The worst group and the gap by each encoder."""
    scores: list[Score] = []
    missing: dict[str, str] = {}
    if evidence.first.n < 2:
        missing["*_worst_group"] = f"{evidence.first.n} valid image"
    for encoder, quality in evidence.group_quality.items():
        columns = evidence.encoders[encoder]
        source = f"encoder {encoder}, {' × '.join(evidence.sensitive)}, valid images"
        for name, parity in (
            (columns.kernel, quality.kernel),
            (columns.frechet, quality.frechet),
            (f"recall_{columns.encoder}", quality.recall),
        ):
            if parity.worst is None:
                missing[f"{name}_worst_group"] = _named(parity.reason, evidence.groups)
            scores += _worst(name, parity, quality, source, evidence)
    return Found(tuple(scores), not_measured=missing)


def _worst(
    name: str, parity: Parity, quality: GroupQuality, source: str, evidence: Evidence
) -> list[Score]:
    """The worst group and the gap."""
    if parity.worst is None or parity.gap is None:
        return []
    groups, at = evidence.groups, parity.by_cell.index(parity.worst)
    if parity is quality.kernel:
        by_group = [
            kernel_score(f"{name}_worst_group", one, cell.n_generated, f"{source}: {group}")
            for cell, group in zip(quality.cells, groups, strict=True)
            if (one := cell.kernel) is not None
        ]
        worst = leaving_out_batches(worst_score(by_group), evidence.first)
    else:
        source += f", {GROUP_N} of each group and as many real ones, mean of draws"
        worst = Score(
            name=f"{name}_worst_group",
            value=parity.worst,
            low=None,
            high=None,
            n=GROUP_N,
            better=parity.better,
            unit="share" if parity is quality.recall else "",
            source=f"{source}: {groups[at]}; {NO_INTERVAL}",
        )
        if all(cell.draws for cell in quality.cells):
            made = _recall if parity is quality.recall else _frechet
            worst = leaving_out_batches(made(worst, quality, source, groups), evidence.first)
    return [
        worst,
        Score(
            name=f"{name}_group_gap",
            value=parity.gap,
            low=None,
            high=None,
            n=worst.n,
            better="lower",
            source=f"{source}: largest less smallest; {NO_GAP}",
        ),
    ]


def _frechet(worst: Score, quality: GroupQuality, source: str, groups: list[str]) -> Score:
    """With the interval that the spread of each group's draws gives."""
    by_group, degrees = [], []
    for cell, group in zip(quality.cells, groups, strict=True):
        assert cell.frechet is not None
        assert cell.frechet_error is not None
        degrees.append(cell.draws - 1.0)
        half = student(0.95, degrees[-1]) * cell.frechet_error
        by_group.append(
            replace(
                worst,
                value=cell.frechet,
                low=cell.frechet - half,
                high=cell.frechet + half,
                n=cell.draws * GROUP_N,
                interval=f"t, {APART}",
                source=f"{source}: {group}",
            )
        )
    found = worst_score(by_group, degrees)
    return replace(found, low=max(0.0, found.low or 0.0))


def _recall(worst: Score, quality: GroupQuality, source: str, groups: list[str]) -> Score:
    """The same for a share, whose spread says nothing where it is 0 or 1 in every draw."""
    by_group = []
    for cell, group in zip(quality.cells, groups, strict=True):
        assert cell.neighbours is not None
        assert cell.recall_error is not None
        half = student(0.95, cell.draws - 1) * cell.recall_error
        n = cell.draws * GROUP_N
        one = share_of_worth(
            worst.name, cell.neighbours.recall, half, n, f"{source}: {group}", f"wilson, {APART}"
        )
        by_group.append(one)
    return worst_score(by_group)


def _named(reason: str, groups: list[str]) -> str:
    """A reason with the names of groups instead of "cell 3"."""
    for cell in reversed(range(len(groups))):
        reason = reason.replace(f"cell {cell} ", f"{groups[cell]} ")
    return reason


FAMILY = ScoreFamily("parity", 50, SPECS, compute)
