"""What every data set offers, and data sets by name.

A data set is one public file of ``fairbench.datasets`` that defines ``DATASET``, or an entry point
of another package in the group of that name.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError, InputError, UnfitError, unknown_name
from fairbench.core.progress import Reporter
from fairbench.core.registry import Registry
from fairbench.core.specs import BackboneSpec, DatasetCard, InstrumentNames, TaskSpec
from fairbench.core.task import Prompt, Task
from fairbench.datasets.parts.profiles import Profile
from fairbench.storage.readings import ImageList

__all__ = [
    "DATASETS",
    "DATA_ROOT",
    "ArrayImages",
    "Composition",
    "Dataset",
    "ImageSource",
    "Role",
    "Shares",
    "default_dataset",
    "get_dataset",
    "matches",
]

Role = Literal["pool", "method_reference", "judge", "evaluation"]
"""Who may see a split: trainings, methods with a reference set, judges, quality metrics."""

Composition = Literal["biased", "balanced"]


class ImageSource(Protocol):
    """Labelled images that are read when they are asked for."""

    @property
    def labels(self) -> Mapping[str, NDArray[np.uint8]]:
        """Attribute -> (N,) indices into its levels."""

    @property
    def listing(self) -> ImageList:
        """Which images these are, by the hash of each; computed once."""

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[Any]) -> ImageSource:
        """The images at `rows`, (n,) integers or (N,) booleans, in that order."""

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """(n, H, W, 3) uint8 arrays of at most `size` images, in order."""


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images that lie in memory.

    Attributes:
        images: (N, H, W, 3) uint8.
        labels: Attribute -> (N,) uint8 indices into its levels.
    """

    images: NDArray[np.uint8]
    labels: Mapping[str, NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def listing(self) -> ImageList:
        """Which images these are; hashed once."""
        return ImageList.of(self.images)

    def take(self, rows: NDArray[Any]) -> ArrayImages:
        """The images at `rows`, (n,) integers or (N,) booleans, in that order."""
        taken = ArrayImages(self.images[rows], {k: v[rows] for k, v in self.labels.items()})
        if "listing" in vars(self):  # hashed already
            vars(taken)["listing"] = self.listing.take(np.arange(len(self))[rows])
        return taken

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """(n, H, W, 3) uint8 arrays of at most `size` images, in order."""
        for start in range(0, len(self.images), size):
            yield self.images[start : start + size]


@dataclass(frozen=True)
class Shares:
    """Shares of the cells of a crossing of attributes.

    Attributes:
        attributes: The attributes, in the order of the table's axes.
        table: One axis an attribute, in the order of its levels; sums to 1.
    """

    attributes: tuple[str, ...]
    table: NDArray[np.float64]

    def given(
        self,
        stratum: Mapping[str, str],
        chosen: Sequence[str],
        levels: Mapping[str, Sequence[str]],
    ) -> NDArray[np.float64]:
        """(K,) shares of the crossing of `chosen`, row-major, among images of a stratum.

        Raises:
            ContractError: If the table lacks an attribute, or no image is of that stratum.
        """
        unknown = [name for name in (*stratum, *chosen) if name not in self.attributes]
        if unknown:
            raise ContractError(f"expected shares by {', '.join(unknown)} too; seen none")
        table, axes = self.table, list(self.attributes)
        for name, level in stratum.items():
            table = np.take(table, [levels[name].index(level)], axis=axes.index(name))
        gone = tuple(axis for axis, name in enumerate(axes) if name not in chosen)
        kept = [name for name in axes if name in chosen]
        crossed = table.sum(axis=gone).transpose([kept.index(name) for name in chosen])
        total = float(crossed.sum())
        if total <= 0:
            raise ContractError(f"expected a share of stratum {dict(stratum)}; seen 0")
        return np.asarray(crossed.ravel() / total, dtype=np.float64)


class Dataset(ABC):
    """Images with known attributes, the questions that can be asked of them, and backbones.

    What a data set doesn't have is None, and whatever needs it says so.

    Attributes:
        card: What is known before a file is opened.
        tasks: The first is the default.
        subjects: Neutral prompts, without attribute words; what its images show.
        backbones: Generators to be named on the command line: the first is the default.
        default_profile: Which of `profiles` is the composition ``"biased"``; None: none is.
    """

    card: DatasetCard
    tasks: tuple[TaskSpec, ...]
    subjects: tuple[Prompt, ...]
    backbones: tuple[BackboneSpec, ...] = ()
    default_profile: str | None = None

    @abstractmethod
    def split(self, role: Role) -> ImageSource | None:
        """The images of one role; None if it has none. No image is in two roles."""

    @abstractmethod
    def instruments(self) -> InstrumentNames:
        """What measures images of this kind, by name; `fairbench.instruments` finds them."""

    @abstractmethod
    def data_sha256(self) -> str:
        """Hash of all data that a record may depend on; cheap to compute."""

    def training_set(self, composition: Composition) -> ImageSource | None:
        """Images for a method to train on; None if the data set has none.

        Args:
            composition: ``"biased"``: by the data set's default bias; ``"balanced"``: as many,
                with every declared cell equally often.
        """
        return None

    def profiles(self) -> Mapping[str, Profile]:
        """Name -> a bias that it declares for training sets drawn from its pool."""
        return {}

    def trained_on(self, backbone: BackboneSpec) -> ImageSource | None:
        """The very images that a backbone was trained on; None if they aren't known."""
        return None

    def training_shares(self, backbone: BackboneSpec) -> Shares | None:
        """Composition of what a backbone was trained on; None if it isn't known."""
        return None

    def files(self) -> tuple[Path, ...]:
        """Every file that comes with the data set and may be damaged."""
        return ()

    # Data sets that lie on the user's disk; those that come with fairbench leave this as it is.

    def at(self, root: Path | None) -> Dataset:
        """The data set with its files below `root`; itself for None.

        Raises:
            InputError: If its files come with it.
        """
        if root is None:
            return self
        raise InputError(
            f"--data-root {root}: the files of {self.name} come with it; leave --data-root out"
        )

    def lacking(self) -> str:
        """What is missing of its files, where it was looked for and what to do; "" if nothing.

        Cheap: no image is opened.
        """
        return ""

    def prepare(self, report: Reporter, *, anew: bool = False) -> None:
        """Check every image and write what later runs read, unless that was done before.

        Args:
            report: Told about progress.
            anew: Check although it was done before.

        Raises:
            InputError: If something is missing or damaged.
        """
        del report, anew  # its files come with it: there is nothing to do

    def notes(self) -> tuple[str, ...]:
        """What preparing found worth saying of its files; one line each."""
        return ()

    def facts(self) -> Mapping[str, Any]:
        """What a record says of its images beside their hash; nothing if they come with it."""
        return {}

    def sized(self, side: int | None) -> Dataset:
        """The data set with images of the size that suits a generator of `side` pixels a side.

        Only a data set that hands out several sizes has a choice; None: its default.
        """
        return self

    def crossed(self, task: str) -> tuple[str, ...]:
        """The attributes whose shares a task measures, and whose cells its references balance."""
        return self.task_spec(task).crossed or self.sensitive

    # What follows from the above.

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.card.name

    @property
    def typed(self) -> str:
        """What a user types after ``--dataset`` to mean it, its folder included."""
        return self.name

    @property
    def attributes(self) -> Mapping[str, tuple[str, ...]]:
        """Attribute -> levels in declared order."""
        return self.card.attributes

    @property
    def sensitive(self) -> tuple[str, ...]:
        """The attributes whose shares a fair generator is asked for."""
        return self.card.sensitive

    def backbone(self, name: str | None) -> BackboneSpec:
        """A backbone of the data set's own by name, the first for None.

        Raises:
            InputError: If there is none of that name, or none at all.
        """
        known = {spec.name: spec for spec in self.backbones}
        if name is None and not known:
            raise InputError(
                f"data set {self.name} brings no backbone; give --backbone a pipeline folder"
            )
        if name is not None and name not in known:
            raise unknown_name("backbone", name, known)
        return self.backbones[0] if name is None else known[name]

    def task_spec(self, name: str | None) -> TaskSpec:
        """A task's description by name, the first for None.

        Raises:
            InputError: If there is no such task.
        """
        known = {spec.name: spec for spec in self.tasks}
        if name is not None and name not in known:
            raise unknown_name("task", name, known)
        return self.tasks[0] if name is None else known[name]

    def task(self, name: str | None, *, conditional: bool) -> Task:
        """A task by name, the first for None, with a uniform target.

        Raises:
            InputError: If there is no such task, or it needs prompts and the backbone takes none.
        """
        spec = self.task_spec(name)
        if spec.per_prompt and not conditional:
            raise UnfitError(
                f"task {spec.name!r} asks prompts and the backbone takes none; choose one of "
                f"{', '.join(self.pooled_tasks())}"
            )
        attributes = {key: self.attributes[key] for key in spec.attributes}
        groups = int(np.prod([len(levels) for levels in attributes.values()]))
        return Task(
            spec.name,
            attributes,
            spec.prompts if conditional else (Prompt(""),),
            (1 / groups,) * groups,
            spec.per_prompt,
            {key: self.card.said[key] for key in spec.attributes if key in self.card.said},
        )

    def pooled_tasks(self) -> list[str]:
        """Names of the tasks that are ranked on all images together."""
        return [spec.name for spec in self.tasks if not spec.per_prompt]


def matches(
    prompt: Prompt,
    labels: Mapping[str, NDArray[np.integer[Any]]],
    attributes: Mapping[str, Sequence[str]],
    count: int,
) -> NDArray[np.bool_]:
    """(count,) which images show what a prompt asks for."""
    matching = np.ones(count, dtype=bool)
    for name, level in prompt.stratum.items():
        matching &= labels[name] == attributes[name].index(level)
    return matching


DATASETS: Registry[Dataset] = Registry("data set", "fairbench.datasets", "DATASET")


DATA_ROOT = "FAIRBENCH_DATA"
"""Environment variable that names the folder which is meant where there is no --data-root."""


def get_dataset(name: str | None, root: Path | None = None) -> Dataset:
    """A data set by name, the default one for None.

    Args:
        name: A name, or the path of a file or folder that declares a data set of the user's.
        root: Folder of its files; None: what ``FAIRBENCH_DATA`` names, for data sets that need
            one.

    Raises:
        InputError: If there is none of that name, or a root is given to one that needs none.
    """
    found = default_dataset() if name is None else _named(name)
    if found is None:
        found, root = _named(USERS_OWN), Path(str(name))
        if found is None:
            raise ContractError(f"expected a data set {USERS_OWN}, seen none")
    if root is not None:
        return found.at(root)
    given = os.environ.get(DATA_ROOT)
    if not given or not found.card.on_disk:
        return found
    return found.at(Path(given).expanduser())


USERS_OWN = "folder"
"""The data set that a file of the user's declares."""


def _named(name: str) -> Dataset | None:
    """A data set by name; None if the name is a path.

    Raises:
        InputError: If it is neither.
    """
    found, broken = DATASETS.entries()
    by_name = {dataset.name: dataset for dataset in found.values()}
    if name in broken:
        raise InputError(broken[name])
    if name in by_name:
        return by_name[name]
    # Python reads no text as this folder.
    if (
        name.strip()
        and Path(name).exists()
        and (Path(name).is_dir() or Path(name).suffix == ".toml")
    ):
        return None
    raise unknown_name("data set", name, by_name)


def default_dataset() -> Dataset:
    """The data set that is meant where none is named.

    Raises:
        ContractError: If no data set says that it is the default.
    """
    found, _ = DATASETS.entries()
    chosen = [dataset for dataset in found.values() if dataset.card.default]
    if not chosen:
        raise ContractError("expected one data set whose card says default; seen none")
    return chosen[0]
