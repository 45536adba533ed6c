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

    The ratio of the two sets' densities at every noise level weighs every row, and its gradient
    corrects the row's target.

    Attributes:
        weight: Whether rows are weighted.
        correction: Whether targets are corrected.
        ratio: In closed form from normal groups whose shares differ between the sets, which are
            inferred or, ``labelled_mixture``, the crossings of all labels; or from a network, a
            discriminator of the sets or, ``labelled_network``, a classifier of the task's groups.
        ratio_groups: Groups that are inferred in each caption.
        ratio_fits: Fits from different starting points whose log ratios are averaged.
        first_steps, group_steps: Optimiser steps of a fit on features, then on noised latents.
        clamp: Whether the correction of the clean image, before `strength` multiplies it, is kept
            within the range of the data, which that of the exact ratio never leaves.
    """

    weight: bool = field(default=True, metadata={"help": "weigh rows by the density ratio"})
    correction: bool = field(
        default=True, metadata={"help": "correct targets by the ratio's gradient"}
    )
    ratio: Literal["mixture", "network", "labelled_mixture", "labelled_network"] = field(
        default="mixture",
        metadata={"help": "ratio of normal groups, inferred or labelled, or of a network"},
    )
    ratio_groups: int = field(
        default=3, metadata={"help": "groups that are inferred in each caption", "minimum": 2}
    )
    ratio_fits: int = field(
        default=3, metadata={"help": "fits whose log ratios are averaged", "minimum": 1}
    )
    first_steps: int = field(
        default=250, metadata={"help": "steps of a fit's groups on features", "minimum": 1}
    )
    group_steps: int = field(
        default=400, metadata={"help": "steps of a fit's groups on noised latents", "minimum": 1}
    )
    held_out: float = field(
        default=0.1, metadata={"help": "share of each set held out from the ratio", "minimum": 0}
    )
    clamp: bool = field(
        default=True, metadata={"help": "keep corrections within the range of the data"}
    )

    version: ClassVar[int] = 2

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
            "The ratio is not a network's but that of two mixtures of the same three normal "
            "groups, exact at every noise level once the groups are found: on frozen features of "
            "the backbone's middle block, then on noised latents, from set membership and the "
            "images' neutral captions (an unconditional backbone's images have these too), three "
            "fits averaged. The release trains a head on frozen ImageNet features (ratio=network: "
            "a small network without pretrained features, by AdamW at 2e-3 on 32 + 32 images, "
            "where the release takes Adam at 3e-4 on 128 + 128).",
            "A tenth of both sets is held out from the ratio; it is fitted without augmentation.",
            "Timesteps are stratified in a batch, gradients clipped at norm 1, the learning rate "
            "is warmed up for 50 steps and decayed, AdamW decays weights by 0.01; the release "
            "takes Adam at a rate that is warmed up over 10 million images.",
            "The released loss multiplies the batch's summed weights by its summed errors, "
            "subtracts the correction of the clean image and takes the gradient of the "
            "probability; here every row has its own weight, the correction is added, and the "
            "gradient is that of the log ratio, as the theorem asks.",
            "The correction of the clean image is clamped to the range of the data, which that of "
            "the exact ratio never leaves.",
            "Noise levels, and the log-uniform range of them that a ratio is fitted on, are those "
            "of the backbone's own schedule; the network's own parameterisation is corrected.",
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
            "ratio_groups": 2,
            "ratio_fits": 1,
            "first_steps": 2,
            "group_steps": 2,
        }
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "weight_only": MappingProxyType({"correction": False}),
            "correction_only": MappingProxyType({"weight": False}),
            "oracle_ratio": MappingProxyType({"ratio": "labelled_mixture"}),
            "from_scratch": MappingProxyType({**RATIO_FROM_SCRATCH, "ratio": "network"}),
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.correction:
            refuse_unused(self, ("clamp",), "correction=true")
        if self.ratio != "mixture":
            fitted = ("ratio_groups", "ratio_fits", "first_steps", "group_steps")
            refuse_unused(self, fitted, "ratio=mixture")
        if self.ratio in ("mixture", "labelled_mixture"):
            network = ("ratio_steps", "ratio_batch", "ratio_learning_rate", "ratio_width")
            refuse_unused(self, network, "ratio=network or labelled_network")

    def configured_card(self) -> MethodCard:
        """An ablation without weight or correction, an oracle with labels."""
        card = super().configured_card()
        if self.ratio in ("labelled_mixture", "labelled_network"):
            return dataclasses.replace(
                card,
                role="oracle",
                ranked=False,
                # A classifier's groups are those of the task: other tasks need other images.
                uses_target=self.ratio == "labelled_network",
                supervision=card.supervision | {"labels"},
            )
        if self.reference_share == 1:
            # Every ratio is 1 in the reference set: nothing is reweighted.
            return dataclasses.replace(card, role="control", ranked=False)
        if not (self.weight and self.correction and self.strength):
            return dataclasses.replace(card, role="ablation", ranked=False)
        return card

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Fit the ratio, then train the network with it, or load both."""
        from fairbench.methods.parts import tiw as _tiw

        return _tiw.prepare(self, task, backbone, data, preparation)


METHOD = TimeDependentReweighting
