"""What a score family is: which scores it makes, and the function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fairbench.core.score import Score, ScoreSpec
from fairbench.scores.parts.evidence import Evidence

__all__ = ["Found", "ScoreFamily", "Table"]

Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """What a family has to say of one run.

    Attributes:
        scores: Its scores, in the order in which records list them.
        tables: Name, such as ``"gender/race"`` -> rows.
        facts: What else belongs into the record; dictionaries of the same name, such as
            ``"fairness"``, are merged with those of other families.
        not_measured: Score -> why it isn't among `scores`.
    """

    scores: tuple[Score, ...] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    not_measured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreFamily:
    """Scores that are computed together, from arrays alone.

    Attributes:
        name: What the family is called.
        order: Families with a lower number come first in a record.
        specs: What is known of its scores; each score matches one of them.
        compute: Evidence -> what is found; a pure function that runs no network.
        needs_valid: Whether it takes at least one valid image; without one it isn't asked.
        each_encoder: Whether it is asked once for each encoder, with evidence of that one alone;
            neighbours in `order` then take turns, so that a record lists encoder by encoder.
    """

    name: str
    order: int
    specs: tuple[ScoreSpec, ...]
    compute: Callable[[Evidence], Found]
    needs_valid: bool = True
    each_encoder: bool = False
