"""The density ratio of two sets in closed form: Gaussian groups whose shares differ.

Both sets are taken to be mixtures of the same groups with other shares. Groups are normal in
latent space with one common covariance, so that with noise they stay normal, and the ratio and
its gradient follow at every noise level without a network. Who belongs to which group is found
from set membership alone, or given by labels.

Source: own, for the ratio that arXiv 2403.01189 learns by a network: with equal groups it is
sum_k p_ref(k) N_k / sum_k p_bias(k) N_k.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fairbench.core.errors import ContractError
from fairbench.core.method import ImageSet, Preparation, TrainingData
from fairbench.diffusion.backbone import Backbone, Bottleneck, Trainable, required
from fairbench.diffusion.devices import made_once, resolve_autocast
from fairbench.diffusion.sampling import Stream
from fairbench.methods.parts.finetuning import NoisedImages, module_sha256
from fairbench.methods.parts.latents import whole
from fairbench.methods.parts.ratio import (
    FittedRatio,
    Ratio,
    RatioBank,
    RatioSets,
    balanced_cross_entropy,
    noise_range,
    noise_shares,
    ratio_content,
)
from fairbench.storage.cache import load_arrays, save_arrays

if TYPE_CHECKING:
    from fairbench.methods.tiw import TimeDependentReweighting

__all__ = [
    "GaussianGroups",
    "MixtureRatio",
    "bottleneck_features",
    "correction_agreement",
    "differing_attributes",
    "fit_mixture",
    "infer_members",
    "principal_directions",
]

WIDEST, REDUCED = 1024, 300
"""Latents of more numbers than the first are seen along this many principal directions."""
FEATURES, FEATURE_PLACE = 30, 0.1
"""Principal components of the bottleneck that memberships start from, read at this timestep."""
FIRST_STEPS, FIRST_RATE, FIRST_DECAY = 250, 0.05, 0.003
DIRECTIONS = 100
"""Directions of largest variance within groups in which memberships are made better."""
STEPS, RATE, ROWS = 400, 0.01, 512
NEARLY_CLEAN = 0.4
"""Share of the rows of a step with the lowest noise level, where the sets differ the most."""
PSEUDO = 50.0
"""Images' worth of trust in a group's mean being that of its caption plus that of the group."""
SMALLEST_SHARE = 1e-4
AGREEMENT_PLACES = (0.999, 0.96, 0.92, 0.88, 0.8, 0.7, 0.6, 0.4, 0.2)
AGREEMENT_ROWS = 256
_FEATURE_NOISE, _MEMBERS, _AGREEMENT = 2**31 + 2, 2**31 + 3, 2**31 + 4


def _sequence(seed: int, *purpose: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, Stream.TRAINING, *purpose])


def _generator(seed: int, *purpose: int) -> torch.Generator:
    state = _sequence(seed, *purpose).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


# Gaussian groups


@dataclass(frozen=True)
class GaussianGroups:
    """Groups within captions, normal with one covariance, and their shares in two sets.

    Attributes:
        basis: (D, R) orthonormal directions in latent space.
        variance: (R,) of every group along them.
        means: (C, K, R) of each caption's groups along them.
        shares: (2, C, K) of the groups given the caption, in the biased and the reference set.
        captions: (C,) share of each caption, in both sets.
    """

    basis: Tensor
    variance: Tensor
    means: Tensor
    shares: Tensor
    captions: Tensor

    @classmethod
    def fitted(
        cls,
        rows: Tensor,
        caption: Tensor,
        reference: Tensor,
        member: Tensor,
        captions: int,
        *,
        pooled: bool,
    ) -> GaussianGroups:
        """Means, covariance and shares of groups whose members are known.

        The mean of a caption's group is drawn, by 50 images' worth, to the sum of a caption's and
        a group's part, for of some groups there are few images.

        Args:
            rows: (N, D) float32, images of both sets.
            caption: (N,) in 0 … captions - 1.
            reference: (N,) bool, which are of the reference set.
            member: (N, K) memberships, rows sum to 1.
            captions: C.
            pooled: Whether the reference set's shares are the same whatever the caption.
        """
        groups = member.shape[1]
        own = functional.one_hot(caption, captions).to(rows.dtype)
        mass = own.T @ member
        total = torch.stack([own.T @ (rows * member[:, [k]]) for k in range(groups)], 1)
        means = (total + PSEUDO * _additive(mass, total)) / (mass + PSEUDO)[..., None]
        flat, sums = means.flatten(0, 1).double(), total.flatten(0, 1).double()
        crossed = sums.T @ flat
        within = (flat.T * mass.flatten()) @ flat - crossed - crossed.T
        covariance = ((rows.T @ rows).double() + within) / len(rows)
        variance, basis = torch.linalg.eigh(covariance)
        basis = basis.flip(1).to(rows.dtype)
        biased = _shares(own[~reference], member[~reference])
        other = _shares(own[reference], member[reference])
        if pooled:
            other = member[reference].mean(0).expand_as(biased)
        return cls(
            basis,
            variance.flip(0).clamp(min=1e-6).to(rows.dtype),
            means @ basis,
            torch.stack([biased, other]),
            own.mean(0),
        )

    def likelihoods(self, along: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log density of noised rows given caption and group, up to what these have in common.

        Args:
            along: (B, R) noised rows along the basis.
            alpha: (B,) share of the clean image.
            sigma: (B,) share of noise.
        Returns:
            (B, C, K).
        """
        inverse = 1 / (alpha.square()[:, None] * self.variance + sigma.square()[:, None])
        means = self.means.flatten(0, 1)
        crossed = alpha[:, None] * ((along * inverse) @ means.T)
        square = 0.5 * alpha.square()[:, None] * (inverse @ means.square().T)
        captions, groups = self.means.shape[:2]
        return (crossed - square).reshape(len(along), captions, groups)


