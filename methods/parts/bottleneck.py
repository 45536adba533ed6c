"""Linear heads on the U-Net's bottleneck h, one a sampling step, and what they learn from.

h is the output of the U-Net's middle block, flattened over channels and space. The heads tell
which group the finished image will be in. They learn from trajectories of the very sampler that
they are used in, because inverted or forward-noised images look different to the network.

Source: Parihar et al. 2024, Balancing Act: Distribution-Guided Debiasing in Diffusion Models,
arXiv 2402.18206; h-space: Kwon et al. 2022, arXiv 2210.10960.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fairbench.core.errors import ContractError
from fairbench.core.method import Preparation, Request, SamplingConfig, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import Backbone, Bottleneck, Edit, Trainable, required
from fairbench.diffusion.denoisers import conditioned, edited
from fairbench.diffusion.devices import made_once
from fairbench.diffusion.sampling import DDIMSampler, ddim
from fairbench.methods.parts.classifier import AttributeClassifier
from fairbench.methods.parts.finetuning import images_sha256, module_sha256
from fairbench.methods.parts.guidance_parameters import BottleneckGuided
from fairbench.storage.cache import load_arrays, save_arrays

__all__ = [
    "Fitted",
    "Heads",
    "calibrated",
    "fit_head",
    "guided_times",
    "invert",
    "learn_heads",
    "record_trajectories",
]

VERSION = 1
WEIGHT_DECAYS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
COMPONENTS = 256
"""Principal components of h that a head sees at most."""

FOLDS = 3
REPORTED = 0.15
"""Share of the images that heads aren't fitted to, for the accuracies on record."""

OWN_NOISE = 2**31
"""Added to the prompt index of a trajectory, so that no image of a run has its noise."""


@dataclass(frozen=True)
class Heads:
    """Heads of one grouping in one branch of guidance, with what else was seen of h.

    Attributes:
        times: The S timesteps that have a head.
        weight: (S, K, D) float32.
        bias: (S, K) float32.
        means: (S, K, D) float32 mean of h in each group; of all h for a group without images.
        norms: (S,) float32 mean length of h.
        shares: (P, K) float64 share of the groups in the images of each prompt, natural ones for
            trajectories.
    """

    times: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    means: Tensor
    norms: Tensor
    shares: NDArray[np.float64]

    def index(self, t: int) -> int:
        """Which head belongs to a timestep.

        Raises:
            ContractError: If none does; another one is never used in its place.
        """
        if t not in self.times:
            raise ContractError(f"expected a head at timestep {t}; there are {self.times}")
        return self.times.index(t)

    def logits(self, h: Tensor, t: int) -> Tensor:
        """(B, c, h', w') -> (B, K) float32."""
        k = self.index(t)
        logits: Tensor = h.flatten(1).float() @ self.weight[k].T + self.bias[k]
        return logits

    def to(self, device: torch.device) -> Heads:
        """The same heads on a device."""
        return Heads(
            self.times,
            self.weight.to(device),
            self.bias.to(device),
            self.means.to(device),
            self.norms.to(device),
            self.shares,
        )


def branches_of(method: BottleneckGuided, backbone: Backbone, guidance: float) -> tuple[str, ...]:
    """The branches that a method reads or edits; there is one without guidance."""
    if method.branch == "cond" or not backbone.conditional or guidance == 1:
        return ("cond",)
    return ("cond", "uncond")


