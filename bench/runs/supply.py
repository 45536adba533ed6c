"""Which images of a data set a method may learn from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import InputError, UnfitError, unknown_name
from fairbench.core.method import MethodCard
from fairbench.datasets.base import Composition, Dataset, ImageSource
from fairbench.datasets.parts.profiles import Profile, parse_profile

__all__ = ["biased_source", "check_supply", "plain_bias", "reference_source", "training_source"]

DEFAULT = "default"


POOL_SEED = 0
"""Of draws from a pool."""

REFERENCE_IMAGES = 800
"""As many as methods have unless the user asks for fewer."""

COMPOSITIONS: Mapping[str, Composition] = {DEFAULT: "biased", "balanced": "balanced"}
AS_IT_IS = "none"


def check_supply(dataset: Dataset, card: MethodCard, bias: str = DEFAULT) -> None:
    """Refuse a method that learns from what a data set doesn't have.

    Args:
        dataset: Whose images.
        card: Declares what the method learns from.
        bias: As for `training_source`.

    Raises:
        InputError: If the data set lacks a split that the card declares, or has no such bias.
    """
    if card.training_set != "none":
        training_source(dataset, card, bias)
    if "reference-set" in card.supervision:
        reference_source(dataset, card)


def training_source(dataset: Dataset, card: MethodCard, bias: str = DEFAULT) -> ImageSource:
    """The images that a card's `training_set` names.

    Args:
        dataset: Whose images.
        card: Declares what the method learns from.
        bias: Of the images where the card says biased; see `biased_source`. There are at most as
            many as with the default one.

    Raises:
        InputError: If the data set has none, or no such bias.
    """
    composition: Composition = "balanced" if card.training_set == "balanced" else "biased"
    source = dataset.training_set(composition)
    if source is None:
        raise UnfitError(
            f"{card.name} trains on {composition} images, and data set {dataset.name} has no "
            "training set; choose a method that learns from less, or another --dataset"
        )
    if composition == "biased" and bias != DEFAULT:
        return biased_source(dataset, bias, len(source))
    return source


def reference_source(dataset: Dataset, card: MethodCard) -> ImageSource:
    """The images of the split that methods with a reference set may see.

    As many as the card says: of a larger split the first ones, and if that still takes fewer than
    methods usually have, as many of each cell of the attributes that they are balanced over.

    Raises:
        InputError: If the data set has none.
    """
    split = dataset.split("method_reference")
    if split is None:
        raise UnfitError(
            f"{card.name} learns from a reference set, and data set {dataset.name} has none; "
            "choose a method that learns from less, or another --dataset"
        )
    rows = np.arange(min(max(card.reference_images, REFERENCE_IMAGES), len(split)))
    if card.reference_images < len(rows):
        rows = _in_turn(split.labels, rows, card.reference_images)
    return split.take(rows)


def _in_turn(
    labels: Mapping[str, NDArray[np.uint8]], rows: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """So many of the rows, from the cells of the attributes that these are balanced over in turn.

    Fewer are always among more. The order of the cells is a random but fixed one, so that those
    which give one more than others are no particular ones.
    """
    cells = np.zeros(len(rows), dtype=np.int64)
    for values in labels.values():
        held = np.bincount(values[rows])
        if np.ptp(held[held > 0]) <= 1:
            cells = cells * len(held) + values[rows]
    _, cells = np.unique(cells, return_inverse=True)
    rng = np.random.default_rng(np.random.SeedSequence([POOL_SEED, 0x4EF5]))
    places = rng.permutation(cells.max() + 1)[cells]
    order = np.argsort(places, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(places))[:-1]])
    rounds = np.empty_like(cells)
    rounds[order] = np.arange(len(rows)) - starts[places[order]]
    return rows[np.sort(np.lexsort((places, rounds))[:count])]


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
    profile = _profile(dataset, bias)
    source = (
        dataset.training_set(COMPOSITIONS[bias]) if bias in COMPOSITIONS else dataset.split("pool")
    )
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
    if bias in COMPOSITIONS:  # drawn already, in random order
        return source.take(np.arange(min(most, len(source))))
    rng = np.random.default_rng(np.random.SeedSequence([POOL_SEED, 0xB1A5]))
    return source.take(rng.permutation(len(source))[:most])


def plain_bias(dataset: Dataset, bias: str) -> str:
    """What ``--bias`` stands for, said in one way: what is the same bias is the same text.

    Returns:
        ``"default"``, ``"balanced"``, ``"none"``, or shares.

    Raises:
        InputError: If there is no such bias.
    """
    profile = _profile(dataset, bias)
    if profile is None:
        return bias
    default = dataset.profiles().get(dataset.default_profile or "")
    return DEFAULT if default is not None and default.text == profile.text else profile.text


def _profile(dataset: Dataset, bias: str) -> Profile | None:
    """The shares that a bias names; None for those that need none."""
    if bias in COMPOSITIONS or bias == AS_IT_IS:
        return None
    profiles = dataset.profiles()
    if ":" not in bias and bias not in profiles:
        known = dict.fromkeys([*COMPOSITIONS, AS_IT_IS, *profiles])
        raise unknown_name("bias", bias, known)
    return profiles.get(bias) or parse_profile(bias, dataset.attributes)
