"""Train what reads the images: ``python -m fairbench.build.train_judges OUT``.

Two attribute judges, the feature encoder and the validity check, each from scratch on the first
5,000 images of the judge split, then measured on the last 1,000. Writes a weight file and a JSON
card each, and ``README.md`` with the numbers that a reader wants; overwrites what is there. On one
machine the same command gives the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn import functional

from fairbench.datasets.base import ArrayImages
from fairbench.datasets.cartoonfaces import ATTRIBUTES, load_split, manifest
from fairbench.instruments import cartoonfaces as judges
from fairbench.instruments.cartoonfaces import BATCH, JOINT, LEVELS
from fairbench.metrics.frechet import frechet_distance

SEED = 0
FIT = 5000
STEPS = {"primary": 2200, "second": 4000, "cartoonfaces": 1800, "validity": 6000}
NAMES = tuple(STEPS)
# The lowest multiple of .05 at which the check passes less than 1 % of averages of two of the
# images it was fitted to; some averages are of look-alikes and can't be told from a face.
THRESHOLD = 0.1
COMMAND = "python -m fairbench.build.train_judges OUT"

Images = NDArray[np.uint8]
Corruption = Callable[[Tensor, torch.Generator], Tensor]


def fit_split() -> ArrayImages:
    """The images that all four networks learn from."""
    return load_split("judge").take(np.arange(FIT))


def held_out_split() -> ArrayImages:
    """The images that none of them has seen."""
    split = load_split("judge")
    return split.take(np.arange(FIT, len(split)))


# Corruptions: (B, 3, 32, 32) float32 in [0, 255] -> the same; the caller clips and rounds.


def uniform(size: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    """(size, 1, 1, 1) uniform draws, one an image."""
    return low + (high - low) * torch.rand(size, 1, 1, 1, generator=rng)


def blur(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Gaussian blur of `sigma` pixels, one number or (B, 1, 1, 1); 0 changes nothing."""
    deviations = torch.as_tensor(sigma).expand(len(x), 1, 1, 1).clamp(min=1e-3)
    position = torch.arange(x.shape[-1], dtype=torch.float32)
    weight = torch.exp(-0.5 * ((position[:, None] - position) / deviations).square())
    weight = weight / weight.sum(-1, keepdim=True)
    return weight @ x @ weight.mT


def noisy(x: Tensor, sigma: Tensor | float, rng: torch.Generator) -> Tensor:
    """Additive Gaussian noise of `sigma` levels, one number or (B, 1, 1, 1)."""
    return x + sigma * torch.randn(x.shape, generator=rng)


