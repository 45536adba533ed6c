"""Bias profiles: declared shares of a crossing of attributes, drawn out of a pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError, InputError, unknown_name

__all__ = ["Profile", "equal_draw", "parse_profile"]

Labels = Mapping[str, NDArray[np.uint8]]

EXACT = 1e-9
"""By how much the sum of a profile's shares may differ from 1."""


@dataclass(frozen=True)
class Profile:
    """Shares of the cells of a crossing of attributes in a training set.

    Attributes:
        name: Short name.
        shares: One axis an attribute, in the order of its levels; sums to 1.
        attributes: Attribute -> levels, in the order of the axes.
    """

    name: str
    shares: NDArray[np.float64]
    attributes: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        expected = tuple(len(levels) for levels in self.attributes.values())
        if self.shares.shape != expected:
            raise ContractError(
                f"shares must have one entry a cell, shape {expected}; seen {self.shares.shape}"
            )
        if np.any(self.shares < 0) or not abs(float(self.shares.sum()) - 1) <= EXACT:
            raise ContractError(
                f"shares must be non-negative and sum to 1; their sum is {self.shares.sum()}"
            )

    @property
    def text(self) -> str:
        """As it is typed, and as `parse_profile` reads it; groups of share 0 are left out."""
        groups = ["/".join(cell) for cell in product(*self.attributes.values())]
        shares = zip(groups, self.shares.ravel().tolist(), strict=True)
        told = ",".join(f"{group}={share!r}" for group, share in shares if share)
        return f"{'/'.join(self.attributes)}:{told}"

    @property
    def cells(self) -> int:
        """Number of cells."""
        return int(self.shares.size)

    def counts(self, n: int) -> NDArray[np.int64]:
        """(cells,) images a cell for a set of `n`, by largest remainder; sums to `n`."""
        exact = self.shares.ravel() * n
        counts = np.floor(exact).astype(np.int64)
        short = n - int(counts.sum())
        # Stable order: equal remainders go to the earlier cell, on every machine.
        counts[np.argsort(-(exact - counts).round(9), kind="stable")[:short]] += 1
        return counts

    def marginal(self, attribute: str) -> dict[str, float]:
        """Level -> share of one of the attributes."""
        axis = list(self.attributes).index(attribute)
        others = tuple(i for i in range(self.shares.ndim) if i != axis)
        values = self.shares.sum(axis=others).tolist()
        return dict(zip(self.attributes[attribute], values, strict=True))

    def cell_index(self, labels: Labels) -> NDArray[np.int64]:
        """(N,) flat index of each image's cell."""
        return np.ravel_multi_index(
            tuple(labels[name] for name in self.attributes), self.shares.shape
        )

    def largest(self, labels: Labels, most: int) -> int:
        """Images of the largest set with these shares that a pool holds, at most `most`."""
        held = np.bincount(self.cell_index(labels), minlength=self.cells)
        asked = self.shares.ravel() > 0
        n = min(most, int((held[asked] / self.shares.ravel()[asked]).min()))
        while n and (self.counts(n) > held).any():  # rounding up may ask for one more
            n -= 1
        return n

    def draw(self, labels: Labels, n: int, seed: int) -> NDArray[np.int64]:
        """Indices of `n` images with these shares, drawn without replacement.

        Args:
            labels: Attribute -> (N,) labels of the images to draw from.
            n: Images wanted.
            seed: Which ones; the same seed draws the same images everywhere.
        Returns:
            (n,) indices in random order.
        Raises:
            ContractError: If a cell holds fewer images than the profile asks for.
        """
        cell = self.cell_index(labels)
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0xB1A5]))
        picked: list[Any] = []
        for index, count in enumerate(self.counts(n).tolist()):
            members = np.flatnonzero(cell == index)
            if len(members) < count:
                raise ContractError(
                    f"bias profile {self.name!r} needs {count} images of cell {index} for a set "
                    f"of {n}, the split has {len(members)}; ask for fewer images"
                )
            picked.append(rng.permutation(members)[:count])
        return rng.permutation(np.concatenate(picked))


def parse_profile(text: str, attributes: Mapping[str, tuple[str, ...]]) -> Profile:
    """A profile as it is typed: ``gender:female=0.9,male=0.1``.

    Args:
        text: Attributes, a colon, and a share for each group; ``/`` crosses attributes and their
            levels, as in ``gender/age:female/young=0.6,male/old=0.4``; a group left out gets 0.
        attributes: Attribute -> levels of the data set.
    Raises:
        InputError: If a name is unknown, or shares aren't numbers that sum to 1.
    """
    shape = "gender:female=0.9,male=0.1"
    named, colon, rest = text.partition(":")
    if not colon or not rest.strip():
        raise InputError(f"expected a bias such as {shape}; seen {text!r}")
    names = [name.strip() for name in named.split("/")]
    for name in names:
        if name not in attributes:
            raise unknown_name("attribute", name, attributes)
    if len(set(names)) < len(names):
        raise InputError(f"bias {text!r} names an attribute twice; name it once")
    levels = {name: attributes[name] for name in names}
    groups = ["/".join(cell) for cell in product(*levels.values())]
    shares: dict[str, float] = {}
    for item in rest.split(","):
        group, equals, value = (part.strip() for part in item.partition("="))
        if group not in groups:
            raise unknown_name("group", group, groups)
        if not equals or group in shares:
            raise InputError(f"expected one share for {group!r}, as in {shape}; seen {text!r}")
        try:
            shares[group] = float(value)
        except ValueError:
            raise InputError(f"the share of {group!r} must be a number; seen {value!r}") from None
    table = np.array([shares.get(group, 0.0) for group in groups])
    if not (np.all(table >= 0) and abs(float(table.sum()) - 1) <= 1e-6):
        raise InputError(
            f"the shares of a bias must be 0 or more and sum to 1; seen {text!r}, whose sum is "
            f"{table.sum():g}"
        )
    if abs(float(table.sum()) - 1) > EXACT:  # else what is typed is meant to the last digit
        table = table / table.sum()
    return Profile(text, table.reshape([len(one) for one in levels.values()]), levels)


def equal_draw(cells: NDArray[np.int64], count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Indices of equally many images of each cell, the cells taken in turn.

    Any leading part is balanced as well as its length allows. Each cell gives `most` images, or
    half of what the smallest cell holds where that is less, so that as many stay for others.

    Args:
        cells: (N,) cell of each image.
        count: Number of cells.
        most: Images a cell at most.
        seed: Which ones; the same seed draws the same images everywhere.
    """
    held = np.bincount(cells, minlength=count)
    each = min(most, int(held.min()) // 2)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xE9A1]))
    drawn = [rng.permutation(np.flatnonzero(cells == cell))[:each] for cell in range(count)]
    return np.stack(drawn, axis=1).ravel()
