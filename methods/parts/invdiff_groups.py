"""Groups of training images: denoising risks, and the split that tells them apart the most."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fairbench.core.errors import ContractError
from fairbench.core.method import ImageSet, Preparation, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import Backbone
from fairbench.diffusion.devices import made_once, resolve_autocast
from fairbench.diffusion.sampling import Stream
from fairbench.diffusion.schedule import Prediction
from fairbench.methods.parts.finetuning import NoisedBatch, NoisedImages
from fairbench.storage.cache import load_arrays, save_arrays

if TYPE_CHECKING:
    from pathlib import Path

    from fairbench.methods.invdiff import InvDiff

__all__ = [
    "Grouping",
    "average_risk",
    "balanced_groups",
    "component_groups",
    "denoising_risks",
    "group_images",
    "group_risks",
    "infer_groups",
    "oracle_groups",
    "rare_component",
]

CHECKPOINT_SECONDS = 30.0
GROUPER_STEPS = 500
GROUPER_RATE = 0.01
MASS_FLOOR = 1e-6
"""Mass, as a share of all images, below which a group is drawn to the mean risk."""

MAP_SIDE = 8
"""Places a side that a map of risks has at most."""
WIDEST, STARTS = 8, 60
"""How many of the maps' widest principal components are looked at, and from how many starts."""
OUTLIERS = 3.0
"""Skewness, either way, above which a place says next to nothing of most images; two values of
which the rarer is a twelfth have no more."""
SMALLEST_SHARE = 0.02
"""A group that holds less of a subject's images than this is too small to be one."""

# What random draws of this method are for; the trainer's own sequences have four words.
_BANK, _INITIAL_WEIGHTS, _RANDOM_GROUPS, _COMPONENTS = 1, 2, 3, 4


def _sequence(seed: int, purpose: int, *more: int) -> np.random.SeedSequence:
    words = [seed, Stream.TRAINING, 0x1D1F, purpose, *more, len(more)]
    return np.random.SeedSequence(words)


def _generator(seed: int, purpose: int, *more: int) -> torch.Generator:
    state = _sequence(seed, purpose, *more).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


# Risks


class _Bank:
    """The (timestep, noise) that an image is seen with in a draw.

    A shared bank differs between images by the image alone, so that the variance over timesteps
    and noises, far larger than what separates groups, cancels from their comparison.
    """

    def __init__(self, method: InvDiff, shape: tuple[int, ...], steps: int, seed: int) -> None:
        self.method, self.shape, self.steps, self.seed = method, shape, steps, seed

    def _timestep(self, place: float) -> int:
        low, high = self.method.risk_from, self.method.risk_to
        # Rounded first: 0.575 and a quarter of 0.4 aren't quite 0.675.
        return min(int(round(self.steps * (low + (high - low) * place), 6)), self.steps - 1)

    def draw(self, draw: int, images: range) -> tuple[Tensor, Tensor]:
        """(B,) timesteps and (B, C, h, w) noise of some images in a draw."""
        if self.method.risk_bank == "shared":
            t = self._timestep((draw + 0.5) / self.method.risk_draws)
            noise = torch.randn(self.shape, generator=_generator(self.seed, _BANK, draw))
            return torch.full((len(images),), t), noise.expand(len(images), *self.shape)
        times, noises = [], []
        for image in images:
            generator = _generator(self.seed, _BANK, draw, image)
            times.append(self._timestep(float(torch.rand((), generator=generator))))
            noises.append(torch.randn(self.shape, generator=generator))
        return torch.tensor(times), torch.stack(noises)


def _risk(method: InvDiff, backbone: Backbone, batch: NoisedBatch) -> Tensor:
    """(B,) float32 risks at one draw; for components (B, P), at P places of the image."""
    predicted: Prediction = backbone.predict(batch.x_t, batch.t, batch.context)
    if method.risk_target == "clean":
        error = predicted.noise.float() - batch.clean
    else:
        target = backbone.schedule.target(batch.clean, batch.noise, batch.t)
        error = predicted.value.float() - target
    if method.grouping != "components":
        return error.square().flatten(1).mean(1)
    places = error.square().mean(1, keepdim=True)
    height, width = (min(MAP_SIDE, size) for size in places.shape[-2:])
    return functional.adaptive_avg_pool2d(places, (height, width)).flatten(1)


