"""Guidance of a batch's attribute distribution; ``distribution_guidance.py`` has the parameters.

Source: Parihar et al. 2024, arXiv 2402.18206. All gradients are closed forms of the linear heads,
so that neither autograd nor the U-Net's backward pass is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import Preparation, Request, Sampler, Samples, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import Backbone, Edit
from fairbench.diffusion.denoisers import Denoiser, conditioned, edited
from fairbench.diffusion.sampling import DDIMSampler, ddim
from fairbench.diffusion.schedule import Prediction, Schedule
from fairbench.methods.parts.bottleneck import Heads, guided_times, learn_heads
from fairbench.methods.parts.classifier import train_classifier

if TYPE_CHECKING:
    from fairbench.methods.distribution_guidance import DistributionGuidance

__all__ = [
    "CoupledSampler",
    "Goal",
    "SplitPrediction",
    "capped",
    "distance",
    "distribution_gradient",
    "newton_size",
    "paper_size",
    "split",
]

LEAST_SHARE = 1e-3
"""Wanted shares below it count as it: both losses divide by them."""


def distance(p: Tensor, target: Tensor, loss: str) -> Tensor:
    """Distance of the batch's shares (K,) from the wanted ones (K,), a scalar; 0 is reached.

    ``chi2``: sum (p - r)² / r. ``kl``: sum p log(p / r).
    """
    r = target.clamp(min=LEAST_SHARE)
    if loss == "chi2":
        return ((p - r).square() / r).sum()
    return torch.xlogy(p, p / r).sum()


def _slope(p: Tensor, target: Tensor, loss: str) -> Tensor:
    """(K,) derivative of `distance` by p."""
    r = target.clamp(min=LEAST_SHARE)
    slope: Tensor = 2 * (p - r) / r if loss == "chi2" else (p.clamp(min=1e-12) / r).log() + 1
    return slope


def _through_softmax(pi: Tensor, slope: Tensor, scale: float) -> Tensor:
    """(N, K) softmax probabilities times the Jacobian: scale * pi (slope - <pi, slope>)."""
    return scale * pi * (slope - (pi * slope).sum(1, keepdim=True))


def distribution_gradient(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    tau: float,
    loss: str,
    softening: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the batch's distance by each member's h.

    Args:
        h: (N, D).
        weight: (K, D) of the linear head.
        bias: (K,).
        target: (K,) wanted shares.
        tau: Temperature of the softmax that the shares are means of.
        loss: ``chi2`` or ``kl``.
        softening: Factor on the temperature of the softmax through which the gradient goes back;
            1 is the gradient itself. Above it confident members move too, while the shares, and
            so where the steps end, stay what they are.
    Returns:
        (N, K) probabilities pi, (N, K) gradient by the logits, and (N, D) gradient by h.

    Source: arXiv 2402.18206, batch distribution = mean of the members' probabilities.
    """
    logits = (h @ weight.T + bias) / tau
    pi = logits.softmax(1)
    soft = pi if softening == 1 else (logits / softening).softmax(1)
    scale = 1 / (len(h) * tau * softening)
    by_logits = _through_softmax(soft, _slope(pi.mean(0), target, loss), scale)
    return pi, by_logits, by_logits @ weight


def newton_size(
    pi: Tensor, by_logits: Tensor, weight: Tensor, target: Tensor, tau: float
) -> Tensor:
    """Step size at which the linearised shares come closest to the wanted ones, a scalar.

    A step of size gamma along the gradient changes the shares by -gamma q to first order. The
    chi-square distance of p - gamma q from r is least at gamma = sum((p - r) q / r) / sum(q² / r);
    for two groups p = r is reached exactly. 0 where the shares can't be moved that way.
    """
    p, r = pi.mean(0), target.clamp(min=LEAST_SHARE)
    moved = by_logits @ (weight @ weight.T)
    q = (pi * (moved - (pi * moved).sum(1, keepdim=True))).mean(0) / tau
    curvature = (q.square() / r).sum()
    size = ((p - r) * q / r).sum() / curvature
    return torch.where(curvature > 0, size.clamp(min=0), torch.zeros_like(size))