def _additive(mass: Tensor, total: Tensor) -> Tensor:
    """(C, K, D) sums of a caption's and a group's part that fit means best, by least squares.

    Args:
        mass: (C, K) images of each.
        total: (C, K, D) sums of them.
    """
    captions, groups = mass.shape
    normal = torch.zeros(captions + groups, captions + groups, dtype=torch.float64)
    normal[:captions, :captions] = mass.sum(1).diag()
    normal[captions:, captions:] = mass.sum(0).diag()
    normal[:captions, captions:] = mass
    normal[captions:, :captions] = mass.T
    normal += 1e-3 * torch.eye(captions + groups, dtype=torch.float64)
    wanted = torch.cat([total.sum(1), total.sum(0)]).double()
    parts: Tensor = torch.linalg.solve(normal, wanted).to(total.dtype)
    return parts[:captions, None] + parts[None, captions:]


def _shares(own: Tensor, member: Tensor) -> Tensor:
    """(C, K) shares of the groups among each caption's images; among all where it has none."""
    mass = own.T @ member
    whole = mass.sum(0) / mass.sum()
    given = mass / mass.sum(1, keepdim=True).clamp(min=1e-12)
    shares = torch.where(mass.sum(1, keepdim=True) > 0, given, whole).clamp(min=SMALLEST_SHARE)
    normal: Tensor = shares / shares.sum(1, keepdim=True)
    return normal


