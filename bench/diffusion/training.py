"""The one trainer: AdamW, averaged weights, resumable, on one or several devices.

Built on accelerate, so that the same command trains on a CPU, on a GPU, or on several under
``accelerate launch``. A step's randomness comes from the seed and the step alone: a training that
was interrupted ends in the same weights as one that wasn't; on a GPU as far as its kernels add in
the same order, which those of attention don't promise.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from fairbench.core.errors import ContractError, InputError
from fairbench.core.progress import Progress
from fairbench.diffusion.devices import (
    made_once,
    meet,
    process_index,
    resolve_autocast,
    together,
    training_processes,
)
from fairbench.diffusion.sampling import Stream
from fairbench.storage.networks import load_state, load_tensors, save_state, save_tensors

__all__ = [
    "Carried",
    "Draws",
    "Loss",
    "Surroundings",
    "TrainingPlan",
    "seeded_modules",
    "train_or_load",
]

CHECKPOINT_SECONDS = 30.0
Precision = Literal["auto", "float32", "bfloat16"]


@contextmanager
def seeded_modules(seed: int) -> Iterator[None]:
    """Modules built inside draw their fresh weights, on the CPU, from this seed.

    They know the global generator only: it is put back, and those of other devices aren't touched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@dataclass(frozen=True)
class TrainingPlan:
    """How a network is trained.

    Attributes:
        steps: Optimiser steps.
        batch: Rows a step, over all devices and accumulated parts together.
        learning_rate: Peak of AdamW's, after a linear warm-up.
        warmup: Steps of the warm-up.
        weight_decay: Of AdamW.
        ema_decay: Of the averaged weights, which are what training returns; reached gradually.
            0: the last weights.
        max_norm: Gradients are clipped to this norm.
        accumulate: Parts that a batch is split into, for little memory.
        precision: Of autocast; ``auto`` is bfloat16 where the device computes it natively.
        validate_every: Steps between validations, if the training has one; the weights of the
            best one are what training returns.
        rate_schedule: What follows the warm-up: a cosine down to `final_rate` at the last step, or
            the peak throughout. With the latter a training is the beginning of every longer one,
            which goes on from where the longest shorter one in the cache ended.
        final_rate: Where the cosine ends, a share of the peak.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 50
    weight_decay: float = 1e-2
    ema_decay: float = 0.995
    max_norm: float = 1.0
    accumulate: int = 1
    precision: Precision = "auto"
    validate_every: int = 50
    rate_schedule: Literal["cosine", "constant"] = field(
        default="cosine", metadata={"omit_default": True}
    )
    final_rate: float = field(default=0.01, metadata={"omit_default": True})

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.accumulate < 1 or self.validate_every < 1:
            raise ContractError(
                "steps, batch, accumulate and validate_every must be at least 1; seen "
                f"{self.steps}, {self.batch}, {self.accumulate}, {self.validate_every}"
            )

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        if self.rate_schedule == "constant":
            return self.learning_rate * warm
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * warm * (self.final_rate + (1 - self.final_rate) * cosine)

    def content(self) -> dict[str, Any]:
        """What it says to a key; newer fields only where they differ from their defaults."""
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if not one.metadata.get("omit_default") or getattr(self, one.name) != one.default
        }


class Draws:
    """The randomness of one part of one step, and what the loss wants to have on record.

    Attributes:
        step: Steps before this one.
        part: Which of the parts that all devices split the step into.
        rng: For indices and timesteps.
        rows: Rows that this part of the batch has.
        logged: Name -> value, as given to :meth:`log`.
    """

    def __init__(self, seed: int, step: int, part: int, rows: int, device: torch.device) -> None:
        sequence = np.random.SeedSequence([seed, Stream.TRAINING, step, part])
        self.step, self.part = step, part
        self.rng = np.random.default_rng(sequence)
        self.rows, self.device = rows, device
        state = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
        self._generator = torch.Generator().manual_seed(state)
        self.logged: dict[str, float] = {}

    def gaussian(self, *shape: int) -> Tensor:
        """Standard normal float32 on the training's device, drawn on the CPU."""
        return torch.randn(shape, generator=self._generator).to(self.device)

    def stratified(self) -> Tensor:
        """(rows,) float64 in [0, 1), one from each of `rows` equal parts, in random order.

        The same mean as independent draws, with less variance.
        """
        spread = (np.arange(self.rows) + self.rng.random(self.rows)) / self.rows
        return torch.from_numpy(self.rng.permutation(spread))

    def log(self, name: str, value: Tensor | float) -> None:
        """Keep a number whose mean over the training goes into the record."""
        self.logged[name] = float(value)


