"""Which images of a data set a method may learn from."""

from __future__ import annotations

import numpy as np

from fairbench.core.errors import InputError
from fairbench.core.method import MethodCard
from fairbench.datasets.base import Composition, Dataset, ImageSource

__all__ = ["check_supply", "reference_source", "training_source"]


def check_supply(dataset: Dataset, card: MethodCard) -> None:
    """Refuse a method that learns from what a data set doesn't have.

    Raises:
        InputError: If the data set lacks a split that the card declares.
    """
    if card.training_set != "none":
        training_source(dataset, card)
    if "reference-set" in card.supervision:
        reference_source(dataset, card)


def training_source(dataset: Dataset, card: MethodCard) -> ImageSource:
    """The images that a card's `training_set` names.

    Raises:
        InputError: If the data set has none.
    """
    composition: Composition = "balanced" if card.training_set == "balanced" else "biased"
    source = dataset.training_set(composition)
    if source is None:
        raise InputError(
            f"{card.name} trains on {composition} images, and data set {dataset.name} has no "
            "training set; choose a method that learns from less, or another --dataset"
        )
    return source


def reference_source(dataset: Dataset, card: MethodCard) -> ImageSource:
    """The first images of the split that methods with a reference set may see.

    Raises:
        InputError: If the data set has none.
    """
    split = dataset.split("method_reference")
    if split is None:
        raise InputError(
            f"{card.name} learns from a reference set, and data set {dataset.name} has none; "
            "choose a method that learns from less, or another --dataset"
        )
    return split.take(np.arange(min(card.reference_images, len(split))))
