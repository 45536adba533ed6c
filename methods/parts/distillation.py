"""Classifier guidance on noised images, and adapters that learn its result.

``fairgen_distilled.py`` holds the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fairbench.core.errors import ContractError
from fairbench.core.method import Preparation, Request, Sampler, SamplingConfig, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import Backbone, Trainable, required
from fairbench.diffusion.denoisers import Denoiser, within
from fairbench.diffusion.sampling import Stream
from fairbench.diffusion.schedule import Prediction, Schedule
from fairbench.diffusion.training import Draws, TrainingPlan, seeded_modules, train_or_load
from fairbench.methods.parts.adapters import AdapterBank, attention_linears, time_linears
from fairbench.methods.parts.fairgen import group_gates, initial_seed, joined
from fairbench.methods.parts.finetuning import NoisedImages, images_sha256
from fairbench.methods.parts.indicator import IndicatedSampler, Indicator
from fairbench.methods.parts.networks import ImageNetwork

if TYPE_CHECKING:
    from fairbench.methods.fairgen_distilled import FairGenDistilled

CLASSIFIER_BATCH = 64
HELD_OUT = 5
"""One in so many reference images is held out from a classifier's training."""


def log_noise(schedule: Schedule, t: Tensor) -> Tensor:
    """Log of sigma / alpha at `t`, (B,) float32; finite where no signal is left."""
    snr = schedule.snr(t.cpu()).clamp(min=1e-8)
    return (-0.5 * snr.log()).float().to(t.device)