class Surroundings(Protocol):
    """Of a training: where it belongs. A method's ``Preparation`` is one."""

    @property
    def seed(self) -> int:
        """All randomness follows from it."""

    @property
    def cache(self) -> Path:
        """Folder that checkpoints and finished networks are kept in."""

    @property
    def progress(self) -> Progress:
        """``progress(what, done, total)``."""

    @property
    def dtype(self) -> str:
        """Number format of a backbone that the training runs through."""


Loss = Callable[[Draws], Tensor]
"""The mean loss over ``draws.rows`` rows, a scalar with gradients."""


class Carried(Protocol):
    """What a loss makes of the weights at some step and goes on using in later ones."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which it is made again."""
        ...

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Make it again as it was before a step.

        Args:
            state: Of :meth:`state`.
            step: Steps that were taken. The module's weights may be changed: the trainer sets
                them afterwards.
        """
        ...


def recomputes_activations(device: torch.device) -> bool:
    """Whether the backward pass makes activations again instead of keeping them: on GPUs.

    Gradients are the same. There memory bounds the batch; on a CPU it is only slower.
    """
    return device.type == "cuda"


class _Training:
    """A training under way: weights, optimiser, averages, the best so far, sums of diagnostics."""

    def __init__(
        self,
        module: nn.Module,
        plan: TrainingPlan,
        loss_of: Loss,
        validate: Callable[[], float] | None,
        seed: int,
        what: str,
        device: torch.device,
        carried: Carried | None,
    ) -> None:
        from diffusers.training_utils import EMAModel

        self.processes = training_processes()
        self.index = process_index() if self.processes > 1 else 0
        if self.processes > 1:
            meet(device)  # from here on they are one group
        self.module, self.plan, self.loss_of = module, plan, loss_of
        self.validate, self.seed, self.what, self.device = validate, seed, what, device
        self.carried = carried
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.statistics = _statistics(module)
        self.counted = _copies(self.statistics)
        if self.statistics and (plan.ema_decay > 0 or validate is not None):
            raise ContractError(
                f"{what}: batch norms' statistics are those of the last weights; expected "
                f"ema_decay 0 and no validation, seen {plan.ema_decay:g}"
            )
        if not self.parameters:
            raise ContractError(f"{what}: expected parameters to train, seen none")
        parts = plan.accumulate * self.processes
        if plan.batch % parts:
            raise InputError(
                f"{what}: a batch of {plan.batch} can't be split into {plan.accumulate} "
                f"accumulated parts on {self.processes} devices; choose a "
                "multiple of their product"
            )
        self.rows = plan.batch // parts
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        self.ema: Any = None
        if plan.ema_decay > 0:
            self.ema = EMAModel(
                self.parameters, decay=plan.ema_decay, use_ema_warmup=True, power=0.75
            )
        if recomputes_activations(device) and hasattr(module, "enable_gradient_checkpointing"):
            cast("Any", module).enable_gradient_checkpointing()
        self.autocast = resolve_autocast(plan.precision, device)
        self.step, self.seconds = 0, 0.0
        self.wider = 0
        self.saved_step: int | None = None
        self.logged: dict[str, list[float]] = {}
        self.losses: list[float] = []
        self.best: tuple[float, int, list[Tensor]] | None = None

    def load(self, path: Path) -> None:
        """Go on from a checkpoint if there is a whole one."""
        saved = load_state(path, self.device)
        if saved is None:
            return
        if self.carried is not None:
            self.carried.restore(saved["carried"], saved["step"])
        with torch.no_grad():
            for parameter, value in zip(self.parameters, saved["parameters"], strict=True):
                parameter.copy_(value)
            for name, value in self.statistics.items():
                value.copy_(saved["statistics"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.wider = saved.get("wider", 0)
        self.saved_step = self.step
        self.logged, self.losses = saved["logged"], saved["losses"]
        if saved["best"] is not None:
            self.best = (saved["best"][0], saved["best"][1], list(saved["best"][2]))

    def save(self, path: Path) -> None:
        if self.index:
            return
        state = {
            "parameters": [p.detach() for p in self.parameters],
            "statistics": self.counted,
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "wider": self.wider,
            "logged": self.logged,
            "losses": self.losses,
            "best": self.best,
            "carried": None if self.carried is None else self.carried.state(),
        }
        save_state(path, state)
        self.saved_step = self.step

    def divergence(self, seen: str, step: int) -> InputError:
        """The error of a training whose numbers stopped being finite."""
        kept = "no state was kept yet"
        if self.saved_step is not None:
            kept = f"the state after step {self.saved_step} is kept, and gone on from"
        return InputError(
            f"{self.what} diverged: {seen} at step {step} of {self.plan.steps}; lower its "
            f"learning rate (seen {self.plan.learning_rate:g}) by the parameter whose name ends "
            f"in learning_rate, which trains anew. For the same parameters {kept}"
        )

    def take_step(self, checkpoint: Callable[[], None]) -> None:
        """One optimiser step; `checkpoint` is called once the weights are known to be good."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step)
        # A checkpoint is of the state before this step, whose loss moves the statistics already.
        self.counted = _copies(self.statistics)
        total, norm, logged = self._gradients(self.autocast)
        if not _all_finite(total, norm) and self.autocast != torch.float32:
            # Some CPUs' convolutions in bfloat16 give gradients that are no numbers, where those
            # in float32 are fine. The same draws again: nothing else differs.
            with torch.no_grad():
                for name, counted in self.counted.items():
                    self.statistics[name].copy_(counted)
            total, norm, logged = self._gradients(torch.float32)
            self.wider += 1
        if not _all_finite(total, norm):
            raise self.divergence(f"loss {total} and gradient norm {norm}", self.step + 1)
        checkpoint()
        self.optimizer.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        self.losses.append(total)
        for name, value in logged.items():
            self.logged.setdefault(name, []).append(value)
        self.step += 1
        if self.validate is not None and (
            self.step % self.plan.validate_every == 0 or self.step == self.plan.steps
        ):
            self._validate()

    def _gradients(self, dtype: torch.dtype) -> tuple[float, float, dict[str, float]]:
        """Gradients of this step, clipped, with its loss, their norm and what was logged.

        Args:
            dtype: Of autocast.
        """
        from accelerate.utils import reduce

        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        logged: dict[str, float] = {}
        first = self.index * self.plan.accumulate
        parts = self.plan.accumulate * self.processes
        for part in range(first, first + self.plan.accumulate):
            draws = Draws(self.seed, self.step, part, self.rows, self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = self.loss_of(draws)
            (loss / parts).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / parts
            for name, value in draws.logged.items():
                logged[name] = logged.get(name, 0.0) + value / self.plan.accumulate
        if self.processes > 1:
            with together():
                whole = torch.tensor(total, dtype=torch.float64, device=self.device)
                total = float(reduce(whole, "sum"))
                for name in sorted(logged):
                    mine = torch.tensor(logged[name], dtype=torch.float64, device=self.device)
                    logged[name] = float(reduce(mine, "sum")) / self.processes
                for parameter in self.parameters:
                    if parameter.grad is not None:
                        parameter.grad = reduce(parameter.grad, "sum")
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.plan.max_norm))
        return total, norm, logged

    def _validate(self) -> None:
        if self.validate is None:
            return
        with self.averaged():
            self.module.eval()
            value = self.validate()
            _train_mode(self.module)
            if self.best is None or value < self.best[0]:
                self.best = (value, self.step, [p.detach().clone() for p in self.parameters])

    def averaged(self) -> _Averaged:
        """Context within which the module holds the averaged weights."""
        return _Averaged(self.ema, self.parameters)

    def finish(self) -> None:
        """Put the weights that training returns into the module."""
        with torch.no_grad():
            if self.best is not None:
                for parameter, value in zip(self.parameters, self.best[2], strict=True):
                    parameter.copy_(value)
            elif self.ema is not None:
                self.ema.copy_to(self.parameters)

    def facts(self) -> dict[str, Any]:
        """What the record says about this training."""
        tail = -max(1, len(self.losses) // 10)
        facts: dict[str, Any] = {
            "seconds": self.seconds,
            "steps": self.step,
            "loss_first": self.losses[0],
            "loss_last_tenth": _mean(self.losses[tail:]),
            "trained_parameters": sum(p.numel() for p in self.parameters),
            "precision": str(self.autocast).removeprefix("torch."),
        }
        if self.wider:
            facts["float32_steps"] = self.wider
        if self.best is not None:
            facts["validation"] = {"best": self.best[0], "step": self.best[1]}
        if self.logged:
            facts["diagnostics"] = {name: _mean(all_) for name, all_ in self.logged.items()}
            facts["diagnostics_last_tenth"] = {
                name: _mean(all_[tail:]) for name, all_ in self.logged.items()
            }
        return facts


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _all_finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


class _Averaged:
    def __init__(self, ema: Any, parameters: list[nn.Parameter]) -> None:
        self.ema, self.parameters = ema, parameters

    def __enter__(self) -> None:
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)

    def __exit__(self, *error: object) -> None:
        if self.ema is not None:
            self.ema.restore(self.parameters)


