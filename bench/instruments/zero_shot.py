"""CLIP as a judge that was never shown labels: which of a few sentences an image fits best."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.prompts import Phrase, describe
from fairbench.core.specs import InstrumentSpec
from fairbench.datasets.base import Dataset
from fairbench.instruments.base import Kind, Outputs
from fairbench.instruments.class_readers import Classes, DatasetJudge
from fairbench.instruments.clip import ClipEncoder
from fairbench.instruments.loading import load_public

__all__ = ["INSTRUMENTS", "ZeroShotReader", "attribute_sentences", "zero_shot_probabilities"]


def zero_shot_probabilities(
    features: NDArray[Any], texts: NDArray[Any], logit_scale: float
) -> NDArray[np.float32]:
    """Softmax of the scaled cosines of images and sentences.

    Args:
        features: (N, D) unit vectors of images.
        texts: (K, D) unit vectors of sentences.
        logit_scale: The model's own, such as 100. Without it every row is nearly even, and a
            generator that collapsed looks nearly fair; `fairbench.metrics.check_calibration`
            refuses such a reader.

    Returns:
        (N, K) float32, rows sum to 1.
    """
    logits = logit_scale * np.asarray(features, np.float64) @ np.asarray(texts, np.float64).T
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def attribute_sentences(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """Attribute -> one sentence a level, such as "a photo of the face of a female person"."""
    subject = dataset.subjects[0]
    found = {}
    for name, levels in dataset.attributes.items():
        said = dataset.card.said.get(name, {})
        phrases = [said.get(level, Phrase(level)) for level in levels]
        found[name] = tuple(
            describe(subject.subject, (phrase,), subject.template) for phrase in phrases
        )
    return found


class ZeroShotReader:
    """CLIP with one sentence a level, at its own logit scale.

    Source: Radford et al. 2021, arXiv 2103.00020, section 3.1. Deviation: one sentence a level,
    without an ensemble.
    """

    kind: Kind = "judge"
    dtype = "float32"

    def __init__(self, clip: ClipEncoder, dataset: Dataset) -> None:
        sentences = attribute_sentences(dataset)
        self.name = f"zero-shot-{clip.name}"
        self.batch_size = clip.batch_size
        self.weights_sha256 = clip.weights_sha256
        self.scale = clip.logit_scale
        # Sentences are hashed: there may be dozens.
        lines = "\n".join(line for each in sentences.values() for line in each)
        digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
        self.preprocessing = (
            f"{clip.preprocessing}; softmax of {self.scale:.4f} x cosine, sentences {digest}"
        )
        self.classes: Mapping[str, Classes] = MappingProxyType(
            {name: Classes(levels) for name, levels in dataset.attributes.items()}
        )
        self.outputs: Outputs = MappingProxyType(dict.fromkeys(sentences, np.float32))
        self._clip = clip
        self._texts = {name: clip.text_features(each) for name, each in sentences.items()}

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Attribute -> (N, K) float32 probabilities; arguments and errors as of every judge."""
        features = self._clip(images)["features"]
        return {
            name: zero_shot_probabilities(features, texts, self.scale)
            for name, texts in self._texts.items()
        }


def _load(
    name: str, dimension: int, side: int, *, dataset: Dataset, **options: Any
) -> DatasetJudge:
    """CLIP as a judge of a data set; it isn't calibrated yet."""
    clip = load_public(name, name, ClipEncoder, dimension, side, **options)
    return DatasetJudge(ZeroShotReader(clip, dataset), dataset.attributes)


def _spec(name: str, title: str, dimension: int, side: int) -> InstrumentSpec:
    return InstrumentSpec(
        f"zero-shot-{name}",
        "judge",
        f"{title}, asked in words; calibrate it on the data set",
        partial(_load, name, dimension, side),
        name,
        per_dataset=True,
    )


INSTRUMENTS = (
    _spec("clip-vit-b-32", "CLIP B/32", 512, 224),
    _spec("clip-vit-l-14-336", "CLIP L/14 at 336 pixels", 768, 336),
)