@torch.no_grad()
def denoising_risks(
    method: InvDiff,
    backbone: Backbone,
    images: NoisedImages,
    content: Mapping[str, Any],
    preparation: Preparation,
) -> tuple[NDArray[np.float32], float]:
    """How badly the frozen backbone denoises each training image; kept in the cache, resumable.

    Args:
        method: Target, draws and bank of the risks.
        backbone: Frozen.
        images: The N training images.
        content: Hashes of backbone and data, for the key.
        preparation: Seed, cache, progress.
    Returns:
        (D, N) mean squared errors of D draws, or (D, N, P) at P places for components, and the
        seconds that they took.
    """
    autocast = resolve_autocast(method.precision, backbone.device)
    bank = _Bank(method, backbone.latent_shape, len(backbone.schedule), preparation.seed)
    key = {
        **content,
        "risk": [method.risk_target, method.risk_bank, method.risk_draws],
        "range": [method.risk_from, method.risk_to],
        "maps": method.grouping == "components",
        "precision": str(autocast),
        "dtype": preparation.dtype,
        "rows": backbone.network_batch,
        "seed": preparation.seed,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = preparation.cache / "risks" / f"invdiff-{digest}.npz"
    shape: tuple[int, ...] = ()
    if method.grouping == "components":
        shape = (int(np.prod([min(MAP_SIDE, size) for size in backbone.latent_shape[1:]])),)
    with made_once(path):
        risks, seconds = _measured_risks(
            method, backbone, images, bank, path, autocast == torch.bfloat16, shape, preparation
        )
    return risks.reshape(method.risk_draws, len(images), *shape), seconds


def _measured_risks(
    method: InvDiff,
    backbone: Backbone,
    images: NoisedImages,
    bank: _Bank,
    path: Path,
    autocast: bool,
    shape: tuple[int, ...],
    preparation: Preparation,
) -> tuple[NDArray[np.float32], float]:
    """Risks in the order of their draws, (D N, …), from where they stopped; and their seconds."""
    total = method.risk_draws * len(images)
    nothing = np.zeros((0, *shape), np.float32)
    stored = load_arrays(path) or {"risks": nothing, "seconds": np.array(0.0)}
    parts, before = [stored["risks"]], float(stored["seconds"])
    done, started = len(stored["risks"]), time.monotonic()
    saved = started

    def keep() -> float:
        seconds = before + time.monotonic() - started
        save_arrays(path, {"risks": np.concatenate(parts), "seconds": np.array(seconds)})
        return seconds

    for draw, rows in _chunks(done, total, len(images), backbone.network_batch):
        preparation.progress("measuring denoising risks", done, total)
        t, noise = bank.draw(draw, rows)
        index = np.arange(rows.start, rows.stop)
        device = images.latents.device
        batch = images.at(index, t.to(device), noise.to(device), images.prompts(index))
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=autocast):
            parts.append(_risk(method, backbone, batch).cpu().numpy())
        done += len(rows)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            saved = time.monotonic()
            keep()
    preparation.progress("measuring denoising risks", total, total)
    seconds = before if len(parts) == 1 else keep()
    return np.concatenate(parts), seconds


def _chunks(done: int, total: int, n: int, width: int) -> Iterator[tuple[int, range]]:
    """Draw and images of each network call that is still to be made."""
    while done < total:
        draw, first = divmod(done, n)
        last = min(first + width, n)
        yield draw, range(first, last)
        done += last - first


