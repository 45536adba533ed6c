"""A table by group in the shape that users of fairlearn's MetricFrame know.

It differs where a group has no images. There the aggregates of MetricFrame skip the group, so one
that vanished improves them; here it counts as 0 where being represented is what is measured, and
otherwise makes the aggregate NaN, not measurable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import Array
from fairbench.metrics.intersectional import joint_counts, joint_target

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GroupTable", "by_group_table"]

Comparison = Literal["between_groups", "to_overall"]


@dataclass(frozen=True, eq=False)
class GroupTable:
    """Columns by joint group, with the aggregates of fairlearn's MetricFrame.

    Attributes:
        by_group: One row a cell of the full product of levels, control attributes first; columns
            `count`, `representation` (share over target) and those that the caller gave.
        overall: The same columns over all images: a Series, or with control attributes a
            DataFrame with one row a stratum. `representation` is 1 overall.
        control: Control attributes, in the order of the index.
    """

    by_group: pd.DataFrame
    overall: pd.Series[float] | pd.DataFrame
    control: tuple[str, ...] = ()

    def group_min(self) -> pd.Series[float] | pd.DataFrame:
        """Smallest value of any group by column, within strata; NaN if a group is."""
        return self._aggregate(self.by_group, "min")

    def group_max(self) -> pd.Series[float] | pd.DataFrame:
        """Largest value of any group by column, within strata; NaN if a group is."""
        return self._aggregate(self.by_group, "max")

    def difference(self, method: Comparison = "between_groups") -> pd.Series[float] | pd.DataFrame:
        """Largest absolute difference, between groups or of a group from the overall value.

        Args:
            method: Which of the two.

        Returns:
            By column, within strata; 0 or more; lower is better; NaN if a group is.

        Raises:
            ContractError: If the method is neither.
        """
        if _is_to_overall(method):
            return self._aggregate((self.by_group - self._overall_rows()).abs(), "max")
        return self.group_max() - self.group_min()

    def ratio(self, method: Comparison = "between_groups") -> pd.Series[float] | pd.DataFrame:
        """Smallest ratio, between groups or of a group and the overall value.

        Args:
            method: Which of the two.

        Returns:
            By column, within strata; in [0, 1], 0 if a group is at 0; higher is better. NaN if a
            group is, if all values are 0, or if one is negative.

        Raises:
            ContractError: If the method is neither.
        """
        if _is_to_overall(method):
            quotients = self.by_group / self._overall_rows()
            folded = quotients.where(~(quotients > 1), 1 / quotients)
            return self._aggregate(folded.where(quotients >= 0), "min")
        low = self._aggregate(self.by_group.where(self.by_group >= 0), "min")
        return low / self.group_max()

    def _aggregate(
        self, table: pd.DataFrame, how: Literal["min", "max"]
    ) -> pd.Series[float] | pd.DataFrame:
        def reduce(rows: pd.DataFrame) -> pd.Series[float]:
            # pandas skips NaN unless told otherwise, and that would reward a vanished group.
            found = rows.min(skipna=False) if how == "min" else rows.max(skipna=False)
            return found.astype(float)

        if not self.control:
            return reduce(table)
        strata = table.groupby(level=list(self.control), sort=False)
        return strata.apply(reduce)

    def _overall_rows(self) -> pd.DataFrame:
        """The overall values repeated for every row of `by_group`."""
        import pandas as pd

        repeats = len(self.by_group)
        rows = np.atleast_2d(self.overall.to_numpy())
        spread = np.repeat(rows, repeats // len(rows), axis=0)
        return pd.DataFrame(spread, index=self.by_group.index, columns=self.by_group.columns)


def by_group_table(
    labels: ArrayLike,
    levels: Mapping[str, Sequence[str]],
    *,
    target: ArrayLike | None = None,
    values: Mapping[str, ArrayLike] | None = None,
    statistic: Callable[[Array], float] = np.mean,
    control: Sequence[str] = (),
) -> GroupTable:
    """Counts, representation and any per-image values by joint group.

    Args:
        labels: Level index of each image and attribute, (N, A) integers.
        levels: Attribute -> names of its declared levels, in order.
        target: Wanted shares of the joint cells, row-major (cells,) or one axis an attribute, all
            above 0; None for uniform. Within a stratum it is rescaled to sum to 1.
        values: Column -> one number an image, (N,) finite floats, such as a similarity.
        statistic: Turns the values of a group into its number; the mean by default.
        control: Attributes that only split the images into strata and aren't compared.

    Returns:
        The table. A cell without images has count and representation 0, and NaN in the columns of
        `values`; a stratum without images has no representation either.

    Raises:
        ContractError: If labels, target or values don't fit, a control attribute is unknown or no
            attribute is left to compare.

    Source: ``docs/metrics.md``, "Representation"; the interface follows fairlearn 0.15.
    """
    import pandas as pd

    counts = joint_counts(labels, levels)
    wanted = joint_target(target, counts.shape)
    if wanted.min() <= 0:
        raise ContractError("a cell with target 0 has no representation; leave its level out")
    order = _axis_order(tuple(levels), control)
    names = [tuple(levels)[axis] for axis in order]
    num_strata = int(np.prod([counts.shape[axis] for axis in order[: len(control)]]))
    by_stratum = counts.transpose(order).reshape(num_strata, -1)
    aims = wanted.transpose(order).reshape(num_strata, -1)
    aims = aims / aims.sum(axis=1, keepdims=True)
    sizes = by_stratum.sum(axis=1)
    with np.errstate(invalid="ignore"):
        found = by_stratum / sizes[:, None] / aims
    table = {"count": by_stratum.ravel().astype(float), "representation": found.ravel()}
    overall = {"count": sizes.astype(float), "representation": np.where(sizes > 0, 1.0, np.nan)}
    ordered = np.asarray(labels, dtype=np.int64)[:, order]
    shape = tuple(counts.shape[axis] for axis in order)
    cells = np.ravel_multi_index(tuple(ordered.T), shape)
    for column, numbers in (values or {}).items():
        if column in table:
            raise ContractError(f"the column {column!r} is taken; give the values another name")
        data = _check_values(column, numbers, len(cells))
        table[column] = _by_place(data, cells, counts.size, statistic)
        strata = cells // by_stratum.shape[1]
        overall[column] = _by_place(data, strata, num_strata, statistic)
    rows = pd.DataFrame(table, index=_index([levels[name] for name in names], names))
    kept = tuple(names[: len(control)])
    if not kept:
        total = pd.Series({column: float(numbers[0]) for column, numbers in overall.items()})
        return GroupTable(rows, total)
    strata_index = _index([levels[name] for name in kept], list(kept))
    return GroupTable(rows, pd.DataFrame(overall, index=strata_index), kept)


def _by_place(
    data: Array, places: NDArray[np.int64], size: int, statistic: Callable[[Array], float]
) -> Array:
    """The statistic of the values at each place, NaN where there are none, (size,)."""
    order = np.argsort(places, kind="stable")
    ends = np.cumsum(np.bincount(places, minlength=size))
    parts = np.split(data[order], ends[:-1])
    return np.array([float(statistic(part)) if part.size else np.nan for part in parts])


def _index(levels: Sequence[Sequence[str]], names: list[str]) -> pd.Index:
    import pandas as pd

    if len(names) == 1:
        return pd.Index(list(levels[0]), name=names[0])
    return pd.MultiIndex.from_tuples(list(product(*levels)), names=names)


def _axis_order(attributes: tuple[str, ...], control: Sequence[str]) -> tuple[int, ...]:
    """Axes of the joint counts with the control attributes first."""
    unknown = [name for name in control if name not in attributes]
    if isinstance(control, str) or unknown or len(set(control)) != len(control):
        raise ContractError(f"control must name some of {list(attributes)}; seen {control!r}")
    if len(control) == len(attributes):
        raise ContractError("control holds every attribute; leave one to compare")
    first = [attributes.index(name) for name in control]
    return (*first, *(axis for axis in range(len(attributes)) if axis not in first))


def _check_values(column: str, numbers: ArrayLike, num_images: int) -> Array:
    data = np.asarray(numbers, dtype=np.float64)
    if data.shape != (num_images,) or not np.isfinite(data).all():
        raise ContractError(
            f"values of {column!r} must be {num_images} finite numbers; seen shape {data.shape}"
        )
    return data


def _is_to_overall(method: str) -> bool:
    if method not in ("between_groups", "to_overall"):
        raise ContractError(f"method must be between_groups or to_overall; seen {method!r}")
    return method == "to_overall"
