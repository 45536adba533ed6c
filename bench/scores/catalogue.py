"""All score families, of this package and of others, and what is known of each score."""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from fairbench.core.registry import Registry
from fairbench.core.score import Score, ScoreSpec

if TYPE_CHECKING:
    from fairbench.scores.parts.family import ScoreFamily

__all__ = ["broken_families", "families", "is_older", "metrics", "spec_of", "specs"]


@functools.cache
def _entries() -> tuple[tuple[ScoreFamily, ...], dict[str, str]]:
    # Imported when first asked for: families need scipy, and readers of records mostly don't.
    registry: Registry[ScoreFamily] = Registry("score family", "fairbench.scores", "FAMILY")
    found, broken = registry.entries()
    ordered = sorted(found.values(), key=lambda family: (family.order, family.name))
    return tuple(ordered), dict(broken)


def families() -> tuple[ScoreFamily, ...]:
    """Every family that can be loaded, in the order of records."""
    return _entries()[0]


def broken_families() -> dict[str, str]:
    """Families of other packages that can't be loaded -> why."""
    return dict(_entries()[1])


def specs() -> tuple[ScoreSpec, ...]:
    """What is known of every score, family by family."""
    return tuple(spec for family in families() for spec in family.specs)


@functools.cache
def spec_of(name: str) -> ScoreSpec | None:
    """What is known of a score; None of one that no family makes, as an old record may hold.

    Of several patterns that match, the most specific wins: the name itself, else the pattern with
    the most characters that aren't wildcards.
    """
    matching = [spec for spec in specs() if fnmatchcase(name, spec.pattern)]
    return max(matching, key=lambda spec: spec.specificity, default=None)


def is_older(score: Score) -> bool:
    """Whether today's code would compute it in another way from the same arrays."""
    spec = spec_of(score.name)
    if spec is None or score.version >= spec.version:
        return False
    if spec.batches_since is None or score.version < spec.batches_since:
        return True
    from fairbench.scores.parts.crossings import WHOLE_BATCHES  # needs scipy, as above

    return WHOLE_BATCHES in score.interval


def metrics() -> dict[str, str]:
    """Pattern of names -> meaning, for lists."""
    return {spec.display or spec.pattern: spec.meaning for spec in specs()}
