"""Which group each measured image is in, for every crossing of attributes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.measurements import Measurements
from fairbench.core.task import Task
from fairbench.metrics.clusters import GroupEffects, group_design_effects
from fairbench.metrics.counting import count_groups

__all__ = [
    "GIVEN_BATCHES",
    "NO_CHECK",
    "NO_VALID",
    "WHOLE_BATCHES",
    "WORTH_BATCHES",
    "Reading",
    "Sample",
    "crossing",
    "crossing_groups",
    "crossings",
    "target_of",
]


NO_VALID = "no valid image"
"""How every reason begins that is due to images that aren't valid."""

NO_CHECK = "this data set has no validity check"

GIVEN_BATCHES = "given what each batch of dependent images drew"
WORTH_BATCHES = "as of independent images worth the batches"
WHOLE_BATCHES = "of whole batches"
"""What an interval says of coupled images, where their batches can't be told apart and can."""


@dataclass(frozen=True)
class Sample:
    """N measured images and what was asked for.

    Attributes:
        measured: What the instruments said.
        prompt_index: (N,) index into the task's prompts.
        requested: (N,) index of the group asked for, or None.
        batch_id: (N,) equal for images that depend on each other.
    """

    measured: Measurements
    prompt_index: NDArray[np.int64]
    requested: NDArray[np.int64] | None
    batch_id: NDArray[np.int64]


def crossing(
    labels: Mapping[str, NDArray[np.integer[Any]]],
    chosen: Sequence[str],
    levels: Mapping[str, Sequence[str]],
) -> NDArray[np.int64]:
    """(N,) index of each image's cell in the product of the chosen attributes, row-major."""
    shape = [len(levels[name]) for name in chosen]
    columns = tuple(np.asarray(labels[name], dtype=np.int64) for name in chosen)
    return np.asarray(np.ravel_multi_index(columns, shape), dtype=np.int64)


