"""Distribution guidance: a batch is steered, as a whole, to the wanted shares.

Source: Parihar, Bhat, Basu, Mallick, Kundu, Babu: Balancing Act: Distribution-Guided Debiasing in
Diffusion Models, CVPR 2024, arXiv 2402.18206.
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
from fairbench.methods.parts.guidance_parameters import (
    CLASSIFIED,
    REFERENCE_IMAGES,
    BottleneckGuided,
)

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class DistributionGuidance(BottleneckGuided):
    """One gradient step a sampling step on the bottleneck of all images of a batch.

    Attributes:
        batch: Images that are guided together.
        loss: Distance between the batch's predicted shares and the wanted ones.
        temperature: Of the heads' softmax, whose mean over the batch is the predicted shares.
        softening: Factor on the temperature in the gradient alone, so that confident images move
            too; 1: the gradient itself.
        step_rule: ``newton``, the step after which the linearised shares are the wanted ones, or
            ``paper``, its rule of a scale tuned by hand.
        newton: Newton steps taken at once; above 1, because only about a tenth of an edit of h
            arrives in the next state.
        scale: Of the paper's rule; the larger the batch, the larger it has to be, because the
            gradient of a mean by one member shrinks. The release has 1500 for batches of 100.
        max_rel: Longest step beside the length of h, image by image; 0: no bound.
        asymmetric: Whether the edit leaves the direction term of DDIM alone; twice the calls.
        joint: Whether several attributes are steered by their joint cells or by their marginals.
    """

    batch: int = field(default=64, metadata={"help": "images guided together", "minimum": 1})
    loss: Literal["chi2", "kl"] = field(
        default="chi2", metadata={"help": "distance of predicted from wanted shares"}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "of the heads' softmax", "minimum": 1e-3}
    )
    softening: float = field(
        default=8.0,
        metadata={"help": "temperature factor of the gradient alone", "minimum": 1},
    )
    step_rule: Literal["newton", "paper"] = field(
        default="newton", metadata={"help": "how long a step is"}
    )
    newton: float = field(
        default=10.0, metadata={"help": "Newton steps taken at once", "minimum": 0}
    )
    scale: float = field(default=1500.0, metadata={"help": "of the paper's rule", "minimum": 0})
    max_rel: float = field(
        default=0.8, metadata={"help": "longest step beside h; 0: no bound", "minimum": 0}
    )
    asymmetric: bool = field(
        default=False, metadata={"help": "edit the clean image alone; twice the calls"}
    )
    joint: bool = field(
        default=True, metadata={"help": "steer joint cells, not each attribute for itself"}
    )

    card: ClassVar[MethodCard] = MethodCard(
        name="distribution_guidance",
        title="batches steered to the wanted shares through the U-Net's bottleneck",
        arxiv="2402.18206",
        ranked=True,
        family="sampling",
        needs=frozenset({"predictions", "bottleneck", "ddim"}),
        extra_parameters="a linear head a timestep",
        supervision=CLASSIFIED,
        reference_images=REFERENCE_IMAGES,
        batch_coupled=True,
        trains=True,
        extra_network_calls=(
            "none; twice as many with asymmetric=true. What fills up a short last batch isn't "
            "counted"
        ),
        deviations=(
            "Heads learn from trajectories of the sampler in use, labelled by a classifier "
            "trained on the reference set, and are calibrated on held-out ones; the paper "
            "inverts labelled images (features=inversion). Heads see at most 256 main components "
            "of h, and their L2 penalty is cross-validated; the paper's see h itself.",
            "A step is ten Newton steps long, at most 0.8 times as long as h, and its direction "
            "is softened by 8 while the shares have temperature 1; the paper softens both by 8 "
            "and tunes a scale by hand (preset as_released). Lengths were chosen with the "
            "method's own classifier on both cartoonfaces backbones.",
            "Heads lie on the sampler's own timesteps and its eta is followed; the released code "
            "has one grid of 50 steps and eta 1.",
            "By default only the conditional branch of guidance is read and edited; the release "
            "mixes both in one mean.",
            "Preset as_released keeps calibrated heads and the sampler's eta, and each branch of "
            "guidance is read for itself.",
            "Several attributes are steered by their joint cells; the release sums two marginal "
            "losses with one common target (joint=false sums, each with its own).",
        ),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"classifier_steps": 2, "trajectories": 12, "skip_first": 0, "batch": 4}
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            # Window t <= 978 of the release: its grid's noisiest step is left alone, as here. Its
            # scale of 1500 is for batches of 100; an image's step is to be as long in ours of 64.
            "as_released": MappingProxyType(
                {
                    "features": "inversion",
                    "temperature": 8.0,
                    "softening": 1.0,
                    "step_rule": "paper",
                    "scale": 960.0,
                    "max_rel": 0.0,
                    "branch": "both",
                    "joint": False,
                }
            ),
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unused, unless = {
            "newton": ("scale", "step_rule=paper"),
            "paper": ("newton", "step_rule=newton"),
        }[self.step_rule]
        refuse_unused(self, (unused,), unless)

    def configured_card(self) -> MethodCard:
        """Without a step it is the backbone as it is; with the paper's own, an ablation."""
        if (self.newton if self.step_rule == "newton" else self.scale) == 0:
            return dataclasses.replace(self.card, role="control", ranked=False)
        if self.step_rule == "paper":
            return dataclasses.replace(self.card, role="ablation", ranked=False)
        return self.card

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the attribute classifier and the heads, or load those trained before."""
        from fairbench.methods.parts import distribution_guidance as _distribution_guidance

        return _distribution_guidance.prepare(self, task, backbone, data, preparation)


METHOD = DistributionGuidance
