"""A second, tiny data set that lives in the tests alone: sheets of paper with a mark.

Other attributes than the embedded one has, one of three levels; 20 pixels; one judge; no validity
check, no training set, no backbone; phrases that aren't the level's name.
"""

import hashlib
from types import MappingProxyType

import numpy as np

from fairbench.core.prompts import Phrase
from fairbench.core.specs import DatasetCard, InstrumentNames, InstrumentSpec, TaskSpec
from fairbench.core.task import Prompt
from fairbench.datasets.base import ArrayImages, Dataset

LEVELS = {
    "mark": ("disc", "bar", "none"),
    "ink": ("pale", "dark"),
    "paper": ("white", "grey"),
}
SIDE = 20
EACH = 20  # images of each of the 12 cells


def drawn(seed):
    """EACH images of every cell, in random order."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(np.arange(12 * EACH) % 12)
    mark, ink, paper = np.unravel_index(cells, (3, 2, 2))
    images = np.where(paper == 0, 235, 150)[:, None, None, None] * np.ones((SIDE, SIDE, 3))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    shapes = [
        (rows - 9.5) ** 2 + (columns - 9.5) ** 2 < 30,
        abs(rows - 9.5) < 3,
        np.zeros((SIDE, SIDE), bool),
    ]
    for i in range(len(cells)):
        images[i][shapes[mark[i]]] = (110, 10)[ink[i]]
        images[i][:2] = (110, 10)[ink[i]]  # a line at the top shows the ink without a mark, too
    images = np.clip(images + rng.normal(0, 6, images.shape), 0, 255).astype(np.uint8)
    labels = {"mark": mark, "ink": ink, "paper": paper}
    return ArrayImages(images, {name: found.astype(np.uint8) for name, found in labels.items()})


class Sheets(Dataset):
    card = DatasetCard(
        name="sheets",
        title="sheets of paper with a mark on them",
        licence="CC0-1.0",
        may_publish_images=False,
        attributes=LEVELS,
        sensitive=("mark", "ink"),
        said={
            "mark": {
                "disc": Phrase("with a round spot", after=True),
                "bar": Phrase("with a stroke", after=True),
                "none": Phrase("without any mark", after=True),
            },
            "ink": {"pale": Phrase("faintly printed"), "dark": Phrase("boldly printed")},
        },
    )
    subjects = tuple(
        Prompt(f"{paper} sheet", {"paper": paper}, "{} on a desk") for paper in LEVELS["paper"]
    )
    tasks = (
        TaskSpec("mark", ("mark",), subjects[:1]),
        TaskSpec("mark_ink", ("mark", "ink"), subjects[:1]),
        # Its name says nothing about how it is ranked.
        TaskSpec("ink", ("ink",), subjects, per_prompt=True),
    )

    def split(self, role):
        return {"evaluation": drawn(1), "method_reference": drawn(2)}.get(role)

    def data_sha256(self):
        return hashlib.sha256(b"sheets, version 1").hexdigest()

    def instruments(self):
        return InstrumentNames(("sheets/judge",), ("sheets/encoder",), None)


DATASET = Sheets()


def _planes(images):
    """(N, 3, 3) mean brightness of nine parts, of images of any size."""
    grey = images.astype(np.float32).mean(3)
    parts = [np.array_split(band, 3, axis=2) for band in np.array_split(grey, 3, axis=1)]
    return np.stack([[cell.mean((1, 2)) for cell in row] for row in parts]).transpose(2, 0, 1)


class Judge:
    name, kind, dtype = "only", "judge", "float32"
    weights_sha256 = hashlib.sha256(b"no weights").hexdigest()
    preprocessing = "mean brightness of nine parts"
    attributes = LEVELS
    outputs = MappingProxyType(dict.fromkeys(LEVELS, np.float32))
    confusion = MappingProxyType(
        {
            "mark": np.array([[48, 1, 1], [1, 48, 1], [1, 1, 48]]),
            "ink": np.array([[74, 1], [2, 73]]),
            "paper": np.array([[75, 0], [0, 75]]),
            "mark/ink": 22 * np.eye(6, dtype=int) + 1,
        }
    )

    def __call__(self, images):
        planes = _planes(images)
        paper = planes[:, 2].mean(1)
        middle, side = paper - planes[:, 1, 1], paper - planes[:, 1, 0]
        scores = {
            "mark": np.stack([middle - 2 * side, side, 25 - middle], 1) / 10,
            "ink": np.stack([0 * paper, (paper - planes[:, 0].mean(1)) - 40], 1) / 10,
            "paper": np.stack([paper - 190, 190 - paper], 1) / 10,
        }
        found = {}
        for name, logits in scores.items():
            table = np.exp(np.clip(logits, -20, 20))
            found[name] = (table / table.sum(1, keepdims=True)).astype(np.float32)
        return found


class Encoder:
    name, kind, dtype, dimension = "sheets", "encoder", "float32", 9
    weights_sha256 = hashlib.sha256(b"no weights either").hexdigest()
    preprocessing = "mean brightness of nine parts, over 64"
    outputs = MappingProxyType({"features": np.float32})

    def __call__(self, images):
        return {"features": (_planes(images).reshape(-1, 9) / 64).astype(np.float32)}


INSTRUMENTS = (
    InstrumentSpec("sheets/judge", "judge", "reads marks", lambda **options: Judge()),
    InstrumentSpec("sheets/encoder", "encoder", "nine numbers", lambda **options: Encoder()),
)