class NoisedClassifier(nn.Module):
    """Logits of levels that are equally frequent, from an image at any noise level.

    They are the network's times alpha, since without signal all levels are equally likely. So the
    gradient fades as fast as the signal does: the guided clean image divides it by alpha again,
    and what a free network's gradient is left with at high noise would become a large push in
    some random direction.

    Args:
        channels: Of the input.
        levels: K.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.network = ImageNetwork(channels, levels)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """(B, C, h, w) and the log of sigma / alpha of each row, (B,) -> (B, K) logits."""
        alpha = torch.sigmoid(-2 * level).sqrt()
        logits: Tensor = alpha[:, None].to(x.dtype) * self.network(x, level)
        return logits


def log_likelihood_gradient(
    classifier: nn.Module, schedule: Schedule, x_t: Tensor, t: Tensor, category: Tensor
) -> Tensor:
    """Gradient of log q(category | x_t, t) by x_t, (B, C, h, w), of each row's own category.

    Args:
        classifier: (B, C, h, w) and log of sigma / alpha, (B,) -> (B, K) logits.
        schedule: Noise levels.
        x_t: (B, C, h, w).
        t: (B,) timesteps.
        category: (B,) wanted levels.
    """
    # Outside of inference mode, whose tensors autograd refuses; hence the clones. In full
    # precision, because the guidance scale multiplies what rounding does to it.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(x_t.device.type, enabled=False),
    ):
        x = x_t.clone().to(torch.promote_types(x_t.dtype, torch.float32)).requires_grad_(True)
        logits = classifier(x, log_noise(schedule, t.clone()))
        chosen = logits.log_softmax(1).gather(1, category.clone()[:, None])
        (gradient,) = torch.autograd.grad(chosen.sum(), x)
    return gradient


def guided(prediction: Prediction, gradient: Tensor, scale: float) -> Prediction:
    """The prediction with its noise moved by -scale sigma gradient, in its own parameterisation.

    Source: Dhariwal and Nichol, arXiv 2105.05233, algorithm 2.
    """
    shift = -scale * prediction.sigma * gradient  # of the noise, at fixed x_t
    # Bounded, for a schedule that ends without signal.
    alpha = prediction.alpha.clamp(min=1e-3)
    if prediction.kind == "sample":
        shift = -prediction.sigma / alpha * shift
    elif prediction.kind == "v_prediction":
        shift = shift / alpha
    return prediction.with_value(prediction.value + shift)


class ClassifierTraining:
    """Learns one attribute from noised reference images.

    Args:
        method: Its parameters.
        images: The reference set.
        labels: (N,) levels of the attribute.
        levels: K of them.
        preparation: Gives the seed.
    """

    def __init__(
        self,
        method: FairGenDistilled,
        images: NoisedImages,
        labels: np.ndarray[Any, Any],
        levels: int,
        preparation: Preparation,
    ) -> None:
        self.method, self.images, self.preparation = method, images, preparation
        self.device = images.latents.device
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        seeds = np.random.SeedSequence([preparation.seed, Stream.TRAINING, 2**31])
        rng = np.random.default_rng(seeds)
        order = rng.permutation(len(images))
        self.held_out, self.seen = np.split(order, [max(1, len(order) // HELD_OUT)])
        with seeded_modules(preparation.seed):
            network = NoisedClassifier(images.latents.shape[1], levels)
        self.network = network.to(self.device)
        # The same noise at each validation, at timesteps spread evenly over the schedule.
        steps = len(images.backbone.schedule)
        self.held_t = torch.from_numpy(
            rng.permutation((np.arange(len(self.held_out)) + 0.5) / len(self.held_out) * steps)
        ).long()
        noise = rng.standard_normal((len(self.held_out), *images.latents.shape[1:]))
        self.held_noise = torch.from_numpy(noise).float().to(self.device)

    def logits(self, index: np.ndarray[Any, Any], t: Tensor, noise: Tensor) -> Tensor:
        """(B, K) of the images `index`, noised."""
        batch = self.images.at(index, t, noise, None)
        level = log_noise(self.images.backbone.schedule, t).to(self.device)
        logits: Tensor = self.network(batch.x_t, level)
        return logits

    def loss(self, draws: Draws) -> Tensor:
        """Cross-entropy of a batch at timesteps spread evenly over the schedule."""
        index = draws.rng.choice(self.seen, draws.rows, replace=draws.rows > len(self.seen))
        t = (draws.stratified() * len(self.images.backbone.schedule)).long().to(self.device)
        noise = draws.gaussian(draws.rows, *self.images.latents.shape[1:])
        return functional.cross_entropy(self.logits(index, t, noise), self.labels[index])

    @torch.no_grad()
    def held_out_logits(self) -> Tensor:
        """(M, K) of the held-out images."""
        return self.logits(self.held_out, self.held_t.to(self.device), self.held_noise)

    def held_out_loss(self) -> float:
        """Cross-entropy of the held-out images."""
        return float(functional.cross_entropy(self.held_out_logits(), self.labels[self.held_out]))

    def run(self, content: Mapping[str, Any], what: str) -> dict[str, Any]:
        """Train or load; facts for the record."""
        plan = TrainingPlan(
            self.method.classifier_iterations,
            CLASSIFIER_BATCH,
            self.method.classifier_learning_rate,
            warmup=min(20, self.method.classifier_iterations // 10),
            ema_decay=0.99,
        )
        facts = train_or_load(
            self.network,
            "fairgen_distilled-classifier",
            content,
            plan,
            self.loss,
            self.preparation,
            device=self.device,
            what=f"training {what} classifier",
            validate=self.held_out_loss,
        )
        self.network.requires_grad_(False).eval()
        right = (self.held_out_logits().argmax(1) == self.labels[self.held_out]).cpu().double()
        quarter = len(self.images.backbone.schedule) / 4
        accuracy = {
            f"t of quarter {q + 1}": float(right[(self.held_t / quarter).long() == q].mean())
            for q in range(4)
            if bool(((self.held_t / quarter).long() == q).any())
        }
        return {**facts, "held_out_accuracy": accuracy}


def adapted_linears(unet: nn.Module, layers: str) -> dict[str, nn.Linear]:
    """The linear maps that `layers` names: ``attention``, ``time`` or ``both``."""
    found: dict[str, nn.Linear] = {}
    if layers != "time":
        found |= attention_linears(unet)
    if layers != "attention":
        found |= time_linears(unet)
    if not found:
        raise ContractError(f"expected linear maps of {layers} in the U-Net, found none")
    return found


def distillation_loss(
    backbone: Backbone,
    bank: AdapterBank,
    classifier: nn.Module,
    images: NoisedImages,
    draws: Draws,
    scale: float,
) -> Tensor:
    """Error of the adapted prediction, as a share of what guidance moves: 1 at the start.

    Each row has one category, and only its adapter is on, so that the gradients are those of
    separate trainings.
    """
    schedule, device = backbone.schedule, images.latents.device
    size = len(images)
    index = draws.rng.choice(size, draws.rows, replace=draws.rows > size)
    t = (draws.stratified() * len(schedule)).long().to(device)
    levels = len(bank.categories)
    category = torch.from_numpy(draws.rng.permutation(np.arange(draws.rows) % levels)).to(device)
    x_t = images.at(index, t, draws.gaussian(draws.rows, *images.latents.shape[1:]), None).x_t
    gradient = log_likelihood_gradient(classifier, schedule, x_t, t, category)
    plain = backbone.predict(x_t, t, None)
    target = guided(plain, gradient, scale).value
    moved = (target - plain.value).square().mean()
    with bank.gated(functional.one_hot(category, levels).float()):
        adapted = backbone.predict(x_t, t, None).value.float()
    return (adapted - target).square().mean() / moved.clamp(min=1e-12)


class GuidedSampler(IndicatedSampler):
    """DDIM guided by classifiers of noised images, one an attribute.

    Args:
        backbone: Frozen.
        config: Steps.
        indicator: Draws the group of an image.
        classifiers: One an attribute of the task.
        cells: (K, A) level of each attribute, for each group.
        scale: Of the guidance.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: SamplingConfig,
        indicator: Indicator,
        classifiers: Sequence[nn.Module],
        cells: Tensor,
        scale: float,
    ) -> None:
        super().__init__(backbone, config, indicator)
        self.classifiers, self.cells, self.scale = classifiers, cells, scale
        self.extra_parameters = sum(p.numel() for one in classifiers for p in one.parameters())

    def branch(
        self,
        name: str,
        context: Tensor | None,
        requests: Sequence[Request],
        groups: Sequence[int | None],
    ) -> Denoiser:
        """The branch, its noise moved by the classifiers' gradients."""
        plain = super().branch(name, context, requests, groups)
        backbone = self.backbone
        wanted = self.cells[[group for group in groups if group is not None]]
        fill = backbone.network_batch - len(requests)  # see Backbone.predict
        wanted = functional.pad(wanted, (0, 0, 0, fill)).to(backbone.device)

        def denoise(x: Tensor, t: int) -> Prediction:
            full = functional.pad(x, (0, 0) * (x.ndim - 1) + (0, fill))
            times = torch.full((len(full),), t, device=x.device)
            total = torch.zeros_like(x)
            for attribute, classifier in enumerate(self.classifiers):
                total += log_likelihood_gradient(
                    classifier, backbone.schedule, full, times, wanted[:, attribute]
                )[: len(x)]
            return guided(plain(x, t), total, self.scale)

        return denoise


