"""InvDiff: groups read off denoising risks, then a second network that makes their risks equal.

Source: Hou, Wu, Xu, Huang, Bai, Wu, Bian: InvDiff: Invariant Guidance for Bias Mitigation in
Diffusion Models, KDD 2025, arXiv 2412.08480.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fairbench.core.errors import InputError
from fairbench.core.method import MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.parameters import refuse_unused
from fairbench.core.task import Task
from fairbench.methods.parts.training_parameters import FineTuned

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class InvDiff(FineTuned):
    """Guide a frozen backbone by a second network trained on unlabelled groups.

    Attributes:
        grouping: How training images are grouped: by the skewed direction of their risks at every
            place of the image; by their mean risks, as the paper has it; at random; by the
            labels of the task's attributes; or not at all.
        groups: How many groups, for ``dispersion`` and ``random``.
        kappa: Weight of the term that keeps memberships soft.
        variance_weight: Lambda, the weight of the variance of the groups' risks.
        risk_target: What the risk compares the network with: its own target, or, as released, the
            clean image, with the predicted noise.
        risk_draws: (timestep, noise) draws that a risk is averaged over.
        risk_bank: Whether all images get the same draws, or each its own.
        risk_from, risk_to: Part of the schedule that they are from, 0 the clean end.
        standardise: Whether risks are compared within what the prompt names; needs prompts.
        module: A copy of the backbone's network as it is, one whose output layer is set to 0, or
            a narrow network of its kind, which starts at 0 too.
        width: Channels of the narrow one, as a share of the backbone's.
        mixing: ``convex``, (1 - r) base + r module, or ``residual``, base + r module.
        r_train, r_sample: r while training and while sampling.
    """

    grouping: Literal["components", "dispersion", "random", "oracle", "single"] = field(
        default="components",
        metadata={"help": "groups from maps of risks, mean risks, chance, labels, or one for all"},
    )
    groups: int = field(
        default=2, metadata={"help": "number of groups, for dispersion and random", "minimum": 2}
    )
    kappa: float = field(
        default=0.0, metadata={"help": "weight that keeps memberships soft", "minimum": 0}
    )
    variance_weight: float = field(
        default=1.0, metadata={"help": "lambda, of the variance of group risks", "minimum": 0}
    )
    risk_target: Literal["native", "clean"] = field(
        default="native",
        metadata={"help": "risk against the network's own target, or the clean image"},
    )
    risk_draws: int = field(
        default=8, metadata={"help": "draws that a risk is averaged over", "minimum": 1}
    )
    risk_bank: Literal["shared", "private"] = field(
        default="shared", metadata={"help": "the same draws for all images, or own ones"}
    )
    risk_from: float = field(
        default=0.575, metadata={"help": "least noisy timestep of the draws, share", "minimum": 0}
    )
    risk_to: float = field(
        default=0.975, metadata={"help": "noisiest timestep of the draws, share", "minimum": 0}
    )
    standardise: bool = field(
        default=True, metadata={"help": "compare risks within what the prompt names"}
    )
    module: Literal["copy", "silent_copy", "narrow"] = field(
        default="copy",
        metadata={"help": "network that guides: a copy, one with output 0, or a narrow one"},
    )
    width: float = field(
        default=0.5, metadata={"help": "channels of the narrow one, share", "minimum": 0}
    )
    mixing: Literal["residual", "convex"] = field(
        default="convex",
        metadata={"help": "(1 - r) base + r module, or base + r module"},
    )
    r_train: float = field(default=0.5, metadata={"help": "r while training", "minimum": 0})
    r_sample: float = field(default=0.6, metadata={"help": "r while sampling", "minimum": 0})

    version: ClassVar[int] = 3
    shares_training: ClassVar[bool] = False  # it compares the groups of a whole batch

    card: ClassVar[MethodCard] = MethodCard(
        name="invdiff",
        title="a guiding network trained for equal risk over inferred groups",
        arxiv="2412.08480",
        ranked=True,
        family="fine-tuning",
        needs=frozenset({"predictions", "training"}),
        role="method",
        uses_target=False,
        trains=True,
        training_set="biased",
        extra_parameters="a copy of the backbone's network",
        extra_network_calls="one of the copy for each of the backbone's",
        deviations=(
            "Groups come from maps of risks: squared errors against the network's own training "
            "target at every place of the latent, for 8 draws in the noisy part of the schedule "
            "that all images share. Within what the prompt names the logs of their means, less "
            "places that only outliers differ at, are reduced to the 8 widest principal "
            "components, in which directions of largest skewness are searched from 61 starts; "
            "from the one whose skewness times correlation with the ranks of the mean risk is "
            "largest, a mixture of two normals with one covariance is fitted. It reads no label, "
            "but was chosen among several rules by how well it finds gender on the two embedded "
            "backbones. The release takes one mean error an image, of predicted noise against "
            "the clean latent at any timestep, and moves memberships for 500 steps to where the "
            "groups' means are furthest apart (grouping=dispersion, preset as_released).",
            "2 groups, which the module sees with equal mass within what each prompt names; the "
            "release infers 4 or 8 and weighs images alike. Without prompts, which the paper "
            "makes no claim about, all images are taken together, and rarity is mixed with "
            "intrinsic difficulty.",
            "The copy starts with the backbone's own output layer, so that training starts at "
            "the backbone; the release sets it to 0 and starts at half the backbone's output.",
            "Sampled with 0.6, a little further along the module than the 0.5 of the training, "
            "since 600 steps end short of the objective's optimum, and classifier-free guidance "
            "multiplies what is left. Chosen by the measured shares of one training with true "
            "groups. The release samples with 0.8, which goes past even shares here.",
            "600 steps at 1e-3 with averaged weights; the release takes 10,000 at 1e-4 without.",
            "A tenth of the prompts is dropped, so that the module knows the empty prompt that "
            "guidance asks it about; the release drops none.",
            "Timesteps are spread evenly over a batch, so that the variance of the groups' risks "
            "is less that of their timesteps.",
            "Latents are the means of the encoder's distribution, without random flips. Module "
            "and risks see the neutral prompt of an image, which has no word for an attribute; "
            "the release fine-tunes the backbone on the same captions first.",
        ),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"steps": 2, "batch": 4, "learning_rate": 0.05, "risk_draws": 1}
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            # Controls: the same module and budget without groups, with groups that mean nothing,
            # and with the true ones; without the variance the last is plain reweighting.
            "erm": MappingProxyType({"grouping": "single"}),
            "random_groups": MappingProxyType({"grouping": "random"}),
            "oracle_groups": MappingProxyType({"grouping": "oracle"}),
            "oracle_groups_lambda0": MappingProxyType(
                {"grouping": "oracle", "variance_weight": 0.0}
            ),
            # A quarter of the parameters, which learns the whole way from no guidance at all.
            "lightweight": MappingProxyType(
                {"module": "narrow", "mixing": "residual", "r_train": 1.0, "r_sample": 1.0}
            ),
            # The released code at 0d47371, as its checkpoints for faces were made: r never
            # reaches the training, which uses 0.5; "0.8" in their names is that of sampling.
            "as_released": MappingProxyType(
                {
                    "grouping": "dispersion",
                    "groups": 8,
                    "risk_target": "clean",
                    "risk_draws": 1,
                    "risk_bank": "private",
                    "risk_from": 0.0,
                    "risk_to": 1.0,
                    "standardise": False,
                    "module": "silent_copy",
                    "r_sample": 0.8,
                    "steps": 10_000,
                    "learning_rate": 1e-4,
                    "ema_decay": 0.0,
                }
            ),
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start != "backbone":
            raise InputError(
                "invdiff guides a frozen backbone and can't start from scratch; leave --param "
                f"start=backbone (seen {self.start!r})"
            )
        if self.accumulate > 1:
            raise InputError(
                "invdiff compares the groups of a whole batch and can't split it; leave --param "
                f"accumulate=1 (seen {self.accumulate}) and lower batch for less memory"
            )
        if not self.risk_from < self.risk_to <= 1:
            raise InputError(
                "--param risk_from must lie below risk_to, and that at most at 1; seen "
                f"{self.risk_from:g} and {self.risk_to:g}"
            )
        if self.module != "narrow":
            refuse_unused(self, ("width",), "module=narrow")
        if self.grouping not in ("components", "dispersion"):
            risk = [f.name for f in fields(self) if f.name.startswith("risk_")]
            refuse_unused(self, (*risk, "standardise"), "grouping=components or dispersion")
        if self.grouping == "components" and self.risk_bank == "private":
            raise InputError(
                "grouping=components compares images place by place, which own draws would drown "
                "in noise; leave --param risk_bank=shared, or choose grouping=dispersion"
            )
        if self.grouping != "dispersion":
            refuse_unused(self, ("kappa",), "grouping=dispersion")
        if self.grouping not in ("dispersion", "random"):
            refuse_unused(self, ("groups",), "grouping=dispersion or random")
        if self.grouping == "single":
            refuse_unused(self, ("variance_weight",), "groups")
        if not 0 < self.width <= 1:
            raise InputError(f"--param width must lie in (0, 1]; seen {self.width:g}")
        if self.r_train == 0:
            raise InputError("--param r_train must be above 0, else nothing is learned; seen 0")

    def configured_card(self) -> MethodCard:
        """An oracle with labels; an ablation without groups, with random or as released ones."""
        card = self.card
        if self.module == "narrow":
            card = replace(
                card,
                extra_parameters=(
                    "a narrow network of the backbone's kind, about a quarter of it by default"
                ),
                extra_network_calls=(
                    "one of the guiding network for each of the backbone's; both are counted, "
                    "though the narrow one takes a third of the time"
                ),
            )
        if self.grouping == "oracle":
            # Its groups are those of the task, so that other tasks need other images.
            return replace(
                card,
                role="oracle",
                ranked=False,
                uses_target=True,
                supervision=frozenset({"labels"}),
            )
        inferred = self.grouping in ("components", "dispersion")
        plain = not inferred or self.risk_target == "clean"
        if plain or not self.variance_weight or not self.r_sample:
            return replace(card, role="ablation", ranked=False)
        return card

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Group the training images and train the guiding network, or load what was trained."""
        from fairbench.methods.parts import invdiff as _invdiff

        return _invdiff.prepare(self, task, backbone, data, preparation)


METHOD = InvDiff