def train_or_load(
    module: nn.Module,
    name: str,
    content: Mapping[str, Any],
    plan: TrainingPlan,
    loss_of: Loss,
    preparation: Surroundings,
    *,
    device: torch.device,
    what: str,
    validate: Callable[[], float] | None = None,
    carried: Carried | None = None,
) -> dict[str, Any]:
    """Train a module in place, or load what the same training left in the cache.

    Args:
        module: Its parameters that require gradients are trained; others stay as they are. What
            its batch norms count is kept with them.
        name: First part of the file's name, such as ``"tiw"``.
        content: Everything else that the result depends on: method and version, backbone, data,
            parameters. Plan, seed and number format are added here.
        plan: How.
        loss_of: The loss of one part of a batch.
        preparation: Gives seed, cache folder and progress.
        device: Where the module is.
        what: What the user reads while it trains.
        validate: Held-out loss, lower is better, called in eval mode with the averaged weights.
        carried: What the loss keeps between steps and checkpoints have to hold.
    Returns:
        Facts for the record: seconds, steps, first and last loss, diagnostics.
    Raises:
        InputError: If the loss stops being finite; the last good checkpoint is kept.
    """
    budget = plan.content()
    whole = {
        "content": dict(content),
        "plan": budget,
        "precision": str(resolve_autocast(plan.precision, device)),
        "seed": preparation.seed,
        "dtype": preparation.dtype,
        "processes": training_processes(),  # each draws rows of its own
    }
    folder = preparation.cache / "networks"
    finished = folder / f"{name}-{_digest(whole)}.safetensors"
    ends = None
    if plan.rate_schedule == "constant":
        del budget["steps"]
        ends = _Ends(folder, f"{name}-{_digest(whole)}")
    with made_once(finished if ends is None else ends.lock):
        found = _load_finished(module, finished)
        if found is not None:
            return found
        return _trained_anew(
            _Training(module, plan, loss_of, validate, preparation.seed, what, device, carried),
            finished,
            ends,
            preparation.progress,
        )


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Ends:
    """Where trainings that differ in their number of steps alone have ended, for longer ones."""

    folder: Path
    name: str

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def at(self, steps: int) -> Path:
        return self.folder / f"{self.name}-{steps}.ended.pt"

    def longest(self, steps: int) -> Path | None:
        """That of most steps, of those with fewer than `steps`."""
        found = {
            int(path.name.split("-")[-1].split(".")[0]): path
            for path in self.folder.glob(f"{self.name}-*.ended.pt")
        }
        shorter = [count for count in found if count < steps]
        return found[max(shorter)] if shorter else None


