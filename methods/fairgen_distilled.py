"""FairGen's adapters for a model without prompts, which is distilled classifier guidance.

An *adaptation*, not a method of the paper (Jiang et al., arXiv 2412.18810): an unconditional model
has no prediction for a category, so that the direction of a category comes from a classifier of
noised images (Dhariwal and Nichol, arXiv 2105.05233). Labels and a classifier return, whose
absence is the paper's main claim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fairbench.core.errors import InputError
from fairbench.core.method import MethodBase, MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.parameters import refuse_unused
from fairbench.core.task import Task

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class FairGenDistilled(MethodBase):
    """Rank-r adapters trained on the classifier-guided prediction, gated by an indicator.

    Attributes:
        distil: Whether adapters learn the guided prediction; false: it is computed while sampling,
            which is plain classifier guidance.
        scale: Of the guidance; 1 is the posterior of the classifier.
        indicator: How groups are drawn.
        layers: What is adapted: linear maps of the attentions, those that read the timestep, or
            both.
        strength: Multiplier of the adapters when sampling. The default was chosen by a
            classifier of the reference set: of 128 images of cartoonfaces-ddpm it finds the wanted
            gender and race in 70 % (0.5), 83 % (0.65) and 92 % (0.8; and of 64 images with 1).
        rank: Rank of an adapter.
        iterations: Optimiser steps of an attribute's adapters; with 150 instead of 400, 86 % of
            64 such images instead of 92 %.
        batch: Images a step of the adapters.
        learning_rate: Of the adapters.
        classifier_iterations: Optimiser steps of an attribute's classifier. They matter most:
            after 400, not 1,600, undistilled guidance reaches 50 % at scale 3, not 86 %.
        classifier_learning_rate: Of the classifier.
    """

    distil: bool = field(
        default=True, metadata={"help": "false: guide by the classifier while sampling"}
    )
    scale: float = field(default=5.0, metadata={"help": "of the guidance", "minimum": 0})
    indicator: Literal["iid", "stratified"] = field(
        default="iid", metadata={"help": "groups drawn an image (iid) or by shuffled quotas"}
    )
    layers: Literal["attention", "time", "both"] = field(
        default="both", metadata={"help": "linear maps that have adapters"}
    )
    strength: float = field(default=0.8, metadata={"help": "adapter multiplier when sampling"})
    rank: int = field(default=1, metadata={"help": "rank of an adapter", "minimum": 1})
    iterations: int = field(
        default=400, metadata={"help": "training steps of an attribute's adapters", "minimum": 1}
    )
    batch: int = field(default=32, metadata={"help": "images an adapter step", "minimum": 1})
    learning_rate: float = field(
        default=1e-2, metadata={"help": "of the adapters, cosine decay", "minimum": 0}
    )
    classifier_iterations: int = field(
        default=1600, metadata={"help": "training steps of a classifier", "minimum": 1}
    )
    classifier_learning_rate: float = field(
        default=2e-3, metadata={"help": "of the classifier, cosine decay", "minimum": 0}
    )

    card: ClassVar[MethodCard] = MethodCard(
        name="fairgen_distilled",
        title="adaptation of FairGen to models without prompts: distilled classifier guidance",
        arxiv="2412.18810",
        ranked=True,
        family="fine-tuning",
        needs=frozenset({"predictions", "training"}),
        prompts="none",
        extra_parameters="rank-1 factors, for each category",
        supervision=frozenset({"reference-set", "labels", "classifier"}),
        reference_images=800,
        trains=True,
        deviations=(
            "An adaptation: the paper's method needs a prompt for each category and has no "
            "classifier. Here the target is the prediction minus scale times sigma times the "
            "gradient of a classifier of noised images, trained on the labelled reference set.",
            "Adapters are on self-attention and on the linear maps that read the timestep; an "
            "unconditional model has no cross-attention.",
            "They are trained on noised reference images, not on the model's own trajectories: "
            "the classifier knows no others.",
        ),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"iterations": 2, "batch": 4, "learning_rate": 0.05, "classifier_iterations": 2}
    )
    training_precision: ClassVar[str] = "auto"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"classifier_guidance": MappingProxyType({"distil": False})}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.distil:
            adapters = ("layers", "strength", "rank", "iterations", "batch", "learning_rate")
            refuse_unused(self, adapters, "distil=true")

    def configured_card(self) -> MethodCard:
        """Guidance that isn't distilled is the ablation; without any it's the backbone."""
        if not self.scale or (self.distil and not self.strength):
            return dataclasses.replace(self.card, role="control", ranked=False)
        if self.distil:
            return self.card
        return dataclasses.replace(
            self.card,
            title="classifier guidance on noised images, what fairgen_distilled distils",
            arxiv="2105.05233",
            family="sampling",
            role="ablation",
            ranked=False,
            extra_parameters="a small classifier of noised images for each attribute",
            extra_network_calls="one gradient of a small classifier a step and attribute",
            deviations=self.card.deviations[:1],
        )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train a classifier and adapters for each attribute of the task, or load them."""
        if backbone.conditional:
            raise InputError(
                f"fairgen_distilled is for backbones without prompts; {backbone.name} takes some: "
                "use fairgen, which needs neither labels nor a classifier"
            )
        from fairbench.methods.parts import distillation as _distilled

        return _distilled.prepare(self, task, backbone, data, preparation)


METHOD = FairGenDistilled
