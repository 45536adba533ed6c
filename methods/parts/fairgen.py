"""Training and sampling of FairGen's adapters; ``fairgen.py`` holds the parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import Preparation, Request, Sampler, SamplingConfig, TrainingData
from fairbench.core.prompts import Phrase, spoken
from fairbench.core.task import Prompt, Task, phrases_of
from fairbench.diffusion.backbone import Backbone, CrossAttention, Trainable, required
from fairbench.diffusion.denoisers import Denoiser, conditioned, guided, within
from fairbench.diffusion.sampling import Stream, ddim
from fairbench.diffusion.training import Draws, train_or_load
from fairbench.methods.parts.adapters import AdapterBank
from fairbench.methods.parts.indicator import IndicatedSampler, Indicator

if TYPE_CHECKING:
    from fairbench.methods.fairgen import FairGen

TRAINING_PARAMETERS = (
    "cfg_branch",
    "neutral",
    "eta",
    "rank",
    "iterations",
    "batch",
    "learning_rate",
    "rollout_every",
    "rollout_guidance",
    "timestep_shift",
)


def composed_target(neutral: Tensor, category: Tensor, eta: float) -> Tensor:
    """Noise composition neutral + eta (category - neutral), in any parameterisation.

    The weights sum to one, so that composing noises, clean images or velocities is the same.
    Source: arXiv 2412.18810; the target is that of Concept Sliders (arXiv 2311.12092) with the
    neutral prompt in the place of a negative one.
    """
    return neutral + eta * (category - neutral)


def prompt_pairs(
    neutral: str, prompts: Sequence[Prompt], phrases: Sequence[Phrase]
) -> list[tuple[str, str]]:
    """(neutral, category) texts that one category is trained on.

    Args:
        neutral: ``list``, ``unseen`` or ``empty``.
        prompts: Neutral prompts that the first two learn from.
        phrases: How the category is said, a level or the levels of a group.
    """
    if neutral == "empty":
        return [("", spoken(phrases))]
    return [(prompt.text, prompt.naming(phrases)) for prompt in prompts]


def initial_seed(seed: int, attribute: str) -> int:
    """Of an attribute's first values: two attributes must not start from the same directions."""
    return int.from_bytes(hashlib.sha256(f"{seed} {attribute}".encode()).digest()[:6])


def overlap(bank: AdapterBank, references: Sequence[AdapterBank]) -> Tensor:
    """How parallel adapters of several attributes are, in [0, 2]; 0 is orthogonal.

    Mean over layers and pairs of categories of cos²(U, U_ref) + cos²(D, D_ref), each factor
    flattened. Gradients reach `bank` alone.

    Source: arXiv 2412.18810, whose released form is the signed cosine of detached weights: it has
        no gradient, and with one it would push adapters to be anti-parallel.
    """
    pairs = []
    for reference in references:
        for name, mine in bank.named_parameters():
            # Squares keep an upper factor of zero, the start, finite.
            theirs = reference.get_parameter(name).detach().flatten(1)
            dots = mine.flatten(1) @ theirs.T
            sizes = mine.flatten(1).square().sum(1)[:, None] * theirs.square().sum(1)
            pairs.append((dots.square() / (sizes + 1e-12)).mean())
    return 2 * torch.stack(pairs).mean()


@dataclass(frozen=True)
class Trajectories:
    """States that the model visits with its adapters on.

    Attributes:
        x: (S, R, C, h, w) states of R rows at S timesteps.
        t: The S timesteps.
        category: (R,) category that was on.
        neutral, named: (R, L, D) contexts of the two prompts of each row.
    """

    x: Tensor
    t: tuple[int, ...]
    category: Tensor
    neutral: Tensor
    named: Tensor