class DistilledSampler(IndicatedSampler):
    """DDIM with the adapters of each image's own group on.

    Args:
        backbone: Frozen.
        config: Steps.
        indicator: Draws the group of an image.
        bank: Adapters of all attributes of the task.
        gates: (K, C) gates of each group.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: SamplingConfig,
        indicator: Indicator,
        bank: AdapterBank,
        gates: Tensor,
    ) -> None:
        super().__init__(backbone, config, indicator)
        self.bank, self.gates = bank, gates
        self.extra_parameters = sum(p.numel() for p in bank.parameters())

    def branch(
        self,
        name: str,
        context: Tensor | None,
        requests: Sequence[Request],
        groups: Sequence[int | None],
    ) -> Denoiser:
        """The branch with each image's own adapters on."""
        own = [group for group in groups if group is not None]
        gates = self.bank.acting(self.gates[own])
        plain = super().branch(name, context, requests, groups)
        return within(plain, lambda: self.bank.gated(gates))


def prepare(
    method: FairGenDistilled,
    task: Task,
    backbone: Backbone,
    data: TrainingData,
    preparation: Preparation,
) -> Sampler:
    """Train or load the classifiers of the task's attributes and, to distil, their adapters."""
    unet = required(backbone, Trainable, method.card.name).network
    reference = data.reference
    if reference is None or reference.labels is None:
        raise ContractError("fairgen_distilled expects a labelled reference set")
    images = NoisedImages(backbone, [reference], data.subjects)
    shared = {
        "method": "fairgen_distilled",
        "version": method.version,
        "backbone": backbone.weights_sha256,
        "data": images_sha256(reference),
    }
    indicator = Indicator.of(method.indicator, task.target, preparation)
    classifiers, banks = [], []
    facts: dict[str, Any] = {"training_seconds": 0.0, "classifier": {}, "normalised_loss": {}}
    for attribute, levels in task.attributes.items():
        labels = reference.labels[attribute]
        learner = ClassifierTraining(method, images, labels, len(levels), preparation)
        content = {**shared, "attribute": attribute, "levels": list(levels)}
        seen = learner.run(content, attribute)
        facts["training_seconds"] += seen["seconds"]
        facts["classifier"][attribute] = seen
        classifiers.append(learner.network)
        if method.distil:
            bank, seen = _distil(
                method, backbone, attribute, levels, learner, content, preparation
            )
            facts["training_seconds"] += seen["seconds"]
            facts["normalised_loss"][attribute] = seen["loss_last_tenth"]
            banks.append(bank)
    sampler: GuidedSampler | DistilledSampler
    if method.distil:
        bank = joined(backbone, banks, method.rank, adapted_linears(unet, method.layers))
        facts["parameters_a_category"] = bank.parameters_a_category
        gates = group_gates(bank, list(task.attributes), task.cells, method.strength)
        sampler = DistilledSampler(backbone, preparation.sampling, indicator, bank, gates)
    else:
        cells = [
            [names.index(level) for names, level in zip(task.attributes.values(), c, strict=True)]
            for c in task.cells
        ]
        del facts["normalised_loss"]
        sampler = GuidedSampler(
            backbone,
            preparation.sampling,
            indicator,
            classifiers,
            torch.tensor(cells),
            method.scale,
        )
    sampler.facts = facts
    return sampler