def crossing_groups(chosen: Sequence[str], levels: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of the cells of a crossing, such as ``"female/asian"``, in row-major order."""
    return ["/".join(cell) for cell in itertools.product(*(levels[name] for name in chosen))]


def target_of(
    task: Task, chosen: Sequence[str], levels: Mapping[str, Sequence[str]]
) -> NDArray[np.float64]:
    """Wanted shares of a crossing: the task's, its marginals, else uniform; row-major, sum 1."""
    asked = list(task.attributes)
    joint = np.array(task.target).reshape([len(values) for values in task.attributes.values()])
    sizes = [len(levels[name]) for name in chosen]
    kept = [name for name in asked if name in chosen]
    if not kept:
        return np.full(math.prod(sizes), 1 / math.prod(sizes))
    marginal = joint.sum(axis=tuple(i for i, name in enumerate(asked) if name not in kept))
    order = [name for name in chosen if name in kept]
    marginal = marginal.transpose([kept.index(name) for name in order])
    for axis, name in enumerate(chosen):
        if name not in kept:  # an attribute that the task leaves open: evenly spread
            marginal = np.expand_dims(marginal, axis).repeat(sizes[axis], axis) / sizes[axis]
    return np.asarray(marginal, dtype=np.float64).ravel()


@dataclass(frozen=True, eq=False)
class Reading:
    """A sample as one judge reads it.

    Attributes:
        sample: The images.
        judge: Name of the judge.
        levels: Every attribute that the judge reads -> its levels.
        task: Prompts, groups, target.
    """

    sample: Sample
    judge: str
    levels: Mapping[str, tuple[str, ...]]
    task: Task

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """(N,) whether each image is valid; without a validity check every image is."""
        return self.sample.measured.valid

    @cached_property
    def checked(self) -> bool:
        """Whether anything says which images are valid."""
        return self.sample.measured.validity_checked

    @cached_property
    def n(self) -> int:
        """Valid images."""
        return int(self.valid.sum())

    @cached_property
    def probabilities(self) -> Mapping[str, NDArray[np.float32]]:
        """Attribute -> (N, K)."""
        return self.sample.measured.probabilities[self.judge]

    @cached_property
    def labels(self) -> Mapping[str, NDArray[np.int64]]:
        """Attribute -> (N,) likeliest level of every image, valid or not."""
        return {name: self.probabilities[name].argmax(1) for name in self.levels}

    @cached_property
    def prompts(self) -> NDArray[np.int64]:
        """(n,) prompt of each valid image."""
        return self.sample.prompt_index[self.valid]

    @cached_property
    def batches(self) -> NDArray[np.int64]:
        """(n,) batch of each valid image."""
        return self.sample.batch_id[self.valid]

    @cached_property
    def coupled(self) -> bool:
        """Whether any images depend on each other."""
        batches = self.sample.batch_id
        return len(np.unique(batches)) < len(batches)

    @cached_property
    def all_batches(self) -> NDArray[np.int64] | None:
        """(N,) batch of every image; None if no two depend on each other, or if all do."""
        batches = self.sample.batch_id
        return batches if self.coupled and len(np.unique(batches)) > 1 else None

    @cached_property
    def given_batches(self) -> str:
        """What an interval over whole batches says of them; empty if images are independent."""
        if not self.coupled:
            return ""
        return f", {GIVEN_BATCHES if self.all_batches is None else WHOLE_BATCHES}"

    def effects(
        self,
        labels: NDArray[np.integer[Any]],
        num_groups: int,
        within: NDArray[np.bool_] | None = None,
        *,
        every: bool = False,
    ) -> GroupEffects | None:
        """What batches do to the variance of shares; None if nothing, or if it can't be seen.

        Args:
            labels: Group of each image that counts.
            num_groups: K.
            within: Which of the valid images those are, (n,); None for all of them.
            every: Whether `within` picks among all images instead, (N,).
        """
        if not self.coupled:
            return None
        batches = self.sample.batch_id if every else self.batches
        prompts = self.sample.prompt_index if every else self.prompts
        if within is not None:
            batches, prompts = batches[within], prompts[within]
        return group_design_effects(labels, batches, num_groups, strata=prompts)

    def index(self, chosen: Sequence[str]) -> NDArray[np.int64]:
        """(N,) cell of every image in a crossing."""
        return crossing(self.labels, chosen, self.levels)

    def groups(self, chosen: Sequence[str]) -> list[str]:
        """Names of the cells of a crossing."""
        return crossing_groups(chosen, self.levels)

    def target(self, chosen: Sequence[str]) -> NDArray[np.float64]:
        """Wanted shares of a crossing."""
        return target_of(self.task, chosen, self.levels)

    def counts(
        self, chosen: Sequence[str], within: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """(K,) valid images of each cell of a crossing, zeros included.

        `within` picks among the valid images, (n,).
        """
        index = self.index(chosen)[self.valid]
        return count_groups(index if within is None else index[within], len(self.groups(chosen)))

    def counts_by_prompt(self, chosen: Sequence[str]) -> NDArray[np.int64]:
        """(P, K) valid images of each cell by prompt; rows may be all 0."""
        size = len(self.groups(chosen))
        flat = self.prompts * size + self.index(chosen)[self.valid]
        count = np.bincount(flat, minlength=len(self.task.prompts) * size)
        return count.reshape(-1, size).astype(np.int64)

    def soft(self, chosen: Sequence[str]) -> NDArray[np.float64]:
        """(n, K) probabilities of the cells of a crossing, attributes read independently."""
        table = np.ones((self.n, 1))
        for name in chosen:
            more = self.probabilities[name][self.valid].astype(np.float64)
            table = (table[:, :, None] * more[:, None, :]).reshape(self.n, -1)
        return np.asarray(table / table.sum(axis=1, keepdims=True), dtype=np.float64)

    def right_subject(self) -> NDArray[np.bool_] | None:
        """(n,) whether each valid image shows what its prompt asks for; None without prompts."""
        if not any(prompt.stratum for prompt in self.task.prompts):
            return None
        right = np.ones(self.n, dtype=bool)
        for p, prompt in enumerate(self.task.prompts):
            for name, level in prompt.stratum.items():
                wanted = self.levels[name].index(level)
                right &= (self.prompts != p) | (self.labels[name][self.valid] == wanted)
        return right


def crossings(sensitive: Sequence[str]) -> list[tuple[str, ...]]:
    """Each sensitive attribute, then, of several, every crossing; the full one is last."""
    return [
        chosen
        for order in range(1, len(sensitive) + 1)
        for chosen in itertools.combinations(sensitive, order)
    ]