def paper_size(schedule: Schedule, t: int, scale: float) -> float:
    """The paper's step size, 300 scale * 1.5 beta_t^0.05, which no batch size enters.

    Source: released code of arXiv 2402.18206.
    """
    before = float(schedule.alpha(t - 1)) ** 2 if t > 0 else 1.0
    beta = 1 - float(schedule.alpha(t)) ** 2 / before
    return 300 * scale * 1.5 * float(beta**0.05)


def capped(step: Tensor, h: Tensor, max_rel: float) -> Tensor:
    """Rows of a step (N, D), none longer than max_rel times its row of h; 0: no cap."""
    if max_rel == 0:
        return step
    length = step.norm(dim=1, keepdim=True)
    longest = max_rel * h.norm(dim=1, keepdim=True)
    short: Tensor = step * (longest / length.clamp(min=1e-20)).clamp(max=1)
    return short


@dataclass(frozen=True)
class SplitPrediction(Prediction):
    """The edited clean image with the noise of the unedited prediction.

    Attributes:
        direction: The unedited prediction.

    Source: the asymmetric reverse process of Kwon et al. 2022, arXiv 2210.10960.
    """

    direction: Prediction

    @cached_property
    def noise(self) -> Tensor:
        """Predicted noise of the unedited network, (B, C, h, w)."""
        return self.direction.noise

    def bounded(
        self, bound: Callable[[Tensor], Tensor], *, consistent: bool = True
    ) -> SplitPrediction:
        """Both clean images brought into bounds."""
        edited_one = super().bounded(bound, consistent=consistent)
        direction = self.direction.bounded(bound, consistent=consistent)
        return dataclasses.replace(cast("SplitPrediction", edited_one), direction=direction)


def split(edited_one: Denoiser, direction: Denoiser) -> Denoiser:
    """The clean image of an edited denoiser with the noise of an unedited one."""

    def denoise(x: Tensor, t: int) -> Prediction:
        one, unedited = edited_one(x, t), direction(x, t)
        return SplitPrediction(one.x_t, one.alpha, one.sigma, one.kind, one.value, unedited)

    return denoise


@dataclass(frozen=True)
class Goal:
    """Heads and the shares that they are to see.

    Attributes:
        name: Grouping, such as ``"gender/race"``.
        heads: Branch of guidance -> heads.
        target: (K,) wanted shares.
    """

    name: str
    heads: Mapping[str, Heads]
    target: Tensor


class Guide:
    """Moves h of one batch towards all goals at once, and keeps a log.

    Args:
        method: Its parameters.
        goals: Several for marginals of several attributes.
        schedule: For the paper's step size.
        times: Timesteps at which to guide.
        rows: N members of the batch; further rows of a network call are padding.
    """

    def __init__(
        self,
        method: DistributionGuidance,
        goals: Sequence[Goal],
        schedule: Schedule,
        times: Sequence[int],
        rows: int,
    ) -> None:
        self.method, self.goals, self.schedule = method, goals, schedule
        self.times, self.rows = frozenset(times), rows
        self.log: list[dict[str, Any]] = []

    def edit(self, branch: str) -> Edit:
        """The edit of one branch."""

        def change(h: Tensor, t: int) -> Tensor:
            flat = h[: self.rows].flatten(1).float()
            step, shares = self.step(flat, t, branch)
            relative = step.norm(dim=1) / flat.norm(dim=1).clamp(min=1e-20)
            guided = t in self.times
            self.log.append(
                {"t": t, "branch": branch, "p": shares, "relative": relative, "guided": guided}
            )
            if not guided:
                return h
            moved = (flat - step).to(h.dtype).reshape(h[: self.rows].shape)
            return torch.cat([moved, h[self.rows :]])

        return change

    def step(self, h: Tensor, t: int, branch: str) -> tuple[Tensor, list[Tensor]]:
        """What to take from h, (N, D), the goals' steps at the same h summed, and their shares."""
        method, whole, shares = self.method, torch.zeros_like(h), []
        for goal in self.goals:
            heads = goal.heads[branch]
            k = heads.index(t)
            weight, bias = heads.weight[k].to(h.dtype), heads.bias[k].to(h.dtype)
            target = goal.target.to(h.dtype)
            pi, by_logits, gradient = distribution_gradient(
                h,
                weight,
                bias,
                target,
                method.temperature,
                method.loss,
                method.softening,
            )
            shares.append(pi.mean(0))
            size: Tensor | float
            if method.step_rule == "paper":
                size = paper_size(self.schedule, t, method.scale)
            else:
                size = method.newton * newton_size(
                    pi, by_logits, weight, target, method.temperature
                )
            whole = whole + size * gradient
        return capped(whole, h, method.max_rel), shares


