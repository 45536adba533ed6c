"""Parameters that methods with a classifier or heads on the bottleneck share; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fairbench.core.method import MethodBase, Supervision

__all__ = ["CLASSIFIED", "REFERENCE_IMAGES", "BottleneckGuided", "Classified"]

CLASSIFIED: frozenset[Supervision] = frozenset({"reference-set", "labels", "classifier"})
"""Supervision of every method that trains the attribute classifier."""

REFERENCE_IMAGES = 800


@dataclass(frozen=True)
class Classified(MethodBase):
    """A method with an attribute classifier of its own, trained on the labelled reference set.

    Attributes:
        classifier_steps: Optimiser steps of the classifier.
    """

    training_precision: ClassVar[str] = "auto"

    classifier_steps: int = field(
        default=300, metadata={"help": "training steps of the attribute classifier", "minimum": 1}
    )


@dataclass(frozen=True)
class BottleneckGuided(Classified):
    """A method that reads or edits the U-Net's bottleneck h.

    Attributes:
        features: What the heads learn from: trajectories of the sampler in use with labels of the
            classifier, or deterministic inversion of the labelled reference images.
        trajectories: Images whose trajectories are learned from.
        weight_decay: L2 penalty of the heads; 0 chooses one a head by held-out loss.
        branch: Branch of classifier-free guidance that is read and edited.
        skip_first: Noisiest steps that are left alone.
        skip_last: Last steps that are left alone.
    """

    features: Literal["trajectory", "inversion"] = field(
        default="trajectory",
        metadata={"help": "learn from the sampler's own trajectories or from inverted images"},
    )
    trajectories: int = field(
        default=1024, metadata={"help": "images whose trajectories are learned from", "minimum": 8}
    )
    weight_decay: float = field(
        default=0.0,
        metadata={"help": "L2 penalty of the heads; 0: by held-out loss", "minimum": 0},
    )
    branch: Literal["cond", "both"] = field(
        default="cond", metadata={"help": "guidance branch that is read and edited"}
    )
    skip_first: int = field(
        default=1, metadata={"help": "noisiest steps left alone", "minimum": 0}
    )
    skip_last: int = field(default=0, metadata={"help": "last steps left alone", "minimum": 0})