class _Recorder:
    """Keeps h of every branch and step."""

    def __init__(self, branches: Sequence[str], rows: int) -> None:
        self.rows = rows
        self.kept: dict[str, list[Tensor]] = {name: [] for name in branches}

    def edits(self) -> dict[str, Edit]:
        """Edits that change nothing."""

        def reader(kept: list[Tensor]) -> Edit:
            def read(h: Tensor, t: int) -> Tensor:
                # Half the memory; its rounding is far below what tells groups apart.
                flat = h[: self.rows].flatten(1).float().clamp(-6e4, 6e4)
                kept.append(flat.half().cpu())
                return h

            return read

        return {name: reader(kept) for name, kept in self.kept.items()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Branch -> (B, S, D) float16."""
        return {name: torch.stack(kept, 1).numpy() for name, kept in self.kept.items()}


@torch.inference_mode()
def record_trajectories(
    backbone: Backbone,
    config: SamplingConfig,
    requests: Sequence[Request],
    branches: Sequence[str],
) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint8]]:
    """Sample at most one network batch and keep h.

    Returns:
        Branch -> (B, S, D) float16 in the order of the sampler's steps, and the images.
    """
    recorder = _Recorder(branches, len(requests))
    sampler, edits = DDIMSampler(backbone, config), recorder.edits()
    contexts = sampler.contexts(requests, [None] * len(requests))
    denoise, _ = sampler.joined(
        {
            name: edited(conditioned(backbone, context), backbone, edits.get(name))
            for name, context in contexts.items()
        }
    )
    latents = ddim(backbone, denoise, requests, config)
    return recorder.arrays(), backbone.decode(latents)


@torch.inference_mode()
def invert(
    backbone: Backbone,
    config: SamplingConfig,
    images: NDArray[np.uint8],
    texts: Sequence[str],
    branches: Sequence[str],
) -> dict[str, NDArray[Any]]:
    """Deterministic DDIM inversion of at most one network batch of images.

    As in the released code the clean image is taken for the state at the lowest timestep of the
    grid. No guidance: the conditional prediction makes each step, the other branch is only read.

    Returns:
        Branch -> (B, S, D) float16 in the order of the sampler's steps, noise first.

    Source: Song et al. 2021, arXiv 2010.02502; arXiv 2402.18206.
    """
    recorder = _Recorder(branches, len(images))
    schedule = backbone.schedule
    prompts = {"cond": texts, "uncond": [""] * len(texts)}
    read = {
        name: edited(conditioned(backbone, backbone.embed(prompts[name])), backbone, edit)
        for name, edit in recorder.edits().items()
    }
    upwards = schedule.timesteps(config.steps, config.spacing)[::-1]
    x = backbone.encode(images)
    for t, following in zip(upwards, [*upwards[1:], None], strict=True):
        predicted = schedule.bounded(read["cond"](x, t))
        if "uncond" in read:
            read["uncond"](x, t)
        if following is not None:
            alpha, sigma = float(schedule.alpha(following)), float(schedule.sigma(following))
            x = alpha * predicted.clean + sigma * predicted.noise
    return {name: kept[:, ::-1] for name, kept in recorder.arrays().items()}


@dataclass(frozen=True)
class Fitted:
    """One head and how well it does on images that it wasn't fitted to.

    Attributes:
        weight: (K, D) float64, on raw h.
        bias: (K,) float64.
        weight_decay: The penalty.
        accuracy: Held-out share of right answers.
        balanced_accuracy: Mean over the groups of the share of right answers.
    """

    weight: Tensor
    bias: Tensor
    weight_decay: float
    accuracy: float
    balanced_accuracy: float


def _folds(y: Tensor, groups: int) -> Tensor:
    """(n,) fold of each row, 0 for those to report on; every group is spread over the folds."""
    rng = np.random.default_rng(0)
    folds = torch.zeros(len(y), dtype=torch.long)
    for group in range(groups):
        rows = rng.permutation(np.flatnonzero(y.numpy() == group))
        kept = rows[round(REPORTED * len(rows)) :]
        folds[kept] = torch.arange(len(kept)) % FOLDS + 1
    return folds


def _principal(rows: Tensor) -> Tensor:
    """(D, r) orthonormal directions in which centred rows (n, D) vary most."""
    by_row = len(rows) < rows.shape[1]
    gram = rows @ rows.T if by_row else rows.T @ rows
    values, vectors = torch.linalg.eigh(gram.double())
    keep = values > 1e-6 * values[-1].clamp(min=1e-12)
    basis: Tensor = vectors[:, keep][:, -COMPONENTS:]
    if by_row:
        basis = rows.T.double() @ basis / values[keep][-COMPONENTS:].sqrt()
    return basis.float()


def _group_weights(y: Tensor, groups: int) -> Tensor:
    """(n,) weights, mean 1, with which every group that is there counts the same."""
    counts = torch.bincount(y, minlength=groups).double()
    weight: Tensor = 1 / counts[y]
    return weight / weight.mean()


def _minimise(parameters: list[Tensor], loss_of: Any, iterations: int) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def calibrated(
    logits: Tensor, y: Tensor, prior: Tensor, *, iterations: int = 50
) -> tuple[float, Tensor]:
    """Scale and shifts that make logits fit the labels: softmax(a logits + b).

    Maximum a posteriori with log a ~ N(0, 1) and b ~ N(log prior, 1), so that a few images of a
    rare group don't decide alone.

    Args:
        logits: (n, K) of images that the head wasn't fitted to, with groups weighted equally.
        y: (n,) their groups.
        prior: (K,) natural shares of the groups, positive.
        iterations: Of L-BFGS.
    Returns:
        a > 0 and b (K,).
    """
    start = prior.double().log()
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    shift = start.clone().requires_grad_()

    def loss() -> Tensor:
        entropy = functional.cross_entropy(log_scale.exp() * logits.double() + shift, y)
        penalty = log_scale.square() + (shift - start).square().sum()
        return entropy + penalty / (2 * len(y))

    _minimise([log_scale, shift], loss, iterations)
    return float(log_scale.detach().exp()), shift.detach()


def _regression(
    x: Tensor, y: Tensor, groups: int, decays: Sequence[float], iterations: int
) -> list[tuple[Tensor, Tensor]]:
    """Weights (K, r) and biases (K,) for each penalty, each started from the one before."""
    balance = _group_weights(y, groups).to(x)
    weight = torch.zeros(groups, x.shape[1], requires_grad=True)
    bias = torch.zeros(groups, requires_grad=True)
    found = []
    for decay in decays:

        def loss(decay: float = decay) -> Tensor:
            entropy = functional.cross_entropy(x @ weight.T + bias, y, reduction="none")
            return (balance * entropy).mean() + decay / 2 * weight.square().sum()

        _minimise([weight, bias], loss, iterations)
        found.append((weight.detach().clone(), bias.detach().clone()))
    return found


def fit_head(
    h: Tensor, y: Tensor, groups: int, weight_decay: float = 0.0, *, iterations: int = 40
) -> Fitted:
    """Multinomial logistic regression on h with an L2 penalty, groups weighted equally.

    Rare groups of a biased backbone thus count as much as others for the direction; scale and
    shifts are then calibrated to the natural shares, so that a batch's mean prediction is its
    expected share. Penalty and calibration rest on rows that weren't fitted, by cross-validation.

    Args:
        h: (n, D).
        y: (n,) groups.
        groups: K.
        weight_decay: Penalty for rows of unit mean length; 0 chooses by held-out loss.
        iterations: Of L-BFGS for each penalty.
    """
    folds = _folds(y, groups)
    fit, report = folds > 0, folds == 0
    rows = h.float()
    centre = rows[fit].mean(0)
    # One scale for all coordinates, and only directions in which h varies: an edit along others
    # would leave the states that the network knows.
    size = (rows[fit] - centre).square().sum(1).mean().sqrt().clamp(min=1e-12)
    rows = (rows - centre) / size
    basis = _principal(rows[fit])
    x, target, decays = rows @ basis, y[fit], (weight_decay,) if weight_decay else WEIGHT_DECAYS
    held_out = torch.zeros(len(decays), len(y), groups)
    for fold in range(1, FOLDS + 1):
        held, rest = folds == fold, fit & (folds != fold)
        for i, (weight, bias) in enumerate(
            _regression(x[rest], y[rest], groups, decays, iterations)
        ):
            held_out[i, held] = x[held] @ weight.T + bias
    held_out = held_out[:, fit]
    balance = _group_weights(target, groups).float()
    losses = [
        float((balance * functional.cross_entropy(logits, target, reduction="none")).mean())
        for logits in held_out
    ]
    best = int(np.argmin(losses))
    weight, bias = _regression(x[fit], target, groups, decays[: best + 1], iterations)[-1]
    counts = torch.bincount(y, minlength=groups).double()
    prior = (counts + 1) / (counts.sum() + groups)
    scale, shift = calibrated(held_out[best], target, prior)
    report = report if report.any() else fit
    logits = (x[report] @ weight.T + bias).double()
    right = (logits.argmax(1) == y[report]).double()
    natural = (scale * logits + shift).argmax(1) == y[report]
    whole = scale * (weight @ basis.T).double() / size.double()
    return Fitted(
        weight=whole,
        bias=scale * bias.double() + shift - whole @ centre.double(),
        weight_decay=decays[best],
        accuracy=float(natural.double().mean()),
        balanced_accuracy=float((_group_weights(y[report], groups) * right).mean()),
    )


@dataclass(frozen=True)
class _Seen:
    """What heads learn from: h by branch, (n, S, D) float16, labels and prompts."""

    h: Mapping[str, NDArray[Any]]
    labels: Mapping[str, NDArray[np.int64]]
    prompts: NDArray[np.int64]


def crossed(
    labels: Mapping[str, NDArray[Any]], attributes: Mapping[str, Sequence[str]], grouping: str
) -> NDArray[np.int64]:
    """(n,) index into the groups of a grouping such as ``"gender/race"``."""
    names = grouping.split("/")
    shape = [len(attributes[name]) for name in names]
    index = np.ravel_multi_index([labels[name].astype(np.int64) for name in names], shape)
    return index.astype(np.int64)


class _Collection:
    """Collects h batch by batch; every finished batch is kept until the heads are done."""

    def __init__(
        self,
        method: BottleneckGuided,
        task: Task,
        backbone: Backbone,
        classifier: AttributeClassifier,
        data: TrainingData,
        preparation: Preparation,
        branches: Sequence[str],
    ) -> None:
        self.method, self.task, self.backbone = method, task, backbone
        self.classifier, self.data, self.preparation = classifier, data, preparation
        self.branches = branches

    def _parts(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Number of the part and its rows."""
        total = self.method.trajectories
        if self.method.features == "inversion":
            if self.data.reference is None:
                raise ContractError("inversion features need the reference set")
            total = min(total, len(self.data.reference))
        width = self.backbone.network_batch
        for part, start in enumerate(range(0, total, width)):
            yield part, np.arange(start, min(start + width, total))

    def _make(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        config = self.preparation.sampling
        if self.method.features == "inversion":
            reference = self.data.reference
            if reference is None or reference.labels is None:
                raise ContractError("inversion features need the labelled reference set")
            subjects = reference.subjects[rows]
            texts = [self.data.subjects[i].text for i in subjects]
            h = invert(self.backbone, config, reference.images[rows], texts, self.branches)
            labels = {name: reference.labels[name][rows] for name in self.task.attributes}
            prompts = np.zeros(len(rows), np.int64)
        else:
            prompts = rows % len(self.task.prompts)
            requests = [
                Request(self.task.prompts[p], OWN_NOISE + int(p), int(i), self.preparation.seed)
                for i, p in zip(rows, prompts, strict=True)
            ]
            h, images = record_trajectories(self.backbone, config, requests, self.branches)
            found = self.classifier.probabilities(images)
            labels = {name: found[name].argmax(1) for name in self.task.attributes}
        return {
            **{f"h {name}": kept for name, kept in h.items()},
            **{f"label {name}": np.asarray(kept, np.int64) for name, kept in labels.items()},
            "prompts": prompts,
            "seconds": np.array(0.0),
        }

    def run(self, stem: Path) -> tuple[_Seen, float, list[Path]]:
        """All of h, the seconds that it took, and the files that hold it until the end."""
        kept, files, seconds = [], [], 0.0
        parts = list(self._parts())
        for part, rows in parts:
            self.preparation.progress("recording trajectories", part, len(parts))
            path = stem.with_name(f"{stem.name}.part-{part:04d}.npz")
            arrays = load_arrays(path)
            if arrays is None:
                at = time.monotonic()
                arrays = self._make(rows)
                arrays["seconds"] = np.array(time.monotonic() - at)
                save_arrays(path, arrays)
            seconds += float(arrays["seconds"])
            kept.append(arrays)
            files.append(path)
        self.preparation.progress("recording trajectories", len(parts), len(parts))

        def whole(name: str) -> NDArray[Any]:
            return np.concatenate([arrays[name] for arrays in kept])

        seen = _Seen(
            {name: whole(f"h {name}") for name in self.branches},
            {name: whole(f"label {name}") for name in self.task.attributes},
            whole("prompts"),
        )
        return seen, seconds, files


def _learned(
    seen: _Seen,
    branch: str,
    y: NDArray[np.int64],
    groups: int,
    weight_decay: float,
    times: Sequence[int],
    preparation: Preparation,
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Heads of one grouping and branch as arrays, and their facts."""
    labels = torch.from_numpy(y)
    h = seen.h[branch]
    weights, biases, means, norms = [], [], [], []
    fitted: list[Fitted] = []
    for k in range(len(times)):
        preparation.progress("fitting heads", k, len(times))
        at = torch.from_numpy(h[:, k].astype(np.float32))
        head = fit_head(at, labels, groups, weight_decay)
        fitted.append(head)
        weights.append(head.weight.float())
        biases.append(head.bias.float())
        centres = [
            at[labels == g].mean(0) if (labels == g).any() else at.mean(0) for g in range(groups)
        ]
        means.append(torch.stack(centres))
        norms.append(at.norm(dim=1).mean())
    shares = [
        np.bincount(y[seen.prompts == p], minlength=groups) / max(1, (seen.prompts == p).sum())
        for p in range(int(seen.prompts.max()) + 1)
    ]
    arrays = {
        "weight": torch.stack(weights).numpy(),
        "bias": torch.stack(biases).numpy(),
        "means": torch.stack(means).numpy(),
        "norms": torch.stack(norms).numpy(),
        "shares": np.stack(shares),
    }
    facts = {
        "images": np.bincount(y, minlength=groups).tolist(),
        "held_out_accuracy": [round(head.accuracy, 4) for head in fitted],
        "held_out_balanced_accuracy": [round(head.balanced_accuracy, 4) for head in fitted],
        "weight_decay": [head.weight_decay for head in fitted],
    }
    return arrays, facts


def guided_times(
    method: BottleneckGuided, backbone: Backbone, sampling: SamplingConfig
) -> list[int]:
    """The sampler's timesteps without the first and the last ones that are left alone.

    None may be left: the images are then those of the backbone.
    """
    times = backbone.schedule.timesteps(sampling.steps, sampling.spacing)
    return times[method.skip_first : max(len(times) - method.skip_last, 0)]


def learn_heads(
    method: BottleneckGuided,
    task: Task,
    backbone: Backbone,
    classifier: AttributeClassifier,
    data: TrainingData,
    preparation: Preparation,
    groupings: Sequence[str],
) -> tuple[dict[tuple[str, str], Heads], dict[str, Any]]:
    """Heads for each grouping and branch, from the cache if the same ones were learned before.

    Args:
        method: Features, number of trajectories, weight decay, branch.
        task: Its prompts make the trajectories.
        backbone: Whose bottleneck is read.
        classifier: Labels the images that trajectories end in.
        data: Reference set of the classifier, and of inversion features.
        preparation: Seed, cache, progress, and the sampling that trajectories follow.
        groupings: Such as ``("gender", "race")`` or ``("gender/race",)``.
    Returns:
        (grouping, branch) -> heads, and facts: seconds, labelled images by group, held-out
        accuracies by timestep.
    Raises:
        InputError: If the backbone has no bottleneck.
    """
    required(backbone, Bottleneck, method.card.name)
    trainable = backbone.capability(Trainable)
    config = preparation.sampling
    branches = branches_of(method, backbone, config.guidance)
    times = backbone.schedule.timesteps(config.steps, config.spacing)
    content = {
        "what": "bottleneck heads",
        "version": VERSION,
        "backbone": backbone.weights_sha256,
        "dtype": None if trainable is None else str(trainable.dtype),
        "rows": backbone.network_batch,
        "data": images_sha256(data.reference),
        "classifier": module_sha256(classifier),
        "attributes": {name: list(levels) for name, levels in task.attributes.items()},
        "prompts": [prompt.text for prompt in task.prompts],
        "sampling": config.content(),
        "features": method.features,
        "trajectories": method.trajectories,
        "weight_decay": method.weight_decay,
        "branches": branches,
        "groupings": list(groupings),
        "seed": preparation.seed,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    stem = preparation.cache / "heads" / f"bottleneck-{digest}"
    finished = stem.with_suffix(".npz")
    with made_once(finished):
        stored = load_arrays(finished)
        if stored is None:
            collection = _Collection(
                method, task, backbone, classifier, data, preparation, branches
            )
            seen, seconds, files = collection.run(stem)
            at = time.monotonic()
            stored, facts = {}, {}
            for grouping in groupings:
                y = crossed(seen.labels, task.attributes, grouping)
                groups = math.prod(len(task.attributes[name]) for name in grouping.split("/"))
                for branch in branches:
                    arrays, found = _learned(
                        seen, branch, y, groups, method.weight_decay, times, preparation
                    )
                    name = f"{grouping} {branch}"
                    stored |= {f"{name} {key}": value for key, value in arrays.items()}
                    facts[name] = found
            seconds += time.monotonic() - at
            whole = {"seconds": seconds, "timesteps": times, "heads": facts}
            stored["facts"] = np.array(json.dumps(whole))
            save_arrays(finished, stored)
            for path in files:
                path.unlink(missing_ok=True)
    heads = {
        (grouping, branch): _unpacked(stored, f"{grouping} {branch}", times).to(backbone.device)
        for grouping in groupings
        for branch in branches
    }
    return heads, json.loads(str(stored["facts"]))


def _unpacked(stored: Mapping[str, NDArray[Any]], name: str, times: Sequence[int]) -> Heads:
    weight, bias, means, norms = (
        torch.from_numpy(stored[f"{name} {key}"]) for key in ("weight", "bias", "means", "norms")
    )
    return Heads(tuple(times), weight, bias, means, norms, stored[f"{name} shares"])