class AdapterTraining:
    """Learns all categories of one attribute side by side, by the shared trainer.

    Each image belongs to one category and only that category's adapter acts on it, so that the
    gradients are those of separate runs. The trajectories that its loss is computed on outlive a
    step: to the trainer it is what a checkpoint carries.

    Args:
        method: Its parameters.
        backbone: Frozen.
        attribute: Name of the attribute.
        levels: Its K categories.
        prompts: Neutral prompts.
        sampling: Steps and spacing of the trajectories.
        seed: The run's seed.
        references: Trainings of other attributes, finished, to whose adapters these are to be
            orthogonal.
        said: Attribute -> level -> how it is said, where that isn't the level's own name.
    """

    def __init__(
        self,
        method: FairGen,
        backbone: Backbone,
        attribute: str,
        levels: Sequence[str],
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        seed: int,
        references: Sequence[AdapterTraining] = (),
        said: Mapping[str, Mapping[str, Phrase]] = MappingProxyType({}),
    ) -> None:
        adaptable = required(backbone, CrossAttention, method.card.name)
        self.method, self.backbone, self.seed = method, backbone, seed
        self.references = tuple(references) if method.orthogonality else ()
        self.dtype = str(next(adaptable.network.parameters()).dtype)
        self.attribute, self.levels = attribute, tuple(levels)
        self.rollout = SamplingConfig(
            sampling.steps, method.rollout_guidance, 0.0, sampling.spacing
        )
        self.pairs = [
            prompt_pairs(method.neutral, prompts, phrases_of(attribute, level, said))
            for level in levels
        ]
        self.bank = AdapterBank(
            adaptable.network,
            [f"{attribute}={level}" for level in levels],
            adaptable.layers,
            rank=method.rank,
            seed=initial_seed(seed, attribute),
        )
        self.facts: Mapping[str, Any] = {}
        self._round: int | None = None
        self._trajectories: Trajectories | None = None
        self._rolled: dict[str, Tensor] = {}

    @property
    def content(self) -> dict[str, Any]:
        """Everything that the trained adapters depend on, beside the trainer's own settings."""
        parameters = asdict(self.method)
        content: dict[str, Any] = {
            "what": "fairgen adapters",
            "version": self.method.version,
            "backbone": self.backbone.weights_sha256,
            "parameters": {name: parameters[name] for name in TRAINING_PARAMETERS},
            "attribute": self.attribute,
            "pairs": self.pairs,
            "rollout": self.rollout.content(),
            "dtype": self.dtype,
            "rows": self.backbone.network_batch,  # of a trajectory
            "seed": self.seed,
        }
        if self.references:
            content["orthogonality"] = self.method.orthogonality
            content["references"] = [reference.key for reference in self.references]
        return content

    @property
    def key(self) -> str:
        """Hash of `content`."""
        content = self.content
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def gates(self, category: Tensor) -> Tensor:
        """(R, K) one-hot gates of (R,) categories."""
        return torch.nn.functional.one_hot(category, len(self.levels)).float()

    @torch.no_grad()
    def roll_out(self, round_index: int) -> Trajectories:
        """Fresh trajectories with the adapters on: on-policy states, no image data."""
        rows = self.backbone.network_batch
        rng = np.random.default_rng([self.seed, Stream.TRAINING, round_index])
        category = rng.permutation(np.arange(rows) % len(self.levels))
        texts = [self.pairs[k][rng.integers(len(self.pairs[k]))] for k in category]
        neutral = self.backbone.embed([pair[0] for pair in texts])
        named = self.backbone.embed([pair[1] for pair in texts])
        empty = self.backbone.embed([""] * rows)
        if neutral is None or named is None or empty is None:
            raise ContractError(f"{self.backbone.name} takes no prompt")
        # Their own noise: a prompt index that no image of a run has.
        requests = [
            Request(Prompt(""), 2**31 + round_index, row, self.seed) for row in range(rows)
        ]
        on = torch.from_numpy(category)
        gates = self.gates(on)
        contexts = {"cond": neutral, "uncond": empty}
        branches = {
            name: adapted_branch(
                name,
                self.method.cfg_branch,
                conditioned(self.backbone, context),
                lambda: self.bank.gated(gates),
            )
            for name, context in contexts.items()
        }
        scale = self.rollout.guidance
        denoise = guided(branches["cond"], branches["uncond"] if scale != 1 else None, scale)
        states: list[Tensor] = []
        times: list[int] = []

        def observe(x: Tensor, t: int) -> None:
            states.append(x)
            times.append(t)

        ddim(self.backbone, denoise, requests, self.rollout, observe=observe)
        return Trajectories(torch.stack(states), tuple(times), on, neutral, named)

    def trajectories(self, round_index: int) -> Trajectories:
        """Those of one round: made with the adapters as they are, unless they are there."""
        if self._trajectories is None or round_index != self._round:
            self._rolled = {name: p.detach().clone() for name, p in self.bank.state_dict().items()}
            self._trajectories, self._round = self.roll_out(round_index), round_index
        return self._trajectories

    def loss(self, draws: Draws) -> Tensor:
        """Scalar loss of the rows of one part of a step; logs ``normalised_loss``.

        That is the squared error over ||category - neutral||², which starts at eta squared.
        """
        method = self.method
        seen = self.trajectories(draws.step // method.rollout_every)
        parts = [draws.part] if draws.part else []
        rng = np.random.default_rng([self.seed, Stream.TRAINING, 2**31, draws.step, *parts])
        rows = torch.from_numpy(rng.integers(seen.x.shape[1], size=draws.rows))
        # Never the first state: pure noise, where the neutral and the named prompt hardly differ.
        at = torch.from_numpy(rng.integers(min(1, len(seen.t) - 1), len(seen.t), size=draws.rows))
        x, category = seen.x[at, rows], seen.category[rows]
        t = torch.tensor(seen.t)[at] + method.timestep_shift
        t = t.clamp(max=len(self.backbone.schedule) - 1).to(x.device)
        neutral, named = seen.neutral[rows], seen.named[rows]
        with torch.no_grad():
            without = self._predict_frozen(x, t, neutral)
            target = composed_target(without, self._predict_frozen(x, t, named), method.eta)
        with self.bank.gated(self.gates(category)):
            predicted = self.backbone.predict(x, t, neutral).value
        error = (predicted - target).square().flatten(1).mean(1)
        # A mean for each category, so that a rare draw of one doesn't slow its learning.
        weight = 1 / torch.bincount(category, minlength=len(self.levels))[category]
        loss = (weight.to(error) * error).sum()
        if self.references:
            loss = loss + method.orthogonality * overlap(
                self.bank, [reference.bank for reference in self.references]
            )
        distance = (
            (target - without).square().mean() / method.eta**2
            if method.eta
            else target.new_ones(())
        )
        draws.log("normalised_loss", error.detach().mean() / distance.clamp(min=1e-12))
        return loss

    def _predict_frozen(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        width = self.backbone.network_batch
        parts = zip(*(torch.split(rows, width) for rows in (x, t, context)), strict=True)
        return torch.cat([self.backbone.predict(*part).value for part in parts])

    def state(self) -> dict[str, Any]:
        """Of the trajectories: the adapters that made them."""
        return {"rolled": self._rolled}

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """The same trajectories again, by the adapters that made them; changes the adapters."""
        if step % self.method.rollout_every:
            self.bank.load_state_dict(state["rolled"])
            self.trajectories(step // self.method.rollout_every)

    def run(self, preparation: Preparation) -> None:
        """Train to the end, or load the end."""
        self.facts = train_or_load(
            self.bank,
            "fairgen",
            self.content,
            self.method.plan(),
            self.loss,
            preparation,
            device=self.backbone.device,
            what=f"training {self.attribute} adapters",
            carried=self,
        )

    @property
    def normalised_loss(self) -> float:
        """Mean over the last tenth of the steps of loss / ||category - neutral||²."""
        return float(self.facts["diagnostics_last_tenth"]["normalised_loss"])


def adapted_branch(
    name: str, where: str, denoiser: Denoiser, adapted: Callable[[], AbstractContextManager[None]]
) -> Denoiser:
    """One branch of guidance, with the adapters on where they belong.

    A shift that doesn't depend on the prompt moves the guided prediction by itself with ``both``
    and by the guidance scale times itself with ``cond``.

    Args:
        name: The branch, ``cond`` or ``uncond``.
        where: ``cond`` or ``both``, the branches that adapters act in.
        denoiser: The branch without adapters.
        adapted: Opens a context in which the adapters are on.
    """
    return within(denoiser, adapted) if where in (name, "both") else denoiser


class FairGenSampler(IndicatedSampler):
    """DDIM with the adapters of each image's own group on.

    Args:
        backbone: Frozen.
        config: Steps and guidance.
        bank: Adapters of all attributes of the task.
        group_gates: (K, C) gates of each group of the task, one 1 an attribute, times strength.
        indicator: Draws the group of an image.
        method: Its parameters.
        facts: For the record.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: SamplingConfig,
        bank: AdapterBank,
        group_gates: Tensor,
        indicator: Indicator,
        method: FairGen,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(backbone, config, indicator)
        self.bank, self.group_gates = bank, group_gates
        self.method, self.facts = method, facts
        self.extra_parameters = sum(p.numel() for p in bank.parameters())
        self._merged: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}

    def batches(self, requests: Sequence[Request], size: int) -> list[list[Request]]:
        """Merged weights serve one group a batch; else consecutive runs."""
        if not self.method.merged:
            return super().batches(requests, size)
        by_group: dict[int, list[Request]] = {}
        for request in requests:
            by_group.setdefault(self.group(request), []).append(request)
        split = super().batches
        return [batch for group in sorted(by_group) for batch in split(by_group[group], size)]

    def branch(
        self,
        name: str,
        context: Tensor | None,
        requests: Sequence[Request],
        groups: Sequence[int | None],
    ) -> Denoiser:
        """The branch with the adapters gated or merged, where the method has them."""
        plain = super().branch(name, context, requests, groups)
        adapted = self._adapted([group for group in groups if group is not None])
        return adapted_branch(name, self.method.cfg_branch, plain, adapted)

    def _adapted(self, groups: Sequence[int]) -> Callable[[], AbstractContextManager[None]]:
        if not self.method.merged:
            gates = self.bank.acting(self.group_gates[list(groups)])
            return lambda: self.bank.gated(gates)
        if len(set(groups)) > 1:
            raise ContractError("merged adapters serve one group a batch; use batches()")
        if groups[0] not in self._merged:
            self._merged[groups[0]] = self.bank.merge(self.group_gates[groups[0]])
        return lambda: self.bank.merged(self._merged[groups[0]])


def joined(
    backbone: Backbone,
    banks: Sequence[AdapterBank],
    rank: int,
    layers: Mapping[str, nn.Linear] | None = None,
) -> AdapterBank:
    """One bank with the categories of several, in order; `layers` as for each of them."""
    network = required(backbone, Trainable, "adapters").network
    categories = [category for bank in banks for category in bank.categories]
    whole = AdapterBank(network, categories, layers, rank=rank)
    whole.load_state_dict(
        {
            name: torch.cat([bank.state_dict()[name] for bank in banks])
            for name in whole.state_dict()
        }
    )
    return whole.requires_grad_(False)


def prepare(
    method: FairGen, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
) -> Sampler:
    """Train or load the adapters of the task, and gate them by the indicator."""
    prompts = data.neutral_prompts
    if method.neutral == "unseen":
        evaluated = {prompt.text for prompt in task.prompts}
        prompts = tuple(prompt for prompt in prompts if prompt.text not in evaluated)
        if not prompts:
            raise InputError(
                f"fairgen: task {task.name} evaluates every neutral prompt of the data set, and "
                "neutral=unseen leaves these out; choose another task, or neutral=list"
            )
    learned = {"/".join(task.attributes): task.groups} if method.joint else task.attributes
    trainings: list[AdapterTraining] = []
    for attribute, levels in learned.items():
        training = AdapterTraining(
            method,
            backbone,
            attribute,
            levels,
            prompts,
            preparation.sampling,
            preparation.seed,
            trainings,
            task.said,
        )
        training.run(preparation)
        trainings.append(training)
    banks = [training.bank for training in trainings]
    bank = joined(backbone, banks, method.rank)
    cells = [(group,) for group in task.groups] if method.joint else task.cells
    facts = {
        "training_seconds": sum(training.facts["seconds"] for training in trainings),
        "normalised_loss": {one.attribute: one.normalised_loss for one in trainings},
        "parameters_a_category": bank.parameters_a_category,
    }
    if len(banks) > 1:
        facts["overlap"] = {
            trainings[i].attribute: float(overlap(banks[i], banks[:i]).detach())
            for i in range(1, len(banks))
        }
    return FairGenSampler(
        backbone,
        preparation.sampling,
        bank,
        group_gates(bank, list(learned), cells, method.strength),
        Indicator.of(method.indicator, task.target, preparation),
        method,
        facts,
    )


def group_gates(
    bank: AdapterBank,
    attributes: Sequence[str],
    cells: Sequence[tuple[str, ...]],
    strength: float,
) -> Tensor:
    """(K, C) gates of each group, whose cell has one level an attribute."""
    gates = torch.zeros(len(cells), len(bank.categories))
    for group, cell in enumerate(cells):
        for attribute, level in zip(attributes, cell, strict=True):
            gates[group, bank.categories.index(f"{attribute}={level}")] = strength
    return gates
