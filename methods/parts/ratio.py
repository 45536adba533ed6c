"""Ratio of the reference set's density to the biased set's, at every noise level.

Two ways to it by a network: one that tells noised reference images from noised biased ones, and,
with labels, a noised group classifier from which the ratio follows exactly. ``mixture_ratio.py``
has two without.

Source: Kim et al., Training unbiased diffusion models from biased dataset, arXiv 2403.01189, whose
time-dependent discriminator the first one is; Sugiyama et al., Density ratio estimation, 2012.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import ImageSet, Preparation
from fairbench.diffusion.backbone import Backbone, Trainable, required
from fairbench.diffusion.sampling import Stream
from fairbench.diffusion.schedule import Schedule
from fairbench.diffusion.training import Draws, seeded_modules, train_or_load
from fairbench.methods.parts.denoising import mixed_index
from fairbench.methods.parts.finetuning import NoisedImages, images_sha256, module_sha256
from fairbench.methods.parts.networks import ImageNetwork
from fairbench.methods.parts.reweighted import Reweighted

__all__ = [
    "FittedRatio",
    "Ratio",
    "RatioBank",
    "RatioSets",
    "TrainedRatio",
    "balanced_cross_entropy",
    "effective_share",
    "fit_ratio",
    "log_ratios",
    "noise_range",
    "noise_shares",
    "noised",
    "ratio_content",
    "saturated_share",
]

SATURATED = math.log(25)
"""A log ratio beyond this is the network's certainty, not the data's."""
LARGEST = 25.0
"""Log ratios are cut off here before their exponential is averaged for the record."""
HELD_OUT_ROWS = 512
"""Noised held-out rows of each set that a validation sees."""
CHUNK = 128
BANDS = 4
# Apart from the trainer's own streams, which count steps from 0.
SPLIT, BANK = 2**31, 2**31 + 1


def noise_range(schedule: Schedule) -> tuple[float, float]:
    """Lowest and highest finite log(sigma / alpha) of a schedule."""
    snr = schedule.snr(torch.arange(len(schedule)))
    levels = -0.5 * snr[(snr > 0) & torch.isfinite(snr)].log()
    return float(levels.min()), float(levels.max())


def noise_shares(level: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma of log noise levels, with alpha² + sigma² = 1; same shape as `level`."""
    return torch.sigmoid(-2 * level).sqrt(), torch.sigmoid(2 * level).sqrt()


