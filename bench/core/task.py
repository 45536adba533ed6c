"""The question that a run asks: prompts, groups, wanted shares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError, InputError, unknown_name
from fairbench.core.prompts import Phrase, describe

__all__ = ["Control", "Prompt", "Task", "parse_target", "phrases_of"]


@dataclass(frozen=True)
class Prompt:
    """A request without any attribute word, and how such words are written into it.

    Attributes:
        subject: Noun phrase, such as ``"tennis player"``; empty for an unconditional backbone.
        stratum: Attribute -> level that every real image of this subject has, such as
            ``{"role": "person"}``; empty: any real image. Quality references follow it.
        template: What stands around the noun phrase, whose place is ``{}``.
    """

    subject: str
    stratum: Mapping[str, str] = field(default_factory=dict)
    template: str = "{}"

    @property
    def text(self) -> str:
        """The user's own prompt."""
        return describe(self.subject, (), self.template) if self.subject else ""

    def naming(self, phrases: Sequence[Phrase]) -> str:
        """The prompt with levels written in, given in the order of their attributes."""
        return describe(self.subject, phrases, self.template)


def phrases_of(
    attribute: str, level: str, said: Mapping[str, Mapping[str, Phrase]]
) -> tuple[Phrase, ...]:
    """How a level is said, or a group's levels in the order of their attributes.

    Args:
        attribute: Such as ``"gender"``, or ``"gender/race"`` for a group of both.
        level: Such as ``"female"``, or ``"female/asian"``.
        said: Attribute -> level -> phrase, where that isn't the level's own name.
    """
    pairs = zip(attribute.split("/"), level.split("/"), strict=True)
    return tuple(said.get(name, {}).get(one, Phrase(one)) for name, one in pairs)


@dataclass(frozen=True)
class Task:
    """The question, the same for every method: prompts, wanted shares, what is ranked.

    Attributes:
        name: Its name on the command line.
        attributes: Attribute -> levels, in declared order; the groups are their product.
        prompts: Images are spread evenly over them.
        target: Wanted share of each group, in the order of `groups`; sums to 1.
        per_prompt: Whether the ranked discrepancy is the mean over prompts, not the pooled one.
        said: Attribute -> level -> how it is said, where that isn't the level's own name.
    """

    name: str
    attributes: Mapping[str, tuple[str, ...]]
    prompts: tuple[Prompt, ...]
    target: tuple[float, ...]
    per_prompt: bool = False
    said: Mapping[str, Mapping[str, Phrase]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.target) != len(self.groups):
            raise ContractError(
                f"task {self.name!r} has {len(self.groups)} groups, its target "
                f"{len(self.target)} shares; give one share a group"
            )
        if min(self.target) < 0 or not abs(sum(self.target) - 1) <= 1e-6:
            raise ContractError(
                f"target shares must be non-negative and sum to 1; seen {self.target}"
            )

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the K groups, ``"female"`` or ``"female/asian"``: the full product."""
        return tuple("/".join(cell) for cell in self.cells)

    @property
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """The K groups as tuples of levels, one level an attribute."""
        return tuple(itertools.product(*self.attributes.values()))

    def phrases(self, attribute: str, level: str) -> tuple[Phrase, ...]:
        """How a level is said, or a group's levels; see :func:`phrases_of`."""
        return phrases_of(attribute, level, self.said)

    def group_phrases(self, group: int) -> tuple[Phrase, ...]:
        """How a group's levels are said, in the order of their attributes."""
        return self.phrases("/".join(self.attributes), self.groups[group])

    def with_target(self, target: Mapping[str, float]) -> Task:
        """The same task with other wanted shares, by group name; a group left out gets 0.

        Raises:
            InputError: If a name isn't a group of this task, a share is negative or they don't
                sum to 1.
        """
        for name, share in target.items():
            if name not in self.groups:
                raise unknown_name("target group", name, self.groups)
            if share < 0:
                raise InputError(
                    f"target shares must be non-negative; that of {name!r} is {share:g}"
                )
        shares = tuple(float(target.get(group, 0.0)) for group in self.groups)
        if not abs(sum(shares) - 1) <= 1e-6:
            raise InputError(f"target shares must sum to 1; these sum to {sum(shares):g}")
        return replace(self, target=shares)


def parse_target(text: str, task: Task) -> Task:
    """The task with the target of ``--target``.

    Args:
        text: ``"uniform"`` or ``"female=0.5,male=0.5"``; a group left out gets 0.
        task: Names the groups.
    Raises:
        InputError: If a name isn't a group, a share isn't a number, or they don't sum to 1.
    """
    if text == "uniform":
        return task
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise InputError(
                f'--target must be uniform or "{task.groups[0]}=0.5,…"; seen {text!r}'
            )
        if name in shares:
            raise InputError(f"--target gives {name!r} twice; give it once")
        try:
            shares[name] = float(value)
        except ValueError:
            shares[name] = math.nan
        if not math.isfinite(shares[name]):
            raise InputError(f"--target share of {name!r} must be a number; seen {value!r}")
    return task.with_target(shares)


@dataclass(frozen=True, eq=False)
class Control:
    """A variable that splits the images and isn't compared.

    Attributes:
        name: What it is called.
        levels: Its levels, in order.
        index: (N,) level of each image; None where a judge reads it.
    """

    name: str
    levels: tuple[str, ...]
    index: NDArray[np.int64] | None = None
