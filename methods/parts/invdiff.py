"""InvDiff's second half: the invariant objective and the network that guides the backbone."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from fairbench.core.errors import ContractError
from fairbench.core.method import Preparation, Request, Sampler, SamplingConfig, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import Backbone, Trainable, required
from fairbench.diffusion.denoisers import Denoiser, conditioned
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.diffusion.schedule import Prediction
from fairbench.diffusion.training import Draws, Loss, seeded_modules, train_or_load
from fairbench.methods.parts.denoising import mixed_index
from fairbench.methods.parts.finetuning import (
    NoisedImages,
    images_sha256,
    loss_weights,
    squared_error,
    tensor_sha256,
)
from fairbench.methods.parts.invdiff_groups import group_images

if TYPE_CHECKING:
    from fairbench.methods.invdiff import InvDiff

__all__ = [
    "InvDiffSampler",
    "copied_module",
    "invariant_loss",
    "mix",
    "narrow_module",
    "prepare",
]

PRESENT = 1e-6
"""Mass in a batch above which a group counts as present."""


def invariant_loss(errors: Tensor, weights: Tensor, variance_weight: float) -> Tensor:
    """Mean of the groups' risks in a batch, and lambda times their variance.

    Args:
        errors: (B,) float32, one an image.
        weights: (B, G) of each image in each group.
        variance_weight: Lambda.
    Returns:
        Scalar. Groups without an image in the batch don't count; with one group left it is that
        group's mean, without a variance.

    Source: arXiv 2412.08480, as its released code has it: the variance is the unbiased one.
    """
    mass = weights.sum(0)
    here = mass > PRESENT
    risks = (weights[:, here] * errors[:, None]).sum(0) / mass[here]
    if len(risks) < 2:
        return risks.mean()
    return risks.mean() + variance_weight * risks.var(unbiased=True)


def mix(base: Tensor, module: Tensor, form: Literal["residual", "convex"], r: float) -> Tensor:
    """The combined output, same shape; in the model's own parameterisation, as it is linear."""
    if form == "residual":
        return base + r * module
    return (1 - r) * base + r * module


def _heads(config: Mapping[str, Any], levels: int) -> list[int]:
    """Attention heads of each level of a text-to-image U-Net."""
    # diffusers' attention_head_dim is the number of heads there, unless heads are named apart.
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    return [heads] * levels if isinstance(heads, int) else list(heads)


