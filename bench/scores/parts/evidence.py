"""Everything that score families may look at: arrays of one run, and what they are compared to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.task import Control, Task
from fairbench.metrics import GroupQuality, group_quality
from fairbench.scores.parts.crossings import Reading, crossing, crossing_groups

if TYPE_CHECKING:
    from fairbench.instruments.faces import Faces, Identities

__all__ = ["GROUP_N", "NEIGHBOURS", "Columns", "Evidence", "FaceEvidence", "Reference"]

Features = NDArray[np.float32]

NEIGHBOURS = 5

GROUP_N = 30
"""Images of each group behind its Fréchet distance and neighbours: the same for every method."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images to compare with: they match the task's prompts.

    Attributes:
        features: Encoder -> (M, D).
        labels: Attribute -> (M,) true levels.
        prompt_index: (M,) the prompt that each image would answer.
        natural: (P, K) shares of the sensitive crossing for each prompt in the data that the
            backbone was trained on, rows sum to 1; None if they aren't known.
        balanced: (B,) rows that are balanced over prompts × sensitive groups; None where all are.
        unbalanced: Why there are no balanced rows; empty where there are.
    """

    features: Mapping[str, Features]
    labels: Mapping[str, NDArray[np.integer[Any]]]
    prompt_index: NDArray[np.int64]
    natural: NDArray[np.float64] | None
    balanced: NDArray[np.int64] | None = None
    unbalanced: str = ""


@dataclass(frozen=True)
class Columns:
    """How the columns of one encoder are called.

    Attributes:
        encoder: In columns such as ``precision_<encoder>``.
        frechet: Its Fréchet distance, such as ``"fid"``.
        kernel: Its kernel distance, such as ``"kid"``.
    """

    encoder: str
    frechet: str
    kernel: str


@dataclass(frozen=True, eq=False)
class FaceEvidence:
    """What the detector and the identity network said of generated, real and training images.

    Attributes:
        looked: (M,) places of the generated images that were looked at.
        faces: What was found in them.
        identities: Of the faces among them; None without an identity network.
        compared: (R,) places, among the reference's images, of the real ones looked at.
        known: Identities of the faces among those.
        trained: Identities in the images that the generator was trained on.
        no_identity: Why there are no identities; empty where there are.
        no_training: Why training images aren't looked at; empty where they are, and where so few
            generated or real faces were found that nothing could be compared.
    """

    looked: NDArray[np.int64]
    faces: Faces
    identities: Identities | None = None
    compared: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    known: Identities | None = None
    trained: Identities | None = None
    no_identity: str = ""
    no_training: str = ""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What families compute from: N images as the instruments see them, and real ones.

    Attributes:
        readings: The images as each judge reads them, the primary judge's first.
        sensitive: Attributes whose shares are asked to be fair.
        confusions: Judge -> attribute, or attributes joined by ``"/"`` -> (K, K) counts of
            labelled images, rows are the truth.
        encoders: Encoder -> how its columns are called.
        reference: Real images.
        given: Attribute -> (N,) levels that a person saw in the images, -1 where nobody told.
        audited: Attribute or crossing -> valid images on which `confusions` were counted because
            people had told what they show; empty where they are those of held-out real images.
        seen: Encoder -> (T, D) features of images that the method learned from; None if it
            learned from none.
        controls: Variables within whose levels groups are compared too.
        faces: What the face stage said; None if it wasn't asked for.
        copies: Exact copies: ``images``, ``distinct`` ones among them, and how many are images of
            each split of the data set, by its role; None if they weren't counted.
        seed: Of every resample and draw.
    """

    readings: tuple[Reading, ...]
    sensitive: tuple[str, ...]
    confusions: Mapping[str, Mapping[str, NDArray[np.int64]]]
    encoders: Mapping[str, Columns]
    reference: Reference
    given: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    audited: Mapping[str, int] = field(default_factory=dict)
    seen: Mapping[str, Features] | None = None
    controls: Sequence[Control] = ()
    faces: FaceEvidence | None = None
    copies: Mapping[str, int] | None = None
    seed: int = 0

    @property
    def first(self) -> Reading:
        """The images as the primary judge reads them."""
        return self.readings[0]

    @property
    def task(self) -> Task:
        """Prompts, groups, target."""
        return self.first.task

    @property
    def attributes(self) -> Mapping[str, tuple[str, ...]]:
        """All attributes that judges read -> levels."""
        return self.first.levels

    @cached_property
    def groups(self) -> list[str]:
        """Names of the groups: the crossing of all sensitive attributes."""
        return crossing_groups(self.sensitive, self.attributes)

    @cached_property
    def real(self) -> NDArray[np.int64]:
        """(M,) group of each real image."""
        return crossing(self.reference.labels, self.sensitive, self.attributes)

    def features(self, encoder: str) -> tuple[Features, Features]:
        """(N, D) of the generated images and (M, D) of all real ones."""
        return self.first.sample.measured.features[encoder], self.reference.features[encoder]

    def balanced_features(self, encoder: str) -> tuple[Features, Features]:
        """(N, D) of the generated images and (B, D) of the balanced real ones."""
        x, y = self.features(encoder)
        rows = self.reference.balanced
        return x, y if rows is None else y[rows]

    def of_encoder(self, encoder: str) -> Evidence:
        """The same with one encoder alone."""
        return replace(self, encoders={encoder: self.encoders[encoder]})

    @cached_property
    def group_quality(self) -> Mapping[str, GroupQuality]:
        """Encoder -> quality of each group, of valid images; empty with fewer than two of them."""
        reading, found = self.first, {}
        cells = reading.index(self.sensitive)[reading.valid]
        for encoder in self.encoders if reading.n > 1 else ():
            x, y = self.features(encoder)
            found[encoder] = group_quality(
                x[reading.valid],
                cells,
                y,
                self.real,
                len(self.groups),
                k=NEIGHBOURS,
                common_n=GROUP_N,
                minimum=GROUP_N,
                seed=self.seed,
            )
        return found