def shifted(x: Tensor, reach: float, rng: torch.Generator) -> Tensor:
    """Moved by up to `reach` pixels each way, fractions interpolated; half are also mirrored."""
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = torch.where(torch.rand(len(x), generator=rng) < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = 1
    pixel = 2 / x.shape[-1]
    theta[:, :, 2] = (2 * torch.rand(len(x), 2, generator=rng) - 1) * reach * pixel
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def shuffled(x: Tensor, patch: int, rng: torch.Generator) -> Tensor:
    """The image's `patch` x `patch` squares in random order."""
    squares = functional.unfold(x, patch, stride=patch)
    order = torch.rand(len(x), squares.shape[2], generator=rng).argsort(1)
    mixed = squares.gather(2, order[:, None, :].expand_as(squares))
    return functional.fold(mixed, x.shape[-2:], patch, stride=patch)


def averaged(x: Tensor, share: Tensor | float, rng: torch.Generator) -> Tensor:
    """Each image mixed with another one of the batch, `share` of it kept."""
    step = int(torch.randint(1, len(x), (1,), generator=rng)) if len(x) > 1 else 0
    return share * x + (1 - share) * x.roll(step, 0)


def inverted(x: Tensor) -> Tensor:
    """The negative."""
    return 255 - x


def block_compressed(x: Tensor, step: Tensor | float) -> Tensor:
    """What JPEG does: 8 x 8 cosine coefficients rounded to multiples of `step` levels."""
    k = torch.arange(8, dtype=torch.float32)
    basis = torch.cos(torch.pi / 8 * (k + 0.5) * k[:, None]) / 2
    basis[0] /= 2**0.5
    blocks = x.shape[-1] // 8
    transform = torch.kron(torch.eye(blocks), basis)
    # High frequencies are rounded more coarsely, as in JPEG's tables.
    coarseness = 1 + (k[:, None] + k) / 4
    size = torch.as_tensor(step).expand(len(x), 1, 1, 1) * coarseness.repeat(blocks, blocks)
    rounded = torch.round(transform @ x @ transform.mT / size) * size
    y: Tensor = transform.mT @ rounded @ transform
    return y


def blank(x: Tensor, rng: torch.Generator) -> Tensor:
    """One random colour a picture."""
    return (255 * torch.rand(len(x), 3, 1, 1, generator=rng)).expand_as(x)


def uniform_noise(x: Tensor, rng: torch.Generator) -> Tensor:
    """Every value drawn anew, evenly."""
    return 255 * torch.rand(x.shape, generator=rng)


def gaussian_noise(x: Tensor, rng: torch.Generator) -> Tensor:
    """Every value drawn anew, around middle grey."""
    return 127.5 + 64 * torch.randn(x.shape, generator=rng)


def degraded(x: Tensor, rng: torch.Generator) -> Tensor:
    """The mild faults of a good generator.

    Up to 12 % of another face shining through, shifts, blur, compression, paleness, colour, noise.
    """
    size = len(x)
    x = averaged(x, 1 - uniform(size, -0.12, 0.12, rng).clamp(min=0), rng)
    x = shifted(x, 0.7, rng) if torch.rand((), generator=rng) < 0.5 else x
    x = blur(x, uniform(size, -0.4, 0.7, rng).clamp(min=0))
    chosen = torch.rand(size, 1, 1, 1, generator=rng) < 0.3
    x = torch.where(chosen, block_compressed(x, uniform(size, 2, 14, rng)), x)
    x = x + uniform(size, -0.3, 0.3, rng).clamp(min=0) * (x.mean(1, keepdim=True) - x)
    x = x + 5 * (2 * torch.rand(size, 3, 1, 1, generator=rng) - 1)
    return noisy(x, uniform(size, -3, 6, rng).clamp(min=0), rng)


REJECTED: Mapping[str, Corruption] = {
    "uniform noise": uniform_noise,
    "gaussian noise": gaussian_noise,
    "blur 2": lambda x, rng: blur(x, 2.0),
    "blur 3": lambda x, rng: blur(x, 3.0),
    "blur 4": lambda x, rng: blur(x, 4.0),
    "shuffled 4 x 4 patches": lambda x, rng: shuffled(x, 4, rng),
    "shuffled 8 x 8 patches": lambda x, rng: shuffled(x, 8, rng),
    "average of two faces": lambda x, rng: averaged(x, 0.5, rng),
    "inverted colours": lambda x, rng: inverted(x),
    "blank": blank,
    "additive noise 60": lambda x, rng: noisy(x, 60, rng),
    "additive noise 90": lambda x, rng: noisy(x, 90, rng),
}
"""What the validity check must reject, 99 % of each."""

ACCEPTED: Mapping[str, Corruption] = {
    "unchanged": lambda x, rng: x,
    "noise 2": lambda x, rng: noisy(x, 2, rng),
    "noise 5": lambda x, rng: noisy(x, 5, rng),
    "blur 0.3": lambda x, rng: blur(x, 0.3),
    "blur 0.5": lambda x, rng: blur(x, 0.5),
    "colour shift 4": lambda x, rng: x + 4 * torch.randn(len(x), 3, 1, 1, generator=rng).sign(),
    "all mild faults": degraded,
}
"""What it must accept: real images, and the mild faults of a good generator."""


def apply(corruption: Corruption, images: Images, seed: int = 0) -> Images:
    """(N, 32, 32, 3) uint8 images -> the same, corrupted."""
    rng = torch.Generator().manual_seed(seed)
    return to_images(corruption(to_pixels(images), rng))


def to_pixels(images: Images) -> Tensor:
    """(N, 32, 32, 3) uint8 -> (N, 3, 32, 32) float32 in [0, 255]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().contiguous()


def to_images(pixels: Tensor) -> Images:
    """The inverse of `to_pixels`, clipped and rounded."""
    return clipped(pixels).permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


def clipped(pixels: Tensor) -> Tensor:
    """What a uint8 image can hold of these pixels."""
    return pixels.clamp(0, 255).round()


def seen(pixels: Tensor) -> Tensor:
    """Network input of pixels; channels-last is a quarter faster on CPUs."""
    return judges.scale(clipped(pixels)).contiguous(memory_format=torch.channels_last)


def train(
    name: str, module: nn.Module, lr: float, loss_of: Callable[[Tensor, torch.Generator], Tensor]
) -> float:
    """Train by AdamW, cosine decay after a warm-up; `loss_of` gets shuffled indices of a batch.

    Returns:
        Seconds it took.
    """
    started = time.monotonic()
    steps = STEPS[name]
    rng = torch.Generator().manual_seed(SEED)
    module.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    order = torch.empty(0, dtype=torch.long)
    total = 0.0
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = torch.randperm(FIT, generator=rng)
        index, order = order[:BATCH], order[BATCH:]
        loss = loss_of(index, rng)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 250 == 0:
            seconds = time.monotonic() - started
            print(f"{name} step {step} {seconds:.0f}s loss {total / 250:.5f}", flush=True)
            total = 0.0
    module.to(memory_format=torch.contiguous_format).eval()
    return time.monotonic() - started


def label_tensor(split: ArrayImages) -> Tensor:
    """(N, 5) int64 labels, one column an attribute."""
    return torch.from_numpy(np.stack([split.labels[a] for a in ATTRIBUTES], axis=1)).long()


def attribute_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the attributes."""
    losses = [
        functional.cross_entropy(part, labels[:, i])
        for i, part in enumerate(torch.split(logits, list(LEVELS), dim=1))
    ]
    return torch.stack(losses).sum()


def train_judge(name: str, fit: ArrayImages) -> tuple[nn.Module, float]:
    """One attribute judge; augmented so that it also reads generated images."""
    torch.manual_seed(SEED)
    module = judges.JUDGES[name]()
    pixels, labels = to_pixels(fit.images), label_tensor(fit)

    def loss_of(index: Tensor, rng: torch.Generator) -> Tensor:
        x = shifted(pixels[index], 1.0, rng)
        x = blur(x, uniform(BATCH, -0.5, 0.7, rng).clamp(min=0))
        # Two levels at most: the nearest two skin tones of different races are 19 apart, and a
        # judge that has learnt to overlook more leans to the commoner one between them.
        x = x + 4 * torch.rand(BATCH, 3, 1, 1, generator=rng) - 2
        x = noisy(x, uniform(BATCH, -2, 6, rng).clamp(min=0), rng)
        return attribute_loss(module(seen(x)), labels[index])

    return module, train(name, module, 4e-3 if name == "primary" else 2e-3, loss_of)


class EncoderTraining(nn.Module):
    """The encoder and everything that its features must tell; all but the encoder is dropped.

    The heads are linear, so that content and every fault lie along straight lines in the features:
    Fréchet distances see means and covariances only.
    """

    kinds = ("clean", "blur", "noise", "compressed", "averaged", "shuffled", "inverted")

    def __init__(self) -> None:
        super().__init__()
        self.encoder = judges.FaceEncoder()
        dimension = self.encoder.dimension
        self.attributes = nn.Linear(dimension, sum(LEVELS))
        self.kind = nn.Linear(dimension, len(self.kinds))
        self.strength = nn.Linear(dimension, len(self.kinds))
        self.decoder = nn.Sequential(
            nn.Linear(dimension, 64 * 16),
            nn.Unflatten(1, (64, 4, 4)),
            nn.ReLU(),
            nn.Conv2d(64, 64 * 4, 3, 1, 1),
            nn.PixelShuffle(2),
            nn.ReLU(),
            nn.Conv2d(64, 48, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(48, 48, 1),
            nn.PixelShuffle(4),
        )

    def corrupt(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Half the batch stays clean; kinds (B,) and strengths (B,) in [0, 1] come along.

        Clean still means noise that nobody sees (3 levels) and a blur of a third of a pixel:
        otherwise noise of 2 levels already moves the features twenty times the sampling floor.
        """
        size = len(x)
        faulty = size // 2
        counts = [size - faulty, *(faulty // 6 + (i < faulty % 6) for i in range(6))]
        kind = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        strength = torch.rand(size, 1, 1, 1, generator=rng)
        strength[: counts[0]] = 0
        clean, soft, grainy, blocky, mixed, cut, negative = torch.split(x, counts)
        weight = dict(zip(self.kinds, torch.split(strength, counts), strict=True))
        half = len(cut) // 2
        y = torch.cat(
            [
                noisy(
                    blur(clean, uniform(len(clean), -0.3, 0.35, rng).clamp(min=0)),
                    uniform(len(clean), -2, 3, rng).clamp(min=0),
                    rng,
                ),
                blur(soft, 2.5 * weight["blur"]),
                noisy(grainy, 30 * weight["noise"], rng),
                block_compressed(blocky, 60 * weight["compressed"].clamp(min=0.02)),
                averaged(mixed, 1 - 0.5 * weight["averaged"], rng),
                shuffled(cut[:half], 4, rng),
                shuffled(cut[half:], 8, rng),
                inverted(negative),
            ]
        )
        return y, kind, strength.flatten()

    def loss(self, x: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Attributes of readable images, kind and strength of the fault, the image itself."""
        corrupted, kind, strength = self.corrupt(x, rng)
        inputs = seen(corrupted)
        features = self.encoder(inputs)
        readable = kind <= self.kinds.index("compressed")
        told = attribute_loss(self.attributes(features[readable]), labels[readable])
        graded = (kind > 0) & (kind <= self.kinds.index("averaged"))
        guess = self.strength(features).gather(1, kind[:, None])[:, 0]
        clean_guess = self.strength(features[kind == 0])[:, 1:5]
        grade = (guess - strength)[graded].square().mean() + clean_guess.square().mean()
        # Weak faults look clean and strong ones don't: the kind counts as far as it shows.
        shown = torch.where(graded, strength, 1.0)
        fault = functional.cross_entropy(self.kind(features), kind, reduction="none") * shown
        rebuilt = functional.mse_loss(self.decoder(features), inputs)
        total: Tensor = told + 0.3 * fault.mean() + 2 * grade + 10 * rebuilt
        return total


def train_encoder(name: str, fit: ArrayImages) -> tuple[judges.FaceEncoder, float]:
    """The encoder, its features standardised over the clean images."""
    torch.manual_seed(SEED)
    training = EncoderTraining()
    pixels, labels = to_pixels(fit.images), label_tensor(fit)

    def loss_of(index: Tensor, rng: torch.Generator) -> Tensor:
        return training.loss(pixels[index], labels[index], rng)

    seconds = train(name, training, 4e-3, loss_of)
    encoder = training.encoder
    with torch.inference_mode():
        chunks = torch.split(seen(pixels), BATCH)
        raw = torch.cat([encoder.bottleneck(encoder.trunk(c).flatten(1)) for c in chunks])
    norm = encoder.standardise
    norm.running_mean, norm.running_var = raw.mean(0), raw.var(0)
    return encoder, seconds


def not_faces(x: Tensor, rng: torch.Generator) -> Tensor:
    """32 images that aren't proper faces, of 32 that are; the hardest kinds most often."""
    soft, mixed, fine, coarse, negative, grainy, noise, empty = torch.split(
        x, [3, 17, 2, 4, 1, 2, 2, 1]
    )
    centre, spread = uniform(len(noise), 40, 215, rng), uniform(len(noise), 20, 100, rng)
    even = torch.rand((), generator=rng) < 0.5
    return torch.cat(
        [
            blur(soft, uniform(len(soft), 1.6, 4.5, rng)),
            averaged(mixed, uniform(len(mixed), 0.45, 0.55, rng), rng),
            shuffled(fine, 4, rng),
            shuffled(coarse, 8, rng),
            inverted(negative),
            noisy(grainy, uniform(len(grainy), 40, 100, rng), rng),
            uniform_noise(noise, rng) if even else noisy(centre.expand_as(noise), spread, rng),
            blank(empty, rng),
        ]
    )


def train_validity(name: str, fit: ArrayImages) -> tuple[nn.Module, float]:
    """The validity check: each step sees 32 faces and 32 images that aren't."""
    torch.manual_seed(SEED)
    module = judges.FaceOrNot()
    pixels = to_pixels(fit.images)
    target = torch.cat([torch.ones(BATCH // 2), torch.zeros(BATCH // 2)])

    def loss_of(index: Tensor, rng: torch.Generator) -> Tensor:
        face, other = torch.split(pixels[index], BATCH // 2)
        face = torch.cat([face[:8], degraded(face[8:], rng)])
        other = not_faces(other, rng)
        # The same faults on both sides, so that they say nothing about validity.
        other = torch.where(
            torch.rand(BATCH // 2, 1, 1, 1, generator=rng) < 0.5, degraded(other, rng), other
        )
        logits = module(seen(torch.cat([face, other])))[:, 0]
        return functional.binary_cross_entropy_with_logits(logits, target)

    return module, train(name, module, 3e-3, loss_of)


def confusion(truth: NDArray[Any], guess: NDArray[Any], size: int) -> list[list[int]]:
    """(size, size) counts, rows are the truth."""
    counts: NDArray[np.int64] = np.bincount(
        truth.astype(np.int64) * size + guess, minlength=size * size
    ).reshape(size, size)
    rows: list[list[int]] = counts.tolist()
    return rows


def measure_judge(judge: judges.Judge, split: ArrayImages) -> dict[str, Any]:
    """Accuracy, mean confidence and confusion counts, by attribute and for the crossing."""
    probabilities = judge(split.images)
    first, second = (probabilities[name] for name in JOINT)
    probabilities["/".join(JOINT)] = (first[:, :, None] * second[:, None, :]).reshape(
        len(split), -1
    )
    truths = dict(split.labels)
    truths["/".join(JOINT)] = truths[JOINT[0]] * len(ATTRIBUTES[JOINT[1]]) + truths[JOINT[1]]
    measured = {}
    for name, rows in probabilities.items():
        truth, guess = truths[name], rows.argmax(1)
        likelihood = rows[np.arange(len(rows)), truth].astype(np.float64)
        measured[name] = {
            "n": len(rows),
            "accuracy": float(np.mean(guess == truth)),
            "mean_confidence": float(rows.max(1).astype(np.float64).mean()),
            "log_loss": float(-np.log(likelihood.clip(1e-12)).mean()),
            "confusion": confusion(truth, guess, rows.shape[1]),
        }
    return measured


def measure_under_faults(judge: judges.Judge, split: ArrayImages) -> dict[str, dict[str, float]]:
    """Mild fault -> attribute -> accuracy; shows what a generator's faults do to the labels."""
    measured = {}
    for fault, corruption in ACCEPTED.items():
        probabilities = judge(apply(corruption, split.images))
        measured[fault] = {
            name: float(np.mean(rows.argmax(1) == split.labels[name]))
            for name, rows in probabilities.items()
        }
    return measured


def measure_validity(check: judges.ValidityCheck, split: ArrayImages) -> dict[str, Any]:
    """Share of images taken as valid, of each kind."""

    def valid(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return check(images)["validity"] >= check.threshold

    return {
        side: {
            name: {
                "n": len(split),
                "valid": float(np.mean(valid(apply(corruption, split.images)))),
            }
            for name, corruption in kinds.items()
        }
        for side, kinds in (("accepted", ACCEPTED), ("rejected", REJECTED))
    }


def blurring(sigma: float) -> Corruption:
    return lambda x, rng: blur(x, sigma)


def adding_noise(sigma: float) -> Corruption:
    return lambda x, rng: noisy(x, sigma, rng)


def compressing(step: float) -> Corruption:
    return lambda x, rng: block_compressed(x, step)


def mixing(share: float) -> Corruption:
    return lambda x, rng: averaged(x, 1 - share, rng)


LADDERS: Mapping[str, Mapping[str, Corruption]] = {
    "blur, px": {f"{s:g}": blurring(s) for s in (0.3, 0.5, 1.0, 2.0)},
    "noise, levels": {f"{s:g}": adding_noise(s) for s in (2, 4, 10, 25)},
    "compressed, step": {f"{s:g}": compressing(s) for s in (10, 20, 40)},
    "averaged, share of the other": {f"{s:g}": mixing(s) for s in (0.1, 0.25, 0.5)},
    "other": {
        "shuffled 8 x 8": lambda x, rng: shuffled(x, 8, rng),
        "inverted": lambda x, rng: inverted(x),
    },
}
"""What the encoder must see: faults in rising strength."""


def measure_encoder(encoder: judges.Encoder) -> dict[str, dict[str, float]]:
    """Fréchet distances of sets of 1,000 to 1,000 real images, faults in rising strength.

    The reference is from the evaluation split, which nothing was trained on: the encoder may know
    its own training images too well for a floor.
    """

    def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return encoder(images)["features"]

    n = 1000
    evaluation = load_split("evaluation")
    reference = features(evaluation.images[:n])
    rest = evaluation.take(np.arange(n, len(evaluation)))
    held_out = held_out_split().images
    rows: dict[str, dict[str, float]] = {
        "real": {
            "held out": frechet_distance(features(held_out), reference),
            "evaluation": frechet_distance(features(rest.images[:n]), reference),
        }
    }
    for ladder, rungs in LADDERS.items():
        rows[ladder] = {
            rung: frechet_distance(features(apply(corruption, held_out)), reference)
            for rung, corruption in rungs.items()
        }
    rows["male share"] = {}
    male, female = (np.flatnonzero(rest.labels["gender"] == g) for g in (1, 0))
    for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        count = round(share * n)
        index = np.concatenate([male[:count], female[: n - count]])
        rows["male share"][f"{share:g}"] = frechet_distance(
            features(rest.images[index]), reference
        )
    rows["one race only"] = {}
    for level, race in enumerate(ATTRIBUTES["race"]):
        index = np.flatnonzero(rest.labels["race"] == level)[:n]
        rows["one race only"][race] = frechet_distance(features(rest.images[index]), reference)
    return rows


def write(out: Path, name: str, module: nn.Module, seconds: float, facts: dict[str, Any]) -> None:
    """The weight file and its card."""
    packed = save_safetensors({k: v.contiguous() for k, v in module.state_dict().items()})
    (out / f"{name}.safetensors").write_bytes(packed)
    card = {
        "name": name,
        "architecture": (type(module).__doc__ or "").splitlines()[0],
        "parameters": sum(p.numel() for p in module.parameters()),
        "weights": {
            "file": f"{name}.safetensors",
            "sha256": hashlib.sha256(packed).hexdigest(),
            "bytes": len(packed),
        },
        "data": {
            "split": "judge",
            "sha256": manifest()["splits"]["judge"]["sha256"],
            "fit": FIT,
            "held_out": len(held_out_split()),
        },
        "training": {
            "command": COMMAND,
            "seed": SEED,
            "steps": STEPS[name],
            "batch": BATCH,
            "seconds": round(seconds),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        **facts,
    }
    (out / f"{name}.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def build(out: Path, name: str) -> None:
    """Train one network, write it, measure it as loaded from its files, complete the card."""
    fit = fit_split()
    seconds: float
    facts: dict[str, Any]
    if name in judges.JUDGES:
        module, seconds = train_judge(name, fit)
        judge = judges.Judge(name, module, {"weights": {"sha256": ""}, "held_out": {}}, "cpu")
        facts = {
            "attributes": dict(ATTRIBUTES),
            "held_out": measure_judge(judge, held_out_split()),
            "accuracy_under_mild_faults": measure_under_faults(judge, held_out_split()),
        }
    elif name in judges.ENCODERS:
        encoder, seconds = train_encoder(name, fit)
        module = encoder
        facts = {
            "dimension": judges.FaceEncoder.dimension,
            "frechet_distances_n1000": measure_encoder(
                judges.Encoder(name, encoder, {"weights": {"sha256": ""}}, "cpu")
            ),
        }
    else:
        module, seconds = train_validity(name, fit)
        stub = {"weights": {"sha256": ""}, "threshold": THRESHOLD}
        check = judges.ValidityCheck(module, stub, "cpu")
        facts = {"threshold": THRESHOLD, "held_out": measure_validity(check, held_out_split())}
    write(out, name, module, seconds, facts)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, ended by an empty line."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines) + "\n"


def summary(cards: Mapping[str, Any]) -> str:
    """``README.md``: what each network does on images that it hasn't seen."""
    text = f"""# What reads the images

Made by `{COMMAND}` (seed {SEED}) from the judge
split of CartoonFaces: fitted to the first {FIT:,} images, measured here on the last
{len(held_out_split()):,}. Labels are the parameters that the cartoons were drawn with; they say
nothing about people, and a judge must not be used on photographs. On *generated* images these
accuracies are an upper bound. The JSON cards hold full numbers, confusion counts (rows are the
truth) and the sha256 of each weight file.

"""
    text += table(
        ["network", "architecture", "parameters", "steps", "seconds"],
        [
            [
                f"`{name}`",
                card["architecture"],
                f"{card['parameters']:,}",
                str(card["training"]["steps"]),
                str(card["training"]["seconds"]),
            ]
            for name, card in cards.items()
        ],
    )
    text += "## Judges\n\nAccuracy / mean confidence, the latter honest where the two agree.\n"
    text += "Facial hair has a ceiling: some of it is too small to be seen at 32 x 32.\n\n"
    held_out = {name: cards[name]["held_out"] for name in judges.JUDGES}
    text += table(
        ["attribute", *held_out],
        [
            [
                key,
                *(
                    f"{h[key]['accuracy']:.3f} / {h[key]['mean_confidence']:.4f}"
                    for h in held_out.values()
                ),
            ]
            for key in held_out["primary"]
        ],
    )
    text += "Accuracy on the same images with mild faults, primary / second.\n\n"
    faults = [cards[name]["accuracy_under_mild_faults"] for name in judges.JUDGES]
    text += table(
        ["fault", *ATTRIBUTES],
        [
            [fault, *(" / ".join(f"{f[fault][name]:.3f}" for f in faults) for name in ATTRIBUTES)]
            for fault in ACCEPTED
        ],
    )
    text += "## Validity check\n\nShare taken as valid, of 1,000 images each.\n\n"
    kinds = cards["validity"]["held_out"]
    text += table(
        ["must be", "images", "valid"],
        [[side, name, f"{e['valid']:.3f}"] for side in kinds for name, e in kinds[side].items()],
    )
    text += """## Encoder

Fréchet distance of 1,000 images to 1,000 real ones of the evaluation split, which no network was
trained on. "real" is the floor.

"""
    distances = cards["cartoonfaces"]["frechet_distances_n1000"]
    text += table(
        ["set", "distance"],
        [
            [f"{kind}: {rung}", f"{value:.3f}"]
            for kind, rungs in distances.items()
            for rung, value in rungs.items()
        ],
    )
    return text.rstrip("\n") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for weights and cards")
    parser.add_argument(
        "--only",
        choices=NAMES,
        action="append",
        help="train just this one; the others' cards must be there",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or NAMES:
        build(arguments.out, name)
    cards = {name: json.loads((arguments.out / f"{name}.json").read_text()) for name in NAMES}
    (arguments.out / "README.md").write_text(summary(cards))


if __name__ == "__main__":
    main()
