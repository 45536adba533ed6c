"""What a leaderboard has of one configuration of one method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairbench.leaderboards.averages import Cell

__all__ = ["UNRANKED", "Copies", "Distance", "Row"]

UNRANKED = "–"


@dataclass(frozen=True)
class Copies:
    """Images of a row that are the same to the last bit.

    Attributes:
        share: Of all its images, those that are exact copies of another of the row, in [0, 1].
        distinct: How many different images there are.
        leaked: How many are images of the evaluation split; None if that wasn't looked at.
    """

    share: float
    distinct: int
    leaked: int | None


@dataclass(frozen=True)
class Distance:
    """How far a row's images lie from real ones in the row's own shares.

    Attributes:
        value: Mean over the runs of the first encoder's kernel distance.
        low, high: 95 % interval of the error within runs: admission asks about these images.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One configuration of one method.

    Attributes:
        dataset, task, backbone: What it was made of, for and with.
        sampled: Steps and guidance in words, where the backbone doesn't declare the same ones.
        rank: First and last rank that it may have, such as ``"1–3"``, or ``"2"``; ``"–"`` if it
            isn't ranked.
        tie_class: ``"A"`` for the best row and those that don't differ from it, then ``"B"`` …;
            empty if it isn't ranked.
        why_unranked: One word; empty for a ranked row.
        reasons: In full, all that keeps it from being ranked.
        ranked_by: The column that its block is ranked by.
        compared: ``"paired"`` if images from the same noise are compared in pairs, ``"unpaired"``
            if its records don't hold what judges said of each image; empty if it isn't ranked.
        method: Name of the method.
        label: Preset, and what tells the row from others of this method and block: parameters,
            sampling settings and targets in which they differ and that aren't the default.
        role: As on the method's card.
        supervision: What the method learns from, sorted; empty for nothing.
        comparable: ``"yes"``, or ``"no: "`` and in what it departs from the block's protocol.
        flags: ``"quota"`` if a run's shares hit the target more closely than independent images
            could: its groups were dealt out, not drawn. ``"quality?"`` if its distance to real
            images may be above twice the baseline's.
        seeds: Seeds that make up the estimate, ascending.
        n: Images a run.
        scores: Name -> score over the seeds, for the scores that every seed has.
        seconds_per_image: Sampling alone, in seconds; None if no images were made.
        network_calls_per_image: Denoiser evaluations.
        extra_parameters: Parameters added to the backbone.
        config: What the run key hashes over, without the seed; what it holds is that of other rows
            too, to be read only.
        keys: Run keys, in the order of `seeds`.
        luck: Whether every ranked row of the block has three seeds, so that the luck of training
            is in the comparison.
        unchecked: Checks that nothing in the block could be put to.
        copies: Exact copies among its images; None if no hashes are known.
        card: The method's card, as its first record holds it.
        may_rank: Whether its card asks for a rank.
        ranked_preset: The preset that its card names as ranked; empty: its defaults.
        quality: What its quality is admitted by; None if it wasn't measured.
        real_distance: 95 % quantile of that distance between real sets of its size; 0: unknown.
        given: The baseline that its records name; None: it is looked for among the rows.
    """

    dataset: str
    task: str
    backbone: str
    rank: str
    tie_class: str
    why_unranked: str
    reasons: tuple[str, ...]
    ranked_by: str
    compared: str
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
    luck: bool
    unchecked: tuple[str, ...]
    copies: Copies | None
    card: Mapping[str, Any] = field(repr=False)
    may_rank: bool = field(repr=False)
    ranked_preset: str = field(repr=False)
    quality: Distance | None = field(repr=False)
    real_distance: float = field(repr=False)
    given: Row | None = field(repr=False)
    sampled: str = field(default="", repr=False)

    @property
    def place(self) -> tuple[str, ...]:
        """What tells the row from all others."""
        return self.dataset, self.task, self.backbone, self.method, *self.keys

    @property
    def network(self) -> str:
        """The backbone, or what was trained in its place from random weights."""
        given = self.config.get("parameters") or {}
        if not isinstance(given, Mapping) or given.get("start") != "scratch":
            return self.backbone
        noise = ", noise prediction" if given.get("prediction") == "noise" else ""
        return f"{self.backbone} from random weights{noise}, {given.get('steps')} training steps"

    @property
    def block(self) -> tuple[str, str, str]:
        """Data set, task, and network with its steps and guidance where those aren't declared."""
        return self.dataset, self.task, ", ".join(filter(None, [self.network, self.sampled]))