class MixtureRatio(Ratio):
    """The log ratio of two mixtures of Gaussian groups; of several fits, the mean log ratio.

    Args:
        fits: Several fits to the same sets.
    """

    def __init__(self, fits: Sequence[GaussianGroups]) -> None:
        super().__init__()
        self.count = len(fits)
        for i, fit in enumerate(fits):
            for name, value in vars(fit).items():
                self.register_buffer(f"{name}_{i}", value)

    def bounds(self) -> tuple[float, float]:
        """Range of the log ratio: that of the groups' shares, the mean over fits."""
        logs = [self.groups(i).shares.log() for i in range(self.count)]
        parts = [(part[1] - part[0]) for part in logs]
        low = sum(float(part.min()) for part in parts) / self.count
        return low, sum(float(part.max()) for part in parts) / self.count

    def groups(self, fit: int) -> GaussianGroups:
        """One of the fits."""
        return GaussianGroups(
            *(self.get_buffer(f"{name}_{fit}") for name in GaussianGroups.__dataclass_fields__)
        )

    def forward(self, x: Tensor, level: Tensor, caption: Tensor) -> Tensor:
        """The log ratio given each row's caption; of the empty one, over all captions."""
        parts = [self._of(self.groups(i), x.flatten(1), level, caption) for i in range(self.count)]
        return torch.stack(parts).mean(0)

    def _of(self, groups: GaussianGroups, x: Tensor, level: Tensor, caption: Tensor) -> Tensor:
        alpha, sigma = noise_shares(level)
        likelihood = groups.likelihoods(x @ groups.basis, alpha, sigma)
        elsewhere = torch.arange(likelihood.shape[1], device=x.device) != caption[:, None]
        elsewhere &= caption[:, None] >= 0
        likelihood = likelihood.masked_fill(elsewhere[..., None], -torch.inf)
        joint = groups.shares.log() + groups.captions.clamp(min=1e-12).log()[:, None]
        biased, reference = (torch.logsumexp((likelihood + p).flatten(1), 1) for p in joint)
        return reference - biased


# Members of groups


def principal_directions(rows: Tensor, seed: int) -> Tensor:
    """(D, R) orthonormal: all of latent space, or of a large one its 300 principal directions."""
    if rows.shape[1] <= WIDEST:
        return torch.eye(rows.shape[1])
    from sklearn.utils.extmath import randomized_svd

    centred = (rows - rows.mean(0)).cpu().numpy()
    kept = min(REDUCED, len(rows) - 1)
    _, _, directions = randomized_svd(centred, kept, random_state=seed % 2**32)
    return torch.from_numpy(np.ascontiguousarray(directions.T))


@torch.no_grad()
def bottleneck_features(
    backbone: Backbone, images: NoisedImages, preparation: Preparation, precision: str
) -> Tensor:
    """(N, F) the backbone's middle block at nearly clean images; latents where it has none."""
    found = backbone.capability(Bottleneck)
    if found is None:
        return whole(images.latents, "a mixture ratio").flatten(1).cpu()
    t = int(FEATURE_PLACE * len(backbone.schedule))
    draws = _generator(preparation.seed, _FEATURE_NOISE)
    autocast = resolve_autocast(precision, backbone.device)
    seen: list[Tensor] = []

    def read(h: Tensor, _: int) -> Tensor:
        seen.append(h.flatten(1).float().cpu())
        return h

    for start in range(0, len(images), backbone.network_batch):
        preparation.progress("reading features for the density ratio", start, len(images))
        index = np.arange(start, min(start + backbone.network_batch, len(images)))
        noise = torch.randn((len(index), *images.latents.shape[1:]), generator=draws)
        times = torch.full((len(index),), t, device=images.latents.device)
        batch = images.at(index, times, noise.to(images.latents.device), images.prompts(index))
        enabled = autocast == torch.bfloat16
        with (
            found.edit(read),
            torch.autocast(backbone.device.type, torch.bfloat16, enabled=enabled),
        ):
            backbone.predict(batch.x_t, batch.t, batch.context)
        seen[-1] = seen[-1][: len(index)]
    preparation.progress("reading features for the density ratio", len(images), len(images))
    return torch.cat(seen)


