"""Resampling until a classifier sees the drawn group; ``rejection.py`` has the parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fairbench.core.errors import ContractError
from fairbench.core.method import Preparation, Request, Sampler, Samples, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import Backbone
from fairbench.methods.parts.classifier import AttributeClassifier, train_classifier
from fairbench.methods.parts.indicator import IndicatedSampler, Indicator

if TYPE_CHECKING:
    from fairbench.methods.rejection import Rejection

__all__ = ["RejectionSampler", "attempt_of"]


def attempt_of(request: Request, attempt: int) -> Request:
    """The request whose noise an attempt starts from: its own first, then one of no other image.

    An image index has 32 bits at most, and so has a prompt index.
    """
    return dataclasses.replace(request, prompt_index=request.prompt_index + (attempt << 32))


@dataclass
class _Search:
    """What is known of one request: attempts made, and the image to be kept."""

    request: Request
    group: int
    made: int = 0
    found: bool = False
    image: NDArray[np.uint8] | None = None
    probability: float = -1.0

    def see(self, image: NDArray[np.uint8], probabilities: NDArray[np.float64]) -> None:
        """Take the next attempt into account, unless an earlier one was right."""
        if self.found:
            return
        self.made += 1
        self.found = int(probabilities.argmax()) == self.group
        if self.found or probabilities[self.group] > self.probability:
            self.image, self.probability = image, float(probabilities[self.group])


class RejectionSampler(IndicatedSampler):
    """DDIM, again and again until the classifier sees the drawn group.

    Attempts of an image are made ahead of their turn where a network call has free rows. The
    first one that is right is kept, and only attempts up to it are counted: what an image is and
    costs doesn't depend on which others are made beside it.

    Args:
        backbone: Frozen.
        preparation: Sampling and seed.
        method: Its parameters.
        task: Names the attributes of its groups.
        classifier: Decides.
        indicator: Draws the group of an image.
        facts: For the record.
    """

    def __init__(
        self,
        backbone: Backbone,
        preparation: Preparation,
        method: Rejection,
        task: Task,
        classifier: AttributeClassifier,
        indicator: Indicator,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(backbone, preparation.sampling, indicator)
        self.method, self.names, self.classifier = method, list(task.attributes), classifier
        self.facts = facts
        self.extra_parameters = sum(p.numel() for p in classifier.parameters())

    def _schedule(self, pending: Sequence[_Search]) -> list[tuple[_Search, int]]:
        """Attempts that fill one network call, every pending image in turn."""
        width, limit = self.backbone.network_batch, self.method.max_attempts
        wanted = [
            (search, search.made + ahead)
            for ahead in range(limit)
            for search in pending
            if search.made + ahead < limit
        ]
        return wanted[:width]

    def _attempt(self, attempts: Sequence[tuple[_Search, int]]) -> int:
        """Make attempts and show them to their searches, in order; network calls of each."""
        requests = [attempt_of(search.request, number) for search, number in attempts]
        images, calls = self.make(requests, [None] * len(requests))
        seen = self.classifier.group_probabilities(images, self.names)
        for (search, _), image, probabilities in zip(attempts, images, seen, strict=True):
            search.see(image, probabilities)
        return int(calls[0])

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> Samples:
        """Make one image a request.

        Raises:
            ContractError: If there are no requests.
        """
        if not requests:
            raise ContractError("expected at least one request, seen none")
        searches = [_Search(request, self.group(request)) for request in requests]
        calls = 0
        while pending := [
            s for s in searches if not s.found and s.made < self.method.max_attempts
        ]:
            calls = self._attempt(self._schedule(pending))
        return Samples(
            images=np.stack([search.image for search in searches if search.image is not None]),
            requested=np.array([search.group for search in searches], np.int64),
            network_calls=np.array([calls * search.made for search in searches], np.int64),
            batch_id=np.array([self.batch_id(request) for request in requests], np.int64),
            diagnostics={
                "attempts": np.array([search.made for search in searches]),
                "given_up": np.array([not search.found for search in searches]),
            },
        )

    def observed(self, diagnostics: Mapping[str, NDArray[Any]]) -> Mapping[str, Any]:
        """Images, attempts at them, and images for which no attempt was right."""
        attempts = diagnostics["attempts"]
        return {
            "images": len(attempts),
            "attempts": int(attempts.sum()),
            "given_up": int(diagnostics["given_up"].sum()),
        }


def prepare(
    method: Rejection,
    task: Task,
    backbone: Backbone,
    data: TrainingData,
    preparation: Preparation,
) -> Sampler:
    """Train the classifier, or load it."""
    classifier, seen = train_classifier(method, task, data, preparation, backbone.device)
    indicator = Indicator.of(method.indicator, task.target, preparation)
    facts = {"training_seconds": seen["seconds"], "classifier": seen}
    return RejectionSampler(backbone, preparation, method, task, classifier, indicator, facts)
