"""Time-dependent importance reweighting: a ratio of noised densities weighs and corrects.

Source: Kim, Na, Park, Jang, Kim, Kang, Moon: Training unbiased diffusion models from biased
dataset, arXiv 2403.01189.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fairbench.core.method import MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.parameters import refuse_unused
from fairbench.core.task import Task
from fairbench.methods.parts.reweighted import RATIO_FROM_SCRATCH, Reweighted

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class TimeDependentReweighting(Reweighted):
    """Denoising on biased and reference images, led to the reference set's distribution.

    A frozen network that tells noised reference images from noised biased ones gives the ratio of
    the two densities at every noise level. It weighs every row, and its gradient corrects the
    row's target.

    Attributes:
        weight: Whether rows are weighted.
        correction: Whether targets are corrected.
        ratio: From a discriminator, or from a classifier of the task's groups trained on labels.
        clamp: Whether the correction of the clean image, before `strength` multiplies it, is kept
            within the range of the data, which that of the exact ratio never leaves.
    """

    weight: bool = field(default=True, metadata={"help": "weigh rows by the density ratio"})
    correction: bool = field(
        default=True, metadata={"help": "correct targets by the ratio's gradient"}
    )
    ratio: Literal["network", "labels"] = field(
        default="network",
        metadata={"help": "ratio of a discriminator, or of a classifier trained on labels"},
    )
    clamp: bool = field(
        default=True, metadata={"help": "keep corrections within the range of the data"}
    )

    card: ClassVar[MethodCard] = MethodCard(
        name="tiw",
        title="density ratio of reference to biased images at every noise level",
        arxiv="2403.01189",
        ranked=True,
        family="training",
        needs=frozenset({"predictions", "training"}),
        supervision=frozenset({"reference-set"}),
        reference_images=800,
        uses_target=False,
        trains=True,
        training_set="biased",
        deviations=(
            "Fine-tunes the biased backbone in 600 steps; the paper trains from random weights "
            "(preset from_scratch).",
            "The ratio network is a small one without pretrained features, chosen by its "
            "cross-entropy on held-out images and with averaged weights; the release takes frozen "
            "ImageNet features and a checkpoint chosen by an unstated rule.",
            "Timesteps are stratified in a batch, gradients clipped at norm 1, the learning rate "
            "is warmed up for 50 steps and decayed, AdamW decays weights by 0.01; the release "
            "takes Adam at a rate that is warmed up over 10 million images.",
            "The released loss multiplies the batch's summed weights by its summed errors, "
            "subtracts the correction of the clean image and takes the gradient of the "
            "probability; here every row has its own weight, the correction is added, and the "
            "gradient is that of the log ratio, as the theorem asks.",
            "The correction of the clean image is clamped to the range of the data, which that of "
            "the exact ratio never leaves.",
            "Noise levels, and the ratio network's log-uniform range of them, are those of the "
            "backbone's own schedule; the network's own parameterisation is corrected.",
            "On a text-to-image backbone the method is an adaptation of an unconditional one: "
            "ratios are of latents, given the neutral prompt of the image or the empty one, "
            "whichever the network sees.",
        ),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "steps": 2,
            "batch": 4,
            "learning_rate": 0.05,
            "ratio_steps": 2,
            "ratio_batch": 4,
            "ratio_width": 8,
        }
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "weight_only": MappingProxyType({"correction": False}),
            "correction_only": MappingProxyType({"weight": False}),
            "oracle_ratio": MappingProxyType({"ratio": "labels"}),
            "from_scratch": RATIO_FROM_SCRATCH,
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.correction:
            refuse_unused(self, ("clamp",), "correction=true")

    def configured_card(self) -> MethodCard:
        """An ablation without weight or correction, an oracle with labels."""
        if self.ratio == "labels":
            # Its groups are those of the task, so that other tasks need other images.
            return dataclasses.replace(
                self.card,
                role="oracle",
                ranked=False,
                uses_target=True,
                supervision=self.card.supervision | {"labels"},
            )
        if self.reference_share == 1:
            # Every ratio is 1 in the reference set: nothing is reweighted.
            return dataclasses.replace(self.card, role="control", ranked=False)
        if not (self.weight and self.correction and self.strength):
            return dataclasses.replace(self.card, role="ablation", ranked=False)
        return self.card

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the ratio, then the network with it, or load both."""
        from fairbench.methods.parts import tiw as _tiw

        return _tiw.prepare(self, task, backbone, data, preparation)


METHOD = TimeDependentReweighting