def _whitened(features: Tensor, caption: Tensor) -> Tensor:
    """(N, 30) principal components of features less their caption's mean, with variance 1."""
    centred = features.clone()
    for one in range(int(caption.max()) + 1):
        own = caption == one
        if own.any():
            centred[own] -= centred[own].mean(0)
    variance, directions = torch.linalg.eigh((centred.T @ centred).double() / len(centred))
    kept = min(FEATURES, int((variance > 1e-9 * variance.max().clamp(min=1e-12)).sum()))
    scale = variance.flip(0)[:kept].clamp(min=1e-12).sqrt()
    turned: Tensor = centred @ (directions.flip(1)[:, :kept] / scale).to(centred.dtype)
    return turned


def infer_members(
    features: Tensor,
    rows: Tensor,
    sets: RatioSets,
    caption: Tensor,
    groups: int,
    levels: tuple[float, float],
    draws: torch.Generator,
    *,
    first_steps: int = FIRST_STEPS,
    steps: int = STEPS,
) -> Tensor:
    """Soft members of groups whose shares differ between the sets, from set membership alone.

    First a linear softmax on features whose mixture over groups, with shares given the caption in
    the biased set and one set of shares in the reference set, tells the sets apart. Then normal
    groups in 100 directions of latent space, started there, by the same cross-entropy at all
    noise levels. Captions whose shares differ from the reference set's in different ways are what
    tells groups apart.

    Args:
        features: (N, F) of clean images.
        rows: (N, D) of the same images, as they are noised.
        sets: Which are reference images, and rows to fit on.
        caption: (N,) in 0 … C - 1, also where the backbone takes no prompts.
        groups: K.
        levels: Range of log noise levels.
        draws: All randomness.
        first_steps: Of the fit on features.
        steps: Of the fit on noised images.
    Returns:
        (N, K) memberships, rows sum to 1.
    """
    reference = sets.reference.cpu()
    fit = torch.from_numpy(np.concatenate(sets.fit))
    captions = int(caption.max()) + 1
    z = _whitened(features, caption)
    slope = 0.3 * torch.randn(groups, z.shape[1], generator=draws)
    biased = 0.1 * torch.randn(captions, groups, generator=draws)
    learned = [slope, torch.zeros(groups), biased, torch.zeros(groups)]
    learned = [value.requires_grad_() for value in learned]
    optimizer = torch.optim.Adam(learned, FIRST_RATE)

    def first(index: Tensor) -> tuple[Tensor, Tensor]:
        slope, offset, biased, other = learned
        score = z[index] @ slope.T + offset
        given = biased.log_softmax(1)[caption[index]]
        return score + given, score + other.log_softmax(0)

    for _ in range(first_steps):
        optimizer.zero_grad(set_to_none=True)
        loss = _membership_loss(first(fit), reference[fit])
        loss = loss + FIRST_DECAY * learned[0].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        member = _posterior(first(torch.arange(len(z))), reference)
        start = GaussianGroups.fitted(
            rows[fit], caption[fit], reference[fit], member[fit], captions, pooled=True
        )
    return _improved(start, rows, sets, caption, levels, draws, steps)