def _trained_anew(
    training: _Training, finished: Path, ends: _Ends | None, progress: Progress
) -> dict[str, Any]:
    """Train, from where an interrupted or a shorter training stopped; facts for the record."""
    module, plan, what = training.module, training.plan, training.what
    unfinished = finished.with_suffix(".partial.pt")
    training.load(unfinished)
    if ends is not None and training.step == 0:
        shorter = ends.longest(plan.steps)
        if shorter is not None:
            training.load(shorter)
    _train_mode(module)
    before, started = training.seconds, time.monotonic()
    saved = started

    def checkpoint() -> None:
        nonlocal saved
        now = time.monotonic()
        training.seconds = before + now - started
        if now - saved > CHECKPOINT_SECONDS:
            saved = now
            training.save(unfinished)

    while training.step < plan.steps:
        progress(what, training.step, plan.steps)
        training.take_step(checkpoint)
    progress(what, plan.steps, plan.steps)
    training.seconds = before + time.monotonic() - started
    if ends is not None:
        training.counted = _copies(training.statistics)
        training.save(ends.at(plan.steps))
    training.finish()
    if not all(bool(torch.isfinite(value).all()) for value in _trained(module).values()):
        # No loss has seen the last step's weights.
        raise training.divergence("weights that aren't finite", plan.steps)
    module.eval()
    facts = training.facts()
    if training.index == 0:
        save_tensors(finished, _trained(module), facts)
        unfinished.unlink(missing_ok=True)
    if training.processes > 1:
        meet(training.device)
        if training.index:  # batch norms have counted other rows here
            _load_finished(module, finished)
    return facts


def _train_mode(module: nn.Module) -> None:
    """Training mode but for dropout, which would draw from the global generator."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.eval()


def _trained(module: nn.Module) -> dict[str, Tensor]:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return trained | _statistics(module)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    """What batch norms count of the batches that they see."""
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
        for name, value in part.named_buffers(recurse=False)
    }


def _load_finished(module: nn.Module, path: Path) -> dict[str, Any] | None:
    """Weights and facts of a finished training; None if there is none or it is damaged."""
    stored = load_tensors(path)
    if stored is None:
        return None
    state, facts = stored
    targets = _trained(module)
    if state.keys() != targets.keys():
        return None
    with torch.no_grad():
        for name, parameter in targets.items():
            parameter.copy_(state[name])
    module.eval()
    return facts