class CoupledSampler(DDIMSampler):
    """DDIM whose batches of one prompt are guided together.

    Batch b of a prompt holds its images b N … (b + 1) N - 1, whoever asks: members that weren't
    asked for are made as well and dropped, so that an image never depends on what else a run, or
    a resumed half of one, asks for.

    Args:
        backbone: Frozen.
        preparation: Sampling and seed.
        method: Its parameters.
        goals: What to steer to.
        facts: For the record.
    """

    def __init__(
        self,
        backbone: Backbone,
        preparation: Preparation,
        method: DistributionGuidance,
        goals: Sequence[Goal],
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(backbone, preparation.sampling)
        self.method, self.goals = method, goals
        self.extra_parameters = sum(
            head.weight.numel() + head.bias.numel()
            for goal in goals
            for head in goal.heads.values()
        )
        self.times = self.backbone.schedule.timesteps(self.config.steps, self.config.spacing)
        self.guided_times = guided_times(method, backbone, self.config)
        self.guide: Guide | None = None
        self.facts = facts

    def batch_id(self, request: Request) -> int:
        """Prompt and number of the batch."""
        return request.prompt_index << 32 | request.image_index // self.method.batch

    def batches(self, requests: Sequence[Request], size: int) -> list[list[Request]]:
        """The requests by coupled batch; `size` has no say."""
        found: dict[int, list[Request]] = {}
        for request in requests:
            found.setdefault(self.batch_id(request), []).append(request)
        return list(found.values())

    def members(self, request: Request) -> list[Request]:
        """All N members of a request's batch."""
        first = request.image_index - request.image_index % self.method.batch
        return [
            dataclasses.replace(request, image_index=first + i) for i in range(self.method.batch)
        ]

    def denoiser(
        self, requests: Sequence[Request], groups: Sequence[int | None]
    ) -> tuple[Denoiser, int]:
        """A denoiser for one whole batch, and its calls an image and step."""
        contexts = self.contexts(requests, groups)
        plain = {name: conditioned(self.backbone, one) for name, one in contexts.items()}
        self.guide = guide = Guide(
            self.method, self.goals, self.backbone.schedule, self.guided_times, len(requests)
        )
        heads = self.goals[0].heads
        steered, calls = self.joined(
            {
                name: edited(one, self.backbone, guide.edit(name) if name in heads else None)
                for name, one in plain.items()
            }
        )
        if not self.method.asymmetric:
            return steered, calls
        direction, more = self.joined(plain)
        return split(steered, direction), calls + more

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> Samples:
        """Make one image a request, in whole coupled batches.

        Raises:
            ContractError: If there are no requests.
            InputError: If a batch doesn't fit one network call.
        """
        if not requests:
            raise ContractError("expected at least one request, seen none")
        require_room(self.method, self.backbone)  # out of memory, calls become smaller
        images: dict[int, NDArray[np.uint8]] = {}
        seen: dict[int, dict[str, NDArray[Any]]] = {}
        position = {id(request): i for i, request in enumerate(requests)}
        for batch in self.batches(requests, len(requests)):
            members = self.members(batch[0])
            denoise, a_step = self.denoiser(members, [None] * len(members))
            made = self.backbone.decode(ddim(self.backbone, denoise, members, self.config))
            log = self.diagnostics()
            for request in batch:
                row, at = request.image_index % self.method.batch, position[id(request)]
                images[at] = made[row]
                seen[at] = {name: values[row] for name, values in log.items()}
        order = range(len(requests))
        return Samples(
            images=np.stack([images[at] for at in order]),
            requested=None,
            network_calls=np.full(len(requests), a_step * self.config.steps, np.int64),
            batch_id=np.array([self.batch_id(request) for request in requests], np.int64),
            diagnostics={name: np.stack([seen[at][name] for at in order]) for name in seen[0]},
        )

    def diagnostics(self) -> dict[str, NDArray[Any]]:
        """What the guide of the last batch saw and did, a row a member.

        ``p_hat GROUPING BRANCH`` (N, S, K): shares of the batch that the heads see before each
        of the S steps, the same for all members; ``relative BRANCH`` (N, S): length of the
        member's own step beside that of its h, 0 where it wasn't guided.
        """
        assert self.guide is not None
        found: dict[str, NDArray[Any]] = {}
        for branch in self.goals[0].heads:
            log = [entry for entry in self.guide.log if entry["branch"] == branch]
            for g, goal in enumerate(self.goals):
                shares = torch.stack([entry["p"][g] for entry in log])
                every = shares.expand(self.guide.rows, *shares.shape)
                found[f"p_hat {goal.name} {branch}"] = _float(every)
            relative = torch.stack([entry["relative"] * entry["guided"] for entry in log], 1)
            found[f"relative {branch}"] = _float(relative)
        return found

    def observed(self, diagnostics: Mapping[str, NDArray[Any]]) -> Mapping[str, Any]:
        """Means of what the guidance saw over batches, and of what it did over images."""
        _, first = np.unique(diagnostics["batch_id"], return_index=True)
        means = {
            name: values[first].mean(0) if name.startswith("p_hat ") else values.mean(0)
            for name, values in diagnostics.items()
            if name != "batch_id"
        }
        found = {name: np.round(mean.astype(float), 4).tolist() for name, mean in means.items()}
        return {"guidance": {"batches": len(first), "timesteps": list(self.times), **found}}


def _float(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


def _marginal(task: Task, name: str) -> list[float]:
    """Wanted shares of one attribute's levels."""
    at = list(task.attributes).index(name)
    return [
        sum(share for share, cell in zip(task.target, task.cells, strict=True) if cell[at] == one)
        for one in task.attributes[name]
    ]


def groupings_of(task: Task, joint: bool) -> dict[str, list[float]]:
    """Grouping -> wanted shares: the task's groups, or each attribute for itself."""
    if joint:
        return {"/".join(task.attributes): list(task.target)}
    return {name: _marginal(task, name) for name in task.attributes}


def require_room(method: DistributionGuidance, backbone: Backbone) -> None:
    """Raise an InputError if a batch doesn't fit one network call."""
    if method.batch > backbone.network_batch:
        raise InputError(
            f"{method.card.name} sees a batch in one network call; {method.batch} don't fit its "
            f"{backbone.network_batch} rows; lower --param batch"
        )


def prepare(
    method: DistributionGuidance,
    task: Task,
    backbone: Backbone,
    data: TrainingData,
    preparation: Preparation,
) -> Sampler:
    """Train the classifier and the heads, or load those trained before.

    Raises:
        InputError: If a batch doesn't fit one network call.
    """
    require_room(method, backbone)
    classifier, seen = train_classifier(method, task, data, preparation, backbone.device)
    targets = groupings_of(task, method.joint)
    heads, learned = learn_heads(
        method, task, backbone, classifier, data, preparation, list(targets)
    )
    goals = [
        Goal(
            name,
            {branch: found for (grouping, branch), found in heads.items() if grouping == name},
            torch.tensor(target, device=backbone.device),
        )
        for name, target in targets.items()
    ]
    facts = {
        "training_seconds": seen["seconds"] + learned["seconds"],
        "classifier": seen,
        "bottleneck": learned,
    }
    return CoupledSampler(backbone, preparation, method, goals, facts)