def _distil(
    method: FairGenDistilled,
    backbone: Backbone,
    attribute: str,
    levels: Sequence[str],
    learner: ClassifierTraining,
    content: Mapping[str, Any],
    preparation: Preparation,
) -> tuple[AdapterBank, dict[str, Any]]:
    """The trained adapters of one attribute, and facts of their training."""
    unet = required(backbone, Trainable, method.card.name).network
    bank = AdapterBank(
        unet,
        [f"{attribute}={level}" for level in levels],
        adapted_linears(unet, method.layers),
        rank=method.rank,
        seed=initial_seed(preparation.seed, attribute),
    )
    classifier = learner.network

    def loss(draws: Draws) -> Tensor:
        return distillation_loss(backbone, bank, classifier, learner.images, draws, method.scale)

    facts = train_or_load(
        bank,
        "fairgen_distilled-adapters",
        {
            **content,
            "classifier": [method.classifier_iterations, method.classifier_learning_rate],
            "scale": method.scale,
            "layers": method.layers,
            "rank": method.rank,
        },
        TrainingPlan(
            method.iterations,
            method.batch,
            method.learning_rate,
            warmup=min(10, method.iterations // 10),
            weight_decay=0.0,
            ema_decay=0.95,
        ),
        loss,
        preparation,
        device=learner.device,
        what=f"training {attribute} adapters",
    )
    return bank.requires_grad_(False), facts
