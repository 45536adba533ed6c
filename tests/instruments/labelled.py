"""A small labelled data set for tests of judges, and a reader of it without a network."""

import hashlib
from types import MappingProxyType

import numpy as np

from fairbench.core.prompts import Phrase
from fairbench.core.specs import DatasetCard, InstrumentNames, TaskSpec
from fairbench.core.task import Prompt
from fairbench.datasets.base import ArrayImages, Dataset
from fairbench.instruments.class_readers import Classes

LEVELS = {"gender": ("female", "male"), "age": ("young", "old"), "hat": ("yes", "no")}


def drawn(count, seed, side=24):
    """Images whose red says the gender, green the age in years, blue the hat."""
    rng = np.random.default_rng(seed)
    gender, hat = rng.permutation(np.arange(count) % 2), rng.permutation(np.arange(count) % 2)
    years = rng.permutation(np.arange(count) * 80 // count)
    images = np.empty((count, side, side, 3), np.uint8)
    images[..., 0] = np.where(gender == 0, 40, 200)[:, None, None]
    images[..., 1] = years[:, None, None] * 3
    images[..., 2] = np.where(hat == 0, 220, 30)[:, None, None]
    images[:, ::3] //= 2
    labels = {"gender": gender, "age": (years >= 47).astype(int), "hat": hat}
    return ArrayImages(images, {name: found.astype(np.uint8) for name, found in labels.items()})


class Labelled(Dataset):
    """Takes its judge split, and the names of its judges, from the test."""

    card = DatasetCard(
        name="labelled",
        title="squares that stand for people",
        licence="CC0-1.0",
        may_publish_images=True,
        attributes=LEVELS,
        sensitive=("gender", "age", "hat"),
        said={"hat": {"yes": Phrase("with a hat", True), "no": Phrase("without a hat", True)}},
    )
    subjects = (Prompt("person", {}, "a photo of the face of {}"),)
    tasks = (
        TaskSpec("gender", ("gender",), subjects),
        TaskSpec("age", ("age",), subjects),
        TaskSpec("hat", ("hat",), subjects),
        TaskSpec("gender_age", ("gender", "age"), subjects),
    )

    def __init__(self, judge=120, names=None):
        self.judge = None if judge is None else drawn(judge, 3)
        self.names = names or InstrumentNames(())
        self.reads = 0

    def split(self, role):
        self.reads += role == "judge"
        return {"judge": self.judge, "evaluation": drawn(80, 4)}.get(role)

    def data_sha256(self):
        count = 0 if self.judge is None else len(self.judge)
        return hashlib.sha256(f"labelled, {count}".encode()).hexdigest()

    def instruments(self):
        return self.names


class Reader:
    """Reads gender and age off the colours, as often right and as sure as the test says."""

    kind, dtype, preprocessing = "judge", "float32", "mean colours"
    weights_sha256 = hashlib.sha256(b"no weights").hexdigest()
    classes = MappingProxyType(
        {
            # Not in the data set's order.
            "gender": Classes(("male", "female")),
            "age": Classes(tuple(map(str, range(81))), tuple(range(81))),
        }
    )
    outputs = MappingProxyType(dict.fromkeys(classes, np.float32))

    def __init__(self, name="reader", right=1.0, sure=0.98):
        self.name, self.right, self.sure = name, right, sure
        self.calls = 0

    def __call__(self, images):
        self.calls += len(images)
        colours = images[:, 1, 1].astype(int)
        male = colours[:, 0] > 100
        # Wrong on those whose row of colours says so: the same whatever comes with them.
        wrong = (colours @ [31, 17, 7]) % 100 >= 100 * self.right
        chance = np.where(male != wrong, self.sure, 1 - self.sure)
        ages = np.eye(81)[np.clip(colours[:, 1] // 3, 0, 80)]
        return {
            "gender": np.stack([chance, 1 - chance], 1).astype(np.float32),
            "age": ages.astype(np.float32),
        }