def _improved(
    start: GaussianGroups,
    rows: Tensor,
    sets: RatioSets,
    caption: Tensor,
    levels: tuple[float, float],
    draws: torch.Generator,
    steps: int,
) -> Tensor:
    """(N, K) memberships by normal groups that tell noised images of the sets apart better."""
    reference = sets.reference.cpu()
    parts = [torch.from_numpy(part) for part in sets.fit]
    kept = min(DIRECTIONS, len(start.variance))
    variance, scale = start.variance[:kept], start.variance[:kept].sqrt()
    along = rows @ start.basis[:, :kept]
    means = start.means[:, :, :kept] / scale
    offset = (means - means.mean(1, keepdim=True)).mean(0)
    learned = [
        offset.clone(),
        (means - offset).mean(1),
        start.shares[0].log(),
        start.shares[1, 0].log(),
    ]
    learned = [value.detach().requires_grad_() for value in learned]
    optimizer = torch.optim.Adam(learned, RATE)

    def scored(x: Tensor, alpha: Tensor, sigma: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        offset, base, biased, other = learned
        groups = GaussianGroups(
            start.basis, variance, (base[:, None] + offset) * scale, start.shares, start.captions
        )
        score = groups.likelihoods(x, alpha, sigma)[torch.arange(len(x)), own]
        return score + biased.log_softmax(1)[own], score + other.log_softmax(0)

    low, high = levels
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / steps)))
        index = torch.cat([_drawn(part, ROWS // 2, draws) for part in parts])
        spread = torch.rand(len(index), generator=draws)
        clean = torch.rand(len(index), generator=draws) < NEARLY_CLEAN
        alpha, sigma = noise_shares(low + (high - low) * torch.where(clean, 0.0, spread))
        noise = torch.randn(len(index), kept, generator=draws)
        x = alpha[:, None] * along[index] + sigma[:, None] * noise
        optimizer.zero_grad(set_to_none=True)
        loss = _membership_loss(scored(x, alpha, sigma, caption[index]), reference[index])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        one, none = torch.ones(len(along)), torch.zeros(len(along))
        return _posterior(scored(along, one, none, caption), reference)


def _drawn(rows: Tensor, count: int, draws: torch.Generator) -> Tensor:
    if count <= len(rows):
        return rows[torch.randperm(len(rows), generator=draws)[:count]]
    return rows[torch.randint(len(rows), (count,), generator=draws)]


def _membership_loss(joint: tuple[Tensor, Tensor], reference: Tensor) -> Tensor:
    biased, other = (torch.logsumexp(part, 1) for part in joint)
    return balanced_cross_entropy(other - biased, reference)


def _posterior(joint: tuple[Tensor, Tensor], reference: Tensor) -> Tensor:
    """(N, K) each image's groups, given the set that it is from."""
    return torch.where(reference[:, None], joint[1], joint[0]).softmax(1)


# The ratio of a run


def _numbered(subjects: NDArray[np.int64]) -> tuple[Tensor, int]:
    """Captions in 0 … C - 1, images without a subject last, and C."""
    top = int(subjects.max()) + 1
    caption = np.where(subjects < 0, top, subjects)
    return torch.from_numpy(caption.astype(np.int64)), int(caption.max()) + 1


def differing_attributes(parts: Sequence[ImageSet], names: Sequence[str]) -> tuple[str, ...]:
    """Attributes whose shares differ between two labelled sets, by a chi-square test at .001."""
    from scipy.stats import chi2_contingency

    differing = []
    for name in names:
        if any(part.labels is None for part in parts):
            raise ContractError("expected labelled images, seen none")
        values = [(part.labels or {})[name].astype(np.int64) for part in parts]
        levels = 1 + max(int(own.max()) for own in values)
        counts = np.stack([np.bincount(own, minlength=levels) for own in values])
        counts = counts[:, counts.sum(0) > 0]
        if counts.shape[1] > 1 and chi2_contingency(counts).pvalue < 0.001:
            differing.append(name)
    return tuple(differing)


def _labelled(parts: Sequence[ImageSet], names: Sequence[str]) -> Tensor:
    """(N, K) members of the crossings of labels that occur."""
    columns = []
    for part in parts:
        if part.labels is None:
            raise ContractError("expected labelled images, seen none")
        columns.append(np.stack([part.labels[name] for name in names], 1).astype(np.int64))
    _, cell = np.unique(np.concatenate(columns), axis=0, return_inverse=True)
    return functional.one_hot(torch.from_numpy(cell.reshape(-1).astype(np.int64))).float()


def _labelled_groups(
    images: NoisedImages,
    parts: Sequence[ImageSet],
    names: Sequence[str],
    index: NDArray[np.int64],
    seed: int,
) -> GaussianGroups:
    """Groups of the crossings of labels, fitted to the rows `index`."""
    latents = whole(images.latents, "a mixture ratio").flatten(1).cpu()
    directions = principal_directions(latents, seed)
    caption, captions = _numbered(images.subjects)
    reference = torch.arange(len(images)) >= len(parts[0])
    at = torch.from_numpy(index)
    groups = GaussianGroups.fitted(
        (latents @ directions)[at],
        caption[at],
        reference[at],
        _labelled(parts, names)[at],
        captions,
        pooled=False,
    )
    return replace(groups, basis=directions @ groups.basis)


def fit_mixture(
    method: TimeDependentReweighting,
    backbone: Backbone,
    images: NoisedImages,
    parts: Sequence[ImageSet],
    preparation: Preparation,
    *,
    labels: Sequence[str] = (),
) -> FittedRatio:
    """Fit the closed-form ratio on all but the held-out images, or load it.

    Args:
        method: Groups, fits, held-out share.
        backbone: Whose latents these are; its middle block gives the features.
        images: Latents of the biased set, then of the reference set.
        parts: The two sets.
        preparation: Seed, cache, progress.
        labels: Attributes whose crossings are the groups; none: groups are inferred.
    Raises:
        InputError: If the backbone has no network to train afterwards, or a set is too small.
    """
    required(backbone, Trainable, method.card.name)
    seed, levels = preparation.seed, noise_range(backbone.schedule)
    sets = RatioSets.split(images, [len(part) for part in parts], method.held_out, seed)
    key = {
        **ratio_content(method, backbone, parts, labels, levels),
        "groups": method.ratio_groups,
        "fits": method.ratio_fits,
        "steps": [method.first_steps, method.group_steps],
        "precision": str(resolve_autocast(method.precision, backbone.device)),
        "dtype": preparation.dtype,
        "rows": backbone.network_batch,
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = preparation.cache / "ratios" / f"{method.card.name}-{digest}.npz"
    with made_once(path):
        stored = load_arrays(path)
        if stored is None:
            started = time.monotonic()
            if labels:
                index = np.concatenate(sets.fit)
                fits = [_labelled_groups(images, parts, labels, index, seed)]
            else:
                fits = _inferred(method, backbone, images, sets, preparation, levels)
            stored = {
                f"{name}_{i}": value.numpy()
                for i, fit in enumerate(fits)
                for name, value in vars(fit).items()
            }
            stored["seconds"] = np.array(time.monotonic() - started)
            save_arrays(path, stored)
    names = GaussianGroups.__dataclass_fields__
    count = sum(name.startswith("basis_") for name in stored)
    ratio = MixtureRatio(
        [
            GaussianGroups(*(torch.from_numpy(stored[f"{name}_{i}"]) for name in names))
            for i in range(count)
        ]
    )
    ratio.to(backbone.device).eval()
    seconds = float(stored["seconds"])
    facts = {
        "kind": method.ratio,
        "labels": list(labels),
        **RatioBank(sets, levels, seed).facts(ratio, levels),
        "groups": [
            {"biased": shares[0].tolist(), "reference": shares[1].tolist()}
            for shares in (ratio.groups(i).shares for i in range(count))
        ],
        "training": {"seconds": seconds},
    }
    return FittedRatio(ratio, facts, seconds, module_sha256(ratio), sets.held)


def _inferred(
    method: TimeDependentReweighting,
    backbone: Backbone,
    images: NoisedImages,
    sets: RatioSets,
    preparation: Preparation,
    levels: tuple[float, float],
) -> list[GaussianGroups]:
    """Several fits, each from a starting point of its own."""
    seed = preparation.seed
    features = bottleneck_features(backbone, images, preparation, method.precision)
    latents = whole(images.latents, "a mixture ratio").flatten(1).cpu()
    directions = principal_directions(latents, seed)
    rows = latents @ directions
    caption, captions = _numbered(images.subjects)
    reference, at = sets.reference.cpu(), torch.from_numpy(np.concatenate(sets.fit))
    fits = []
    for fit in range(method.ratio_fits):
        preparation.progress("fitting the density ratio", fit, method.ratio_fits)
        member = infer_members(
            features,
            rows,
            sets,
            caption,
            method.ratio_groups,
            levels,
            _generator(seed, _MEMBERS, fit),
            first_steps=method.first_steps,
            steps=method.group_steps,
        )
        groups = GaussianGroups.fitted(
            rows[at], caption[at], reference[at], member[at], captions, pooled=True
        )
        fits.append(replace(groups, basis=directions @ groups.basis))
    preparation.progress("fitting the density ratio", method.ratio_fits, method.ratio_fits)
    return fits


# How right a correction is


def correction_agreement(
    ratio: Ratio,
    backbone: Backbone,
    images: NoisedImages,
    held: Sequence[NDArray[np.int64]],
    labelled: TrainingData,
    seed: int,
) -> dict[str, Any]:
    """A ratio's gradient against that of an oracle which knows every label, at held-out images.

    The oracle is the closed-form ratio of the crossings of all attributes, fitted to both sets.
    Held-out cross-entropy hardly sees high noise, where the correction matters most; this does.

    Args:
        ratio: To be judged.
        backbone: Gives the noise levels.
        images: Latents of the biased set, then of the reference set.
        held: Rows of both that the ratio wasn't fitted to.
        labelled: The two sets with all their labels.
        seed: Of the noise.
    Returns:
        ``by_timestep``: for each the ``slope`` <g, o> / <o, o> and ``cosine`` of the ratio's
        gradients g on the oracle's o, and the ``correlation`` of the log ratios, given the own
        caption; and ``attributes`` of the oracle.
    """
    parts = [part for part in (labelled.training, labelled.reference) if part is not None]
    everything = np.arange(len(images))
    groups = _labelled_groups(images, parts, list(labelled.attributes), everything, seed)
    device = images.latents.device
    oracle = MixtureRatio([groups]).to(device)
    chosen = [_sequence(seed, _AGREEMENT, i) for i in range(len(held))]
    index = np.concatenate(
        [
            np.random.default_rng(sequence).permutation(rows)[: AGREEMENT_ROWS // 2]
            for sequence, rows in zip(chosen, held, strict=True)
        ]
    )
    clean = images.latents[torch.from_numpy(index).to(device)]
    caption = torch.from_numpy(images.subjects[index].astype(np.int64)).to(device)
    if images.contexts is None:
        caption = torch.full_like(caption, -1)
    schedule, draws = backbone.schedule, _generator(seed, _AGREEMENT)
    low, high = noise_range(schedule)
    found = []
    for place in AGREEMENT_PLACES:
        t = min(int(place * len(schedule)), len(schedule) - 1)
        level = float(torch.log(schedule.sigma(t).double() / schedule.alpha(t).double()))
        levels = torch.full((len(index),), min(max(level, low), high), device=device)
        noise = torch.randn(clean.shape, generator=draws).to(device)
        alpha, sigma = (part[:, None, None, None] for part in noise_shares(levels))
        x = alpha * clean + sigma * noise
        (mine, log_mine), (true, log_true) = (
            _gradient(one, x, levels, caption) for one in (ratio, oracle)
        )
        scale = (mine.square().sum() * true.square().sum()).sqrt().clamp(min=1e-30)
        found.append(
            {
                "t": t,
                "slope": float((mine * true).sum() / true.square().sum().clamp(min=1e-30)),
                "cosine": float((mine * true).sum() / scale),
                "correlation": _correlation(log_mine, log_true),
            }
        )
    return {"attributes": list(labelled.attributes), "by_timestep": found}


def _gradient(ratio: Ratio, x: Tensor, level: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) gradients of the log ratio by the noised image, and (B,) log ratios."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = ratio(x, level, caption)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return gradient.double(), value.detach().double()


def _correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's; 0 where either is constant."""
    one, other = one - one.mean(), other - other.mean()
    scale = float((one.square().sum() * other.square().sum()).sqrt())
    return float((one * other).sum()) / scale if scale > 0 else 0.0
