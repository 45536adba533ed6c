"""What the training scripts of the backbones share: data, a resumable loop, the loss."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional

from fairbench.backbones.base import weights_sha256
from fairbench.datasets.cartoonfaces import TRAINING_IMAGES, TRAINING_SEED, training_split

SEED = TRAINING_SEED
BATCH = 64


def training_set() -> tuple[Tensor, dict[str, np.ndarray]]:
    """The biased images, (N, 3, 32, 32) float32 in [-1, 1], and their labels."""
    split = training_split()
    images = torch.from_numpy(np.array(split.images)).permute(0, 3, 1, 2)
    return images.float() / 127.5 - 1, dict(split.labels)


class TrainingRun:
    """One resumable training run: module, optimiser, averaged weights, steps, elapsed seconds."""

    def __init__(
        self,
        path: Path,
        module: nn.Module,
        steps: int,
        lr: float,
        decay: float,
        seed: int = SEED,
    ) -> None:
        self.path, self.module, self.steps, self.lr, self.seed = path, module, steps, lr, seed
        self.parameters = list(module.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=1e-2, fused=True)
        self.ema = EMAModel(
            self.parameters, decay=decay, use_ema_warmup=True, power=0.75, foreach=True
        )
        self.step, self.elapsed = 0, 0.0
        if path.exists():
            saved = torch.load(path, weights_only=True)
            module.load_state_dict(saved["module"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.ema.load_state_dict(saved["ema"])
            self.step, self.elapsed = saved["step"], saved["elapsed"]

    def save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)

    def train(self, loss_of: Callable[[np.random.Generator], Tensor]) -> None:
        """Train for all steps; the learning rate warms up for 200, then decays by a cosine."""
        started = saved = time.monotonic()
        before = self.elapsed
        recent: list[float] = []
        while self.step < self.steps:
            rng = np.random.default_rng([self.seed, self.step])
            torch.manual_seed(self.seed * 1_000_003 + self.step)
            share = self.step / self.steps
            warm = min(1.0, (self.step + 1) / 200)
            for group in self.optimizer.param_groups:
                group["lr"] = (
                    self.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
                )
            loss = loss_of(rng)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.ema.step(self.parameters)
            self.step += 1
            recent.append(loss.item())
            now = time.monotonic()
            self.elapsed = before + now - started
            if self.step % 100 == 0:
                mean, recent = np.mean(recent), []
                print(
                    f"{self.path.stem} step {self.step} {self.elapsed:.0f}s loss {mean:.5f}",
                    flush=True,
                )
            if now - saved > 60:
                saved = now
                self.save()
        self.save()
        self.ema.copy_to(self.parameters)


def velocity_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    clean: Tensor,
    schedule: DDIMScheduler,
    rng: np.random.Generator,
) -> Tensor:
    """Mean squared error of the predicted velocity, timesteps evenly spread over the batch.

    One timestep from each of B equal parts of the schedule: the same mean, less variance.
    """
    size, abar = len(clean), schedule.alphas_cumprod
    t = torch.from_numpy((np.arange(size) + rng.random(size)) * (len(abar) / size)).long()
    alpha = abar[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - abar[t]).sqrt().view(-1, 1, 1, 1)
    noise = torch.randn_like(clean)
    predicted = network(alpha * clean + sigma * noise, t)
    return functional.mse_loss(predicted, alpha * noise - sigma * clean)


def earlier_stages(start: Path | None) -> list[dict[str, Any]]:
    """The stages that made the pipeline `start`, from its ``training.json``; none without one."""
    stages: list[dict[str, Any]] = []
    if start is not None:
        stages += json.loads((start / "training.json").read_text())["stages"]
    return stages


def write_facts(
    folder: Path, command: str, seconds: float, facts: dict[str, Any], start: Path | None = None
) -> None:
    """Write ``training.json`` beside the weights: how they were made and what came out.

    Args:
        folder: The pipeline.
        command: What was called, without the interpreter.
        seconds: Time that the training took.
        facts: What came out.
        start: Pipeline that was trained further; its own stages come first.
    """
    stage = {"command": f"python -m {command}", "seconds": round(seconds)}
    if start:
        stage["note"] = "FOLDER is the pipeline of the stage before."
    stages = [*earlier_stages(start), stage]
    facts = {**facts, "training_images": TRAINING_IMAGES, "seed": SEED, "stages": stages}
    facts["weights_sha256"] = weights_sha256(folder)
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