def average_risk(
    risks: NDArray[Any], *, per_draw: bool, subjects: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """One risk an image.

    Args:
        risks: (D, N) of D draws.
        per_draw: Whether every draw counts alike, however noisy its timestep; for shared draws.
        subjects: (N,) what each image's prompt names: risks are then standardised within it and
            put back on the scale of all. None: they stay as they are.
    Returns:
        (N,) with the mean of all risks.
    """
    values = risks.astype(np.float64)
    if per_draw:
        values = values / values.mean(axis=1, keepdims=True) * values.mean()
    mean: NDArray[np.float64] = values.mean(axis=0)
    if subjects is None:
        return mean
    standard = np.zeros_like(mean)
    for subject in np.unique(subjects):
        own = subjects == subject
        spread = mean[own].std()
        if spread > 0:
            standard[own] = (mean[own] - mean[own].mean()) / spread
    whole: NDArray[np.float64] = mean.mean() + mean.std() * standard
    return whole


# Groups


def group_risks(weights: Tensor, risks: Tensor) -> Tensor:
    """Weighted mean risk of each group, (G,), of (N, G) weights and (N,) risks.

    A group whose mass vanishes gets the mean risk of all images, so that emptying a group is
    neither a division by zero nor a gain.
    """
    centre = risks.mean()
    floor = MASS_FLOOR * len(risks)
    away = (weights * (risks - centre)[:, None]).sum(0) / (weights.sum(0) + floor)
    return centre + away


def infer_groups(
    risks: NDArray[np.float64], groups: int, kappa: float, generator: torch.Generator
) -> Tensor:
    """Soft groups whose mean risks are as far apart as 500 steps of Adam bring them.

    Its number of steps and its rate are part of the method: from nearly even weights an image
    goes to a group of high risk if its own is above the mean. A better optimum would be a worse
    answer, a group of the few images with the very largest risks.

    Args:
        risks: (N,), one an image.
        groups: G, how many.
        kappa: Weight of the smallest weighted risk, which keeps memberships from becoming 0.
        generator: Of the initial weights.
    Returns:
        (N, G) float64, rows non-negative with sum 1.

    Source: arXiv 2412.08480 and its released code, with a floor under a group's mass.
    """
    if not np.isfinite(risks).all():
        raise ContractError("expected finite risks, seen some that aren't")
    values = torch.from_numpy(np.ascontiguousarray(risks, dtype=np.float64))
    shape = (len(values), groups)
    weights = torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_(True)
    optimizer = torch.optim.Adam([weights], lr=GROUPER_RATE)
    for _ in range(GROUPER_STEPS):
        # Below the clamp, where all groups have one risk, the root would have no gradient.
        spread = group_risks(weights, values).var(unbiased=True).clamp(min=1e-24).sqrt()
        objective = spread + kappa * (weights * values[:, None]).min() if kappa else spread
        optimizer.zero_grad(set_to_none=True)
        (-objective).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            weights.clamp_(min=0)
            mass = weights.sum(1, keepdim=True)
            weights.copy_(torch.where(mass > 0, weights / mass, 1 / groups))
    return weights.detach()


def _whitened(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, K) widest principal components of (N, P) standardised values, each of variance 1.

    Places that a few outliers make, as background is where next to no image has anything else,
    are left out: standardised, they would be as wide as any other, and the most skewed of all.
    """
    spread = values.std(0)
    varied = spread > 1e-9
    standard = (values - values.mean(0))[:, varied] / spread[varied]
    standard = standard[:, np.abs((standard**3).mean(0)) <= OUTLIERS]
    if not standard.size:
        return np.zeros((len(values), 0))
    variances, axes = np.linalg.eigh(standard.T @ standard / len(standard))
    kept = np.flatnonzero(variances > 1e-9 * variances[-1])[::-1][:WIDEST]
    whole: NDArray[np.float64] = standard @ axes[:, kept] / np.sqrt(variances[kept])
    return whole


def _skewed_directions(
    white: NDArray[np.float64], starts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(S, K) unit directions of locally largest skewness of (N, K) white values, one a start.

    Fixed points of w = E[x (w x)^2], which a step that keeps half of the direction goes to without
    swinging: of white values the skewness is the third moment, and this its gradient.
    """
    directions = _unit(starts)
    for _ in range(300):
        moved = _unit(directions + _unit(((white @ directions.T) ** 2).T @ white))
        still = np.abs(moved - directions).max() < 1e-6
        directions = moved
        if still:
            break
    return directions


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: NDArray[np.float64] = vectors / np.maximum(lengths, 1e-300)
    return units


def _memberships(
    white: NDArray[np.float64], member: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Log odds and memberships in the group that (N,) `member` is a first guess of.

    A mixture of two normals with one covariance, fitted to (N, K) white values by expectation and
    maximisation. None if either normal comes to hold fewer than 2 % of them.
    """
    from scipy.special import expit

    odds = np.zeros(len(white))
    for _ in range(200):
        share = float(member.mean())
        if not SMALLEST_SHARE <= share <= 1 - SMALLEST_SHARE:
            return None
        upper = member @ white / member.sum()
        lower = (1 - member) @ white / (1 - member).sum()
        # What the means don't explain of white values; a little more, lest they explain it all.
        between = share * np.outer(upper, upper) + (1 - share) * np.outer(lower, lower)
        within = (1 + 1e-6) * np.eye(white.shape[1]) - between
        slope = np.linalg.solve(within, upper - lower)
        odds = (white - (upper + lower) / 2) @ slope + np.log(share / (1 - share))
        before, member = member, expit(odds)
        if np.abs(member - before).max() < 1e-4:
            break
    return odds, member


def rare_component(
    maps: NDArray[Any], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The direction of risk maps that singles out few images, and who belongs there.

    Few images that the network denoises badly, and badly in the same way, are a small cluster of
    the maps, on the side of high risk. Along the line between two clusters of unequal size their
    mixture is as skewed as it is along any other, whereas kurtosis, which the usual contrasts of
    independent components follow, has no extreme there for shares near a fifth. So the logs of the
    mean maps, at places that outliers don't make, are whitened within their 8 widest principal
    components, and from 61 starts the skewness is followed upwards. Of the directions found the
    one is taken whose skewness times correlation with the ranks of the mean risk is largest. Two
    normals with one covariance, fitted in all 8 components from the images more than a deviation
    up in that direction, say who belongs to the upper one; if that comes to hold next to none or
    all of the images, outliers made it, and the next direction is taken. Nothing here knows a
    label or a share.

    Args:
        maps: (D, N, P) risks of N images at P places in D shared draws.
        seed: Of the starts.
    Returns:
        (N,) log odds of belonging to the upper group; (N,) memberships in [0, 1]; its score.
        Without any variation, or without a group of 2 to 98 % of the images, every log odds is 0
        and every membership 1/2: no group.

    Source: skewness as the index of a projection: N. Loperfido, Skewness and the linear
    discriminant function, Statistics & Probability Letters 83 (2013).
    """
    from scipy.stats import rankdata, skew

    n = maps.shape[1]
    mean = maps.mean(0, dtype=np.float64)
    logs = np.log(np.maximum(mean, 1e-12))
    white = _whitened(logs)
    risk = mean.mean(1)
    if white.shape[1] and risk.std() > 1e-9 * risk.mean():
        risk = rankdata(risk)  # which outliers can't own
        risk = (risk - risk.mean()) / risk.std()
        starts = np.random.default_rng(seed).normal(size=(STARTS, white.shape[1]))
        found = white @ _skewed_directions(white, np.vstack([risk @ white, starts])).T
        scores = skew(found, axis=0) * (risk @ found / n)
        for at in np.argsort(-scores):
            fitted = _memberships(white, (found[:, at] > 1).astype(np.float64))
            if scores[at] > 0 and fitted is not None:
                return *fitted, float(scores[at])
    return np.zeros(n), np.full(n, 0.5), 0.0


def component_groups(
    maps: NDArray[Any], seed: int, subjects: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[float]]:
    """:func:`rare_component` within each subject.

    Args:
        maps: (D, N, P) risks.
        seed: Of the starting points.
        subjects: (N,) what each image's prompt names; None: all images together.
    Returns:
        (N,) log odds of the upper group, (N,) memberships, each subject's score.
    """
    n = maps.shape[1]
    subjects = np.zeros(n, dtype=np.int64) if subjects is None else subjects
    component, member, scores = np.zeros(n), np.zeros(n), []
    for subject in np.unique(subjects):
        own = subjects == subject
        component[own], member[own], score = rare_component(maps[:, own], seed)
        scores.append(score)
    return component, member, scores


def balanced_groups(
    member: NDArray[np.float64], subjects: NDArray[np.int64] | None = None
) -> Tensor:
    """Memberships and their complements, with equal mass within each subject, (N, 2) float64.

    Otherwise a subject whose upper group is small would keep its majority: the objective averages
    over the two groups of all images, not over those of a subject. Rows don't sum to 1, which the
    objective doesn't need: it divides by a group's mass.

    Args:
        member: (N,) in [0, 1].
        subjects: (N,) what each image's prompt names; None: all images together.
    """
    subjects = np.zeros(len(member), dtype=np.int64) if subjects is None else subjects
    weights = np.stack([1 - member, member], 1)
    for subject in np.unique(subjects):
        own = subjects == subject
        mass = weights[own].sum(0)
        weights[own] *= np.where(mass > 0, own.sum() / 2 / np.maximum(mass, 1e-12), 0)
    return torch.from_numpy(weights)


def oracle_groups(
    task: Task, labels: Mapping[str, NDArray[Any]], subjects: NDArray[np.int64] | None
) -> Tensor:
    """One hard group for each group of the task, and each subject if there are prompts, (N, G)."""
    shape = tuple(len(levels) for levels in task.attributes.values())
    cells = np.ravel_multi_index(
        tuple(labels[name].astype(np.int64) for name in task.attributes), shape
    )
    if subjects is not None:
        cells = cells + len(task.groups) * subjects
    present, index = np.unique(cells, return_inverse=True)
    return torch.eye(len(present), dtype=torch.float64)[torch.from_numpy(index)]


@dataclass(frozen=True)
class Grouping:
    """Training images in groups.

    Attributes:
        weights: (N, G) float64, of each image in each group.
        seconds: What finding them took.
        facts: For the record.
    """

    weights: Tensor
    seconds: float
    facts: Mapping[str, Any]


def group_images(
    method: InvDiff,
    task: Task,
    backbone: Backbone,
    images: NoisedImages,
    data: TrainingData,
    content: Mapping[str, Any],
    preparation: Preparation,
) -> Grouping:
    """The training images in the groups that the method asks for.

    Args:
        method: How.
        task: Names the attributes of oracle groups.
        backbone: Frozen; measures the risks.
        images: The training images as latents.
        data: The same images, with labels if the groups are an oracle's.
        content: Hashes of backbone and data, for the key of the risks.
        preparation: Seed, cache, progress, audit.
    Raises:
        ContractError: If an oracle got no labels.
    """
    n = len(images)
    subjects = images.subjects if backbone.conditional else None
    if method.grouping == "single":
        return _described(torch.ones((n, 1), dtype=torch.float64), 0.0, {})
    if method.grouping == "random":
        rng = np.random.default_rng(_sequence(preparation.seed, _RANDOM_GROUPS))
        drawn = torch.from_numpy(rng.integers(method.groups, size=n))
        return _described(torch.eye(method.groups, dtype=torch.float64)[drawn], 0.0, {})
    if method.grouping == "oracle":
        return _described(oracle_groups(task, _labels(data.training), subjects), 0.0, {})
    risks, seconds = denoising_risks(method, backbone, images, content, preparation)
    started = time.monotonic()
    if method.grouping == "components":
        weights, facts = _by_components(method, risks, subjects, preparation)
        seconds += time.monotonic() - started
        facts["risk"] = {"mean": float(risks.mean()), "seconds": seconds}
        return _described(weights, seconds, facts)
    shared = method.risk_bank == "shared"
    risk = average_risk(risks, per_draw=shared, subjects=subjects if method.standardise else None)
    generator = _generator(preparation.seed, _INITIAL_WEIGHTS)
    weights = infer_groups(risk, method.groups, method.kappa, generator)
    seconds += time.monotonic() - started
    high = weights[:, group_risks(weights, torch.from_numpy(risk)) > risk.mean()].sum(1)
    preparation.audit("risk", risk)
    preparation.audit("high_risk_group", high.numpy())
    facts = {
        "risk": {"mean": float(risk.mean()), "std": float(risk.std()), "seconds": seconds},
        "group_risks": group_risks(weights, torch.from_numpy(risk)).tolist(),
        "high_risk_share": float(high.mean()),
    }
    return _described(weights, seconds, facts)


def _by_components(
    method: InvDiff,
    maps: NDArray[Any],
    subjects: NDArray[np.int64] | None,
    preparation: Preparation,
) -> tuple[Tensor, dict[str, Any]]:
    """(N, 2) groups by a skewed direction of the maps of risks, and facts of them."""
    within = subjects if method.standardise else None
    seed = int(_sequence(preparation.seed, _COMPONENTS).generate_state(1)[0])
    component, member, scores = component_groups(maps, seed, within)
    weights = balanced_groups(member, within)
    preparation.audit("risk", maps.mean((0, 2), dtype=np.float64))
    preparation.audit("component", component)
    preparation.audit("high_risk_group", member)
    return weights, {"component_scores": scores, "high_risk_share": float(member.mean())}


def _labels(images: ImageSet | None) -> Mapping[str, NDArray[Any]]:
    if images is None or images.labels is None:
        raise ContractError("oracle groups expect labelled training images, seen none")
    return images.labels


def _described(weights: Tensor, seconds: float, facts: Mapping[str, Any]) -> Grouping:
    shares = (weights.mean(0) / weights.mean(0).sum()).tolist()
    hard = float((weights.max(1).values > 0.99 * weights.sum(1)).double().mean())
    return Grouping(weights, seconds, {"shares": shares, "hard_share": hard, **facts})