def noised(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Images with noise, alpha clean + sigma noise, (B, C, h, w), at log noise levels (B,)."""
    alpha, sigma = (part.to(clean.dtype)[:, None, None, None] for part in noise_shares(level))
    return alpha * clean + sigma * noise


def balanced_cross_entropy(logit: Tensor, reference: Tensor) -> Tensor:
    """Mean cross-entropy of the two classes at equal weight, a scalar; log 2 knows nothing.

    Args:
        logit: (B,) log odds of being a reference image.
        reference: (B,) bool, which rows are; both kinds must occur.
    """
    missed = functional.softplus(-logit[reference]).mean()
    return 0.5 * (missed + functional.softplus(logit[~reference]).mean())


@dataclass(frozen=True)
class RatioSets:
    """Latents of the biased and the reference set, one after the other, split for fitting.

    Attributes:
        latents: (N, C, h, w) float32.
        caption: (N,) int64 caption of each image; -1 for the empty one.
        reference: (N,) bool, which are reference images.
        fit, held: Rows to fit on and rows held out, of the biased and of the reference set.
        cell: (N,) int64 labelled group of each image, or None without labels.
    """

    latents: Tensor
    caption: Tensor
    reference: Tensor
    fit: tuple[NDArray[np.int64], NDArray[np.int64]]
    held: tuple[NDArray[np.int64], NDArray[np.int64]]
    cell: NDArray[np.int64] | None = None

    @classmethod
    def split(
        cls,
        images: NoisedImages,
        sizes: Sequence[int],
        held_out: float,
        seed: int,
        cell: NDArray[np.int64] | None = None,
    ) -> RatioSets:
        """Hold a random share of each set out; at least one image stays on either side.

        Raises:
            InputError: If a set has fewer than two images.
        """
        rng = np.random.default_rng(np.random.SeedSequence([seed, Stream.TRAINING, SPLIT]))
        fit, held, start = [], [], 0
        for size in sizes:
            if size < 2:
                raise InputError(f"a density ratio needs at least 2 images a set; seen {size}")
            rows = start + rng.permutation(size)
            kept = min(max(round(held_out * size), 1), size - 1)
            held.append(rows[:kept])
            fit.append(rows[kept:])
            start += size
        device = images.latents.device
        captions = torch.from_numpy(images.subjects.astype(np.int64)).to(device)
        return cls(
            images.latents,
            torch.full_like(captions, -1) if images.contexts is None else captions,
            (torch.arange(start) >= sizes[0]).to(device),
            (fit[0], fit[1]),
            (held[0], held[1]),
            cell,
        )


class Ratio(nn.Module, ABC):
    """Noised images -> log of the density ratio; a row depends on itself alone."""

    @abstractmethod
    def forward(self, x: Tensor, level: Tensor, caption: Tensor) -> Tensor:
        """(B, C, h, w), log(sigma / alpha) (B,), captions (B,), -1 for the empty one -> (B,)."""

    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest log ratio that is possible, if the method may know."""
        return None

    def attainable(self) -> float | None:
        """Lowest held-out cross-entropy that is possible without noise, if it may know."""
        return None


class TrainedRatio(Ratio):
    """A ratio with parameters that are trained on noised rows."""

    @abstractmethod
    def draw(self, sets: RatioSets, draws: Draws) -> NDArray[np.int64]:
        """Rows of a training step."""

    @abstractmethod
    def loss(self, sets: RatioSets, index: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Training loss of the noised rows `index`, a scalar."""


class NetworkRatio(TrainedRatio):
    """Logit of a network that tells noised reference images from noised biased ones.

    One output a caption and one for the empty caption: a text-to-image network learns the
    distribution given its prompt, so that its correction is the gradient given the same prompt.

    Args:
        channels: Of the latents.
        captions: How many captions there are, 0 for an unconditional backbone.
        width: Channels of the first stage.
    """

    def __init__(self, channels: int, captions: int, width: int) -> None:
        super().__init__()
        self.heads = captions + 1
        self.net = ImageNetwork(channels, self.heads, width)

    def forward(self, x: Tensor, level: Tensor, caption: Tensor) -> Tensor:
        """The logit of each row's own caption."""
        return self._of(self.net(x, level), caption)

    def _of(self, logits: Tensor, caption: Tensor) -> Tensor:
        # -1 becomes the last output; without captions every caption becomes the only one.
        head = caption.remainder(self.heads) if self.heads > 1 else torch.zeros_like(caption)
        return logits.gather(1, head[:, None])[:, 0]

    def draw(self, sets: RatioSets, draws: Draws) -> NDArray[np.int64]:
        """Half of the rows from each set."""
        half = draws.rows // 2
        rows = mixed_index(draws.rng, [len(part) for part in sets.fit], [draws.rows - half, half])
        return np.concatenate(sets.fit)[rows]

    def loss(self, sets: RatioSets, index: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Cross-entropy given the own caption and given the empty one, at equal weight."""
        logits = self.net(x, level)
        reference, caption = sets.reference[index], sets.caption[index]
        own = balanced_cross_entropy(self._of(logits, caption), reference)
        if self.heads == 1:
            return own
        return 0.5 * (own + balanced_cross_entropy(logits[:, -1], reference))


class GroupRatio(TrainedRatio):
    """The ratio that follows from labels: w_t(x) = sum_z p_bias(z | x_t) p_ref(z) / p_bias(z).

    It holds where the two sets differ in the shares of the groups z alone. The network's K outputs
    are log p(x_t | z) up to a constant common to all groups: it is trained to name the group of
    images drawn as they come, with the log shares of the groups added to its outputs.

    Source: card of time-dependent reweighting, section 2.1, fact 3; Menon et al., Long-tail
        learning via logit adjustment, arXiv 2007.07314.

    Args:
        channels: Of the latents.
        shares: (2, K) shares of the groups in the biased and in the reference set, above 0.
        cell_caption: (K,) caption that all images of a group have.
        width: Channels of the first stage.
    """

    log_shares: Tensor
    cell_caption: Tensor

    def __init__(self, channels: int, shares: Tensor, cell_caption: Tensor, width: int) -> None:
        super().__init__()
        self.net = ImageNetwork(channels, shares.shape[1], width)
        self.register_buffer("log_shares", shares.log().float())
        self.register_buffer("cell_caption", cell_caption)

    def forward(self, x: Tensor, level: Tensor, caption: Tensor) -> Tensor:
        """The log ratio over the groups that each row's caption allows."""
        elsewhere = (caption[:, None] >= 0) & (caption[:, None] != self.cell_caption)
        likelihood = self.net(x, level).masked_fill(elsewhere, -torch.inf)
        biased, reference = (torch.logsumexp(likelihood + part, 1) for part in self.log_shares)
        return reference - biased

    def draw(self, sets: RatioSets, draws: Draws) -> NDArray[np.int64]:
        """Rows of both sets as they come."""
        rows = np.concatenate(sets.fit)
        return draws.rng.choice(rows, draws.rows, replace=draws.rows > len(rows))

    def loss(self, sets: RatioSets, index: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Cross-entropy of the group."""
        if sets.cell is None:
            raise ContractError("expected labelled images, seen none")
        cell = torch.from_numpy(sets.cell).to(x.device)
        fitted = cell[torch.from_numpy(np.concatenate(sets.fit)).to(x.device)]
        seen = torch.bincount(fitted, minlength=self.log_shares.shape[1]).clamp(min=0.5)
        return functional.cross_entropy(self.net(x, level) + seen.log(), cell[index])

    def bounds(self) -> tuple[float, float]:
        """Range of the log ratio: those of the groups."""
        ratio = self.log_shares[1] - self.log_shares[0]
        return float(ratio.min()), float(ratio.max())

    def attainable(self) -> float:
        """Balanced cross-entropy of the ratios of known groups."""
        ratio = (self.log_shares[1] - self.log_shares[0]).double()
        biased, reference = self.log_shares.double().exp()
        missed = (reference * functional.softplus(-ratio)).sum()
        return float(0.5 * (missed + (biased * functional.softplus(ratio)).sum()))


def labelled_cells(
    sets: Sequence[ImageSet], attributes: Sequence[str]
) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """Groups that labels make in two sets, biased and reference: all crossings that occur.

    Args:
        sets: With labels.
        attributes: Which labels are crossed, with each other and with the caption. Few, or most
            crossings have too few reference images for a ratio of shares.
    Returns:
        (N,) group of each image, (2, K) float64 shares in the two sets, (K,) caption of each.
        A group that one set lacks counts as half an image there: its ratio must be finite.
    """
    columns = []
    for part in sets:
        if part.labels is None:
            raise ContractError("expected labelled images, seen none")
        own = [part.labels[name] for name in attributes]
        columns.append(np.stack([part.subjects, *own], 1).astype(np.int64))
    names, cell = np.unique(np.concatenate(columns), axis=0, return_inverse=True)
    cell = cell.reshape(-1).astype(np.int64)
    parts = np.split(cell, [len(sets[0])])
    counts = np.stack([np.bincount(part, minlength=len(names)) for part in parts]).clip(0.5)
    shares = counts / counts.sum(1, keepdims=True)
    return cell, torch.from_numpy(shares), torch.from_numpy(names[:, 0].copy())


@torch.no_grad()
def log_ratios(ratio: Ratio, x: Tensor, level: Tensor, caption: Tensor) -> Tensor:
    """(N,) log ratios of many rows, in chunks."""
    chunks = zip(*(torch.split(part, CHUNK) for part in (x, level, caption)), strict=True)
    return torch.cat([ratio(*chunk) for chunk in chunks])


class RatioBank:
    """Held-out rows of both sets, equally many, noised once and for all.

    Args:
        sets: The sets.
        levels: Range of the log noise levels; None: clean images.
        seed: The run's seed.
    """

    def __init__(self, sets: RatioSets, levels: tuple[float, float] | None, seed: int) -> None:
        rng = np.random.default_rng(np.random.SeedSequence([seed, Stream.TRAINING, BANK]))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        device = sets.latents.device
        index, level = [], []
        for rows in sets.held:
            index.append(rng.permutation(np.resize(rows, HELD_OUT_ROWS)))
            level.append((np.arange(HELD_OUT_ROWS) + rng.random(HELD_OUT_ROWS)) / HELD_OUT_ROWS)
        at = torch.from_numpy(np.concatenate(index)).to(device)
        self.spread = torch.from_numpy(np.concatenate(level))  # float64, which MPS has not
        clean, self.caption = sets.latents[at], sets.caption[at]
        self.reference = sets.reference[at]
        noise = torch.randn(clean.shape, generator=draws).to(device)
        self.x, self.level = _at_level(clean, noise, self.spread, levels)

    def log_ratios(self, ratio: Ratio) -> Tensor:
        """(R,) log ratio of every row given its own caption."""
        return log_ratios(ratio, self.x, self.level, self.caption)

    def validate(self, ratio: Ratio) -> float:
        """Cross-entropy, averaged over the log noise level."""
        return float(balanced_cross_entropy(self.log_ratios(ratio), self.reference))

    def facts(self, ratio: Ratio, levels: tuple[float, float] | None) -> dict[str, Any]:
        """What the record says of the ratio, over all levels and by band of them."""
        logit = self.log_ratios(ratio).cpu().double()
        facts = self._summary(logit, self.spread >= 0)
        if levels is not None:
            band = (self.spread * BANDS).long()
            width = (levels[1] - levels[0]) / BANDS
            facts["bands"] = [
                {
                    "log_noise": [levels[0] + i * width, levels[0] + (i + 1) * width],
                    **self._summary(logit, band == i),
                }
                for i in range(BANDS)
            ]
        known = ratio.bounds()
        if known is not None:
            facts["bounds"] = list(known)
            facts["attainable_cross_entropy"] = ratio.attainable()
        return facts

    def _summary(self, logit: Tensor, rows: Tensor) -> dict[str, Any]:
        logit, reference = logit[rows], self.reference.cpu()[rows]
        weight = logit[~reference].clamp(max=LARGEST).exp()
        return {
            "held_out_cross_entropy": float(balanced_cross_entropy(logit, reference)),
            "mean_ratio_of_biased": float(weight.mean()),
            "effective_sample_share": effective_share(weight),
            "saturated_share": saturated_share(logit),
            "log_ratio_range": [float(logit.min()), float(logit.max())],
        }


def effective_share(weight: Tensor) -> float:
    """Effective sample size (sum w)² / sum w² of (N,) weights, as a share of N; 0 if all are 0."""
    return float(weight.mean() ** 2 / weight.square().mean().clamp(min=1e-30))


def saturated_share(logit: Tensor) -> float:
    """Share of log ratios outside ±log 25."""
    return float((logit.abs() > SATURATED).float().mean())


def _at_level(
    clean: Tensor, noise: Tensor, spread: Tensor, levels: tuple[float, float] | None
) -> tuple[Tensor, Tensor]:
    """Images noised at log-uniform levels, and these; clean images at level 0 without a range."""
    if levels is None:
        return clean, torch.zeros(len(clean), device=clean.device)
    low, high = levels
    level = (low + (high - low) * spread).float().to(clean.device)
    return noised(clean, noise, level), level


@dataclass(frozen=True)
class FittedRatio:
    """A frozen ratio and what the record says of it.

    Attributes:
        ratio: In eval mode, without gradients to its parameters.
        facts: For the record.
        seconds: Of its training.
        sha256: Hash of its weights.
        held: Rows of the biased and of the reference set that it wasn't fitted to.
    """

    ratio: Ratio
    facts: Mapping[str, Any]
    seconds: float
    sha256: str
    held: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None


def ratio_content(
    method: Reweighted,
    backbone: Backbone,
    parts: Sequence[ImageSet],
    labels: Sequence[str],
    levels: tuple[float, float] | None,
) -> dict[str, Any]:
    """What every fitted ratio depends on, for the key that it is kept under.

    Args:
        method: Its name, version and held-out share.
        backbone: Whose latents the ratio is of.
        parts: The two sets.
        labels: Attributes that it knows.
        levels: Range of log noise levels; None for clean images.
    """
    return {
        "method": method.card.name,
        "version": method.version,
        "backbone": backbone.weights_sha256,
        "data": images_sha256(*parts),
        "labels": list(labels),
        "levels": levels,
        "held_out": method.held_out,
    }


def fit_ratio(
    method: Reweighted,
    backbone: Backbone,
    images: NoisedImages,
    parts: Sequence[ImageSet],
    preparation: Preparation,
    *,
    labels: Sequence[str] = (),
    levels: tuple[float, float] | None,
) -> FittedRatio:
    """Train the ratio on all but the held-out images, or load it; then it is frozen.

    Args:
        method: Steps, batch, held-out share.
        backbone: Whose latents these are.
        images: Latents of the biased set, then of the reference set.
        parts: The two sets.
        preparation: Seed, cache, progress.
        labels: Attributes whose groups a classifier tells apart; none: a discriminator.
        levels: Range of the log noise levels; None: clean images alone.
    Raises:
        InputError: If the backbone has no network to train afterwards, or a set is too small.
    """
    required(backbone, Trainable, method.card.name)
    seed, device = preparation.seed, backbone.device
    channels, width = backbone.latent_shape[0], method.ratio_width
    ratio: TrainedRatio
    cell = None
    with seeded_modules(seed):
        if labels:
            cell, shares, cell_caption = labelled_cells(parts, labels)
            ratio = GroupRatio(channels, shares, cell_caption, width)
        else:
            captions = 0 if images.contexts is None else len(images.contexts) - 1
            ratio = NetworkRatio(channels, captions, width)
    ratio.to(device)
    sizes = [len(part) for part in parts]
    sets = RatioSets.split(images, sizes, method.held_out, seed, cell)
    bank = RatioBank(sets, levels, seed)

    def loss_of(draws: Draws) -> Tensor:
        index = torch.from_numpy(ratio.draw(sets, draws)).to(device)
        spread, clean = draws.stratified(), sets.latents[index]
        x, level = _at_level(clean, draws.gaussian(*clean.shape), spread, levels)
        return ratio.loss(sets, index, x, level)

    content = {
        **ratio_content(method, backbone, parts, labels, levels),
        "width": width,
    }
    training = train_or_load(
        ratio,
        f"{method.card.name}-ratio",
        content,
        method.ratio_plan(),
        loss_of,
        preparation,
        device=device,
        what="training the density ratio",
        validate=lambda: bank.validate(ratio),
    )
    ratio.requires_grad_(False).eval()
    kind = "labelled_network" if labels else "network"
    facts = {"kind": kind, **bank.facts(ratio, levels), "training": training}
    return FittedRatio(ratio, facts, training["seconds"], module_sha256(ratio), sets.held)
