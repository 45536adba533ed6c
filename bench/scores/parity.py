"""Quality of the groups of the sensitive crossing side by side, of valid images."""

from __future__ import annotations

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import GroupQuality, Parity
from fairbench.scores.parts.columns import distance_specs
from fairbench.scores.parts.evidence import GROUP_N, Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import kernel_score, leaving_out_batches, worst_score

__all__ = ["FAMILY"]

NEEDS = "enough valid and real images of each group"
WORST = "of each joint cell against real images of it: the worst. Lower is better."
GAP = "of each joint cell against real images of it: largest less smallest. Lower is better."
NO_INTERVAL = "no interval: the spread of such a mean isn't seen in one run"
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
                version=3 if kind == "kernel" else 2,
            ),
            ScoreSpec(
                "group_gap", f"{what} {GAP}", "lower", margin=0.3, relative=True, needs=NEEDS
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
        display="recall_<encoder>_worst_group",
    ),
    ScoreSpec(
        "recall_*_group_gap",
        f"recall {GAP}",
        "lower",
        margin=0.1,
        summary=True,
        needs=NEEDS,
        display="recall_<encoder>_group_gap",
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
    """The worst group and the gap; only kernel distances have an interval within one run.

    The others are means of draws of `GROUP_N` images of each group, most of which are used in
    several draws: how far such a mean scatters one run doesn't show, and what a worst of them
    would be if groups were equal follows from that.
    """
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
            source=f"{source}: {groups[at]}; {NO_INTERVAL}",
        )
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


def _named(reason: str, groups: list[str]) -> str:
    """A reason with the names of groups instead of "cell 3"."""
    for cell in reversed(range(len(groups))):
        reason = reason.replace(f"cell {cell} ", f"{groups[cell]} ")
    return reason


FAMILY = ScoreFamily("parity", 50, SPECS, compute)