def _narrow_config(config: Mapping[str, Any], width: float) -> dict[str, Any]:
    """The configuration with fewer channels: multiples of what norms and heads divide them by."""
    channels = list(config["block_out_channels"])
    norm = config["norm_num_groups"] or 1
    crossed = "cross_attention_dim" in config
    heads = _heads(config, len(channels)) if crossed else [1] * len(channels)
    units = [math.lcm(norm, head) for head in heads]
    narrow = [
        max(unit, int(width * channel) // unit * unit)
        for unit, channel in zip(units, channels, strict=True)
    ]
    changed = {**config, "block_out_channels": tuple(narrow)}
    if not crossed and config.get("attention_head_dim") is not None:
        # There it is the channels of a head.
        changed["attention_head_dim"] = math.gcd(config["attention_head_dim"], *narrow)
    return changed


def narrow_module(unet: nn.Module, width: float, seed: int) -> nn.Module:
    """A network like `unet` with `width` times the channels, fresh weights and output 0.

    Only this factory sets the output layer to 0; what was trained is loaded into it as it is.
    """
    kind = cast("Any", type(unet))
    with seeded_modules(seed):
        module = kind.from_config(_narrow_config(cast("Any", unet).config, width))
    return _silenced(module)


def copied_module(unet: nn.Module, *, silent: bool = False) -> nn.Module:
    """A copy of `unet` to be trained; `silent`, its output is 0 at first, as the release has it.

    Mixed convexly, a copy that isn't silent starts at the backbone whatever r is.
    """
    module = copy.deepcopy(unet).float().requires_grad_(True)
    return _silenced(module) if silent else module


def _silenced(module: Any) -> nn.Module:
    nn.init.zeros_(module.conv_out.weight)
    nn.init.zeros_(module.conv_out.bias)
    return cast("nn.Module", module.requires_grad_(True))


class InvDiffSampler(DDIMSampler):
    """DDIM with the backbone's output and the module's, mixed at every call.

    Classifier-free guidance acts on the mix; both are linear, so that each network can have its
    own and the results are mixed.

    Args:
        backbone: Frozen.
        module: The same backbone with the trained module as its network.
        config: Steps and guidance.
        form: How outputs are mixed.
        r: How strongly.
        facts: For the record.
    """

    def __init__(
        self,
        backbone: Backbone,
        module: Backbone,
        config: SamplingConfig,
        form: Literal["residual", "convex"],
        r: float,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(backbone, config)
        self.module, self.form, self.r, self.facts = module, form, r, facts
        network = cast("nn.Module", module.unet)
        self.extra_parameters = sum(p.numel() for p in network.parameters())

    def denoiser(
        self, requests: Sequence[Request], groups: Sequence[int | None]
    ) -> tuple[Denoiser, int]:
        """The mixed denoiser; calls of both networks are counted."""
        # Lowered on the backbone when memory runs out.
        self.module.network_batch = self.backbone.network_batch
        contexts = self.contexts(requests, groups)
        (base, calls), (guide, more) = (
            self.joined({name: conditioned(network, one) for name, one in contexts.items()})
            for network in (self.backbone, self.module)
        )

        def denoise(x: Tensor, t: int) -> Prediction:
            predicted = base(x, t)
            return predicted.with_value(mix(predicted.value, guide(x, t).value, self.form, self.r))

        return denoise, calls + more


def guided_loss(
    method: InvDiff, backbone: Backbone, module: Backbone, images: NoisedImages, weights: Tensor
) -> Loss:
    """The invariant objective of the mixed prediction on random batches.

    Args:
        method: Mixing, lambda, weight of timesteps.
        backbone: Frozen.
        module: The same backbone with the module under training as its network.
        images: N training images.
        weights: (N, G) of each image in each group.
    """
    by_timestep = loss_weights(method, backbone)
    rows = weights.float().to(backbone.device)

    def loss_of(draws: Draws) -> Tensor:
        batch = images.draw(draws, mixed_index(draws.rng, [len(images)], [draws.rows]))
        base = backbone.predict(batch.x_t, batch.t, batch.context).value.float()
        guide = module.predict(batch.x_t, batch.t, batch.context)
        mixed = guide.with_value(mix(base, guide.value.float(), method.mixing, method.r_train))
        target = backbone.schedule.target(batch.clean, batch.noise, batch.t)
        errors = by_timestep[batch.t] * squared_error(mixed, target)
        index = torch.from_numpy(batch.index).to(rows.device)
        draws.log("mean_error", errors.detach().mean())
        draws.log("groups_present", float((rows[index].sum(0) > PRESENT).sum()))
        return invariant_loss(errors, rows[index], method.variance_weight)

    return loss_of


def prepare(
    method: InvDiff, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
) -> Sampler:
    """Group the training images, then train or load the module.

    Raises:
        InputError: If the backbone has no network.
    """
    trainable = required(backbone, Trainable, method.card.name)
    if data.training is None:
        raise ContractError("invdiff expects training images, seen none")
    weights = loss_weights(method, backbone)  # refused before images are grouped
    images = NoisedImages(backbone, [data.training], data.subjects)
    content = {
        "method": method.card.name,
        "version": method.version,
        "backbone": backbone.weights_sha256,
        "data": images_sha256(data.training),
    }
    grouping = group_images(method, task, backbone, images, data, content, preparation)
    preparation.audit("groups", grouping.weights.numpy())
    if method.module == "narrow":
        network = narrow_module(trainable.network, method.width, preparation.seed)
    else:
        network = copied_module(trainable.network, silent=method.module == "silent_copy")
    network = network.to(backbone.device)
    module = trainable.replaced(network)
    facts = train_or_load(
        network,
        method.card.name,
        {
            **content,
            "module": [method.module, method.width],
            "mixing": [method.mixing, method.r_train],
            "variance_weight": method.variance_weight,
            "weights": tensor_sha256(weights),
            "groups": tensor_sha256(grouping.weights),
        },
        method.plan(),
        guided_loss(method, backbone, module, images, grouping.weights),
        preparation,
        device=backbone.device,
        what="training the invdiff module",
    )
    network.requires_grad_(False)
    network.to(trainable.dtype)
    base = sum(p.numel() for p in trainable.network.parameters())
    whole = {
        "training_seconds": grouping.seconds + facts["seconds"],
        "training": facts,
        "grouping": dict(grouping.facts),
        "module_share": facts["trained_parameters"] / base,
    }
    return InvDiffSampler(
        backbone, module, preparation.sampling, method.mixing, method.r_sample, whole
    )
