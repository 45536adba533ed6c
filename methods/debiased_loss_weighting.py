"""Debiased loss weighting: 1 / sqrt(SNR) on the noise's error, against bias over *timesteps*.

Source: Yu, Shen, Huang, Zhou, Li, Zhao: Debias the Training of Diffusion Models, arXiv 2310.08442
(v3: Unmasking Bias in Diffusion Model Training). Its bias is that of the estimate of the clean
image, which a small error of the predicted noise spoils at high noise. It is no demographic bias:
every positive weighting has the same optimum, the training distribution with its shares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fairbench.core.method import MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.task import Task
from fairbench.methods.parts.training_parameters import FineTuned

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class DebiasedLossWeighting(FineTuned):
    """Train on the backbone's own biased images with another weight of the loss over timesteps.

    Attributes:
        loss_weighting: ``debias`` is the paper's; the others are its siblings.
    """

    loss_weighting: Literal[
        "native", "constant", "debias", "p2", "min_snr", "truncated_snr", "edm", "edm_lognormal"
    ] = field(default="debias", metadata={"help": "weight of the loss over timesteps"})

    card: ClassVar[MethodCard] = MethodCard(
        name="debiased_loss_weighting",
        title="1/sqrt(SNR) loss weights: estimation bias over timesteps, no demographic target",
        arxiv="2310.08442",
        family="training",
        needs=frozenset({"predictions", "training"}),
        supervision=frozenset(),
        role="method",
        ranked=False,
        uses_target=False,
        trains=True,
        training_set="biased",
        deviations=(
            "By default it fine-tunes the shipped backbone, which predicts velocity, for the step "
            "budget that all training-time rows share; the paper trains a network that predicts "
            "noise from random weights (preset from_scratch).",
            "Weights are divided by their mean over the timesteps, so that weightings differ in "
            "shape and not in step size; the released code multiplies the loss of linear-schedule "
            "noise prediction by 17.8 on average.",
            "The weight has its exact form for the backbone's own parameterisation; the released "
            "code puts 1/sqrt(SNR) on whatever target is chosen, which is another objective for "
            "clean-image or velocity prediction.",
            "Timesteps are stratified in a batch and gradients clipped at norm 1, the learning "
            "rate is warmed up and decayed, AdamW decays weights by 0.01 and the average of the "
            "weights is warmed up; the released code does none of these.",
            "The variance is fixed; the released code also learns it by an unweighted term, whose "
            "balance with the weighted error the weighting shifts.",
        ),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"steps": 2, "batch": 4, "learning_rate": 0.05}
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            **{
                name: MappingProxyType({"loss_weighting": name})
                for name in ("constant", "p2", "min_snr", "truncated_snr", "edm")
            },
            # The paper's runs on 256-pixel images, which take days on a GPU; --param steps=2000
            # and a larger learning rate make a short one of it.
            "from_scratch": MappingProxyType(
                {
                    "start": "scratch",
                    "prediction": "noise",
                    "steps": 500_000,
                    "batch": 8,
                    "learning_rate": 2e-5,
                    "ema_decay": 0.9999,
                    "normalise_weights": False,
                }
            ),
        }
    )

    def configured_card(self) -> MethodCard:
        """Any other weighting than the paper's is an ablation."""
        if self.loss_weighting == "debias":
            return self.card
        title = f"{self.loss_weighting} loss weights over timesteps, no demographic target"
        return dataclasses.replace(self.card, title=title, role="ablation")

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the network on the biased images by the weighted denoising loss."""
        from fairbench.methods.parts import denoising as _denoising

        return _denoising.prepare(self, backbone, [data.training], data, preparation)


METHOD = DebiasedLossWeighting
