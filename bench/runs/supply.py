"""Which images of a data set a method may learn from."""

from __future__ import annotations

import numpy as np

from fairbench.core.errors import InputError, unknown_name
from fairbench.core.method import MethodCard
from fairbench.datasets.base import Composition, Dataset, ImageSource
from fairbench.datasets.parts.profiles import parse_profile

__all__ = ["biased_source", "check_supply", "reference_source", "training_source"]


POOL_SEED = 0
"""Of draws from a pool."""


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


def biased_source(dataset: Dataset, bias: str, most: int) -> ImageSource:
    """Images of a data set's pool with the composition that ``--bias`` names.

    Args:
        dataset: Whose.
        bias: ``"default"`` and ``"balanced"``: as methods train on them; ``"none"``: the pool as
            it is; the name of a profile of the data set's; or shares such as
            ``"gender:female=0.9,male=0.1"``, of as many images as the pool can give.
        most: Images at most.
    Raises:
        InputError: If there is no such bias, or the pool has no such images.
    """
    named: dict[str, Composition] = {"default": "biased", "balanced": "balanced"}
    profiles = dataset.profiles()
    profile = None
    if bias not in named and bias != "none":
        if ":" not in bias and bias not in profiles:
            raise unknown_name("bias", bias, dict.fromkeys([*named, "none", *profiles]))
        profile = profiles.get(bias) or parse_profile(bias, dataset.attributes)
    source = dataset.training_set(named[bias]) if bias in named else dataset.split("pool")
    if source is None:
        raise InputError(
            f"data set {dataset.name} has no images to train on; choose another --dataset"
        )
    if profile is not None:
        count = profile.largest(source.labels, most)
        if not count:
            raise InputError(
                f"the pool of {dataset.name} has no images of a group of --bias {bias}; choose "
                "other shares"
            )
        return source.take(profile.draw(source.labels, count, POOL_SEED))
    if bias in named:  # drawn already, in random order
        return source.take(np.arange(min(most, len(source))))
    rng = np.random.default_rng(np.random.SeedSequence([POOL_SEED, 0xB1A5]))
    return source.take(rng.permutation(len(source))[:most])
