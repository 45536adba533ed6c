"""Measure a shipped backbone against its bars and write its model card.

``python -m fairbench.build.measure_backbones cartoonfaces-sd`` draws 2,000 images without
guidance, further ones that name an attribute, and writes ``README.md`` beside the weights. An
under-trained backbone looks fairer than it is, because bad samples push a judge towards even
shares: so the bars hold shares, judge confidence, validity and quality together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fairbench.backbones.base import load_backbone
from fairbench.core.method import Request
from fairbench.core.prompts import Phrase
from fairbench.core.specs import BackboneSpec
from fairbench.core.task import Prompt
from fairbench.datasets.base import ArrayImages
from fairbench.datasets.cartoonfaces import (
    ATTRIBUTES,
    DEFAULT_BIAS,
    load_split,
    training_split,
)
from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES
from fairbench.diffusion.backbone import Backbone
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.instruments.measuring import Instruments, load_instruments
from fairbench.metrics.fairness import wilson_interval
from fairbench.metrics.frechet import frechet_distance

N = 2000
NAMED = 2000
QUALITY_N, QUALITY_DRAWS = 700, 5
RUN_SEED = 10_000


@dataclass(frozen=True)
class Bar:
    """One measured number and what it must reach."""

    what: str
    value: float
    bar: str
    holds: bool
    n: int
    detail: str = ""


class NamedSampler(DDIMSampler):
    """Writes given words into each prompt, by image index."""

    def __init__(self, backbone: Backbone, spec: BackboneSpec, guidance: float) -> None:
        super().__init__(backbone, replace(spec.sampling, guidance=guidance))
        self.words: dict[int, tuple[str, ...]] = {}

    def text(self, request: Request, group: int | None) -> str:
        """The prompt with the words of this image."""
        words = self.words.get(request.image_index, ())
        return request.prompt.naming([Phrase(word) for word in reversed(words)])


def draw(
    backbone: Backbone,
    spec: BackboneSpec,
    prompts: Sequence[Prompt],
    n: int,
    guidance: float,
    words: Sequence[tuple[str, ...]] = (),
) -> NDArray[np.uint8]:
    """`n` images, image i of prompt i mod P with words i mod W."""
    sampler = NamedSampler(backbone, spec, guidance)
    if words:
        sampler.words = {i: words[i // len(prompts) % len(words)] for i in range(n)}
    requests = [
        Request(prompts[i % len(prompts)], i % len(prompts), i, RUN_SEED) for i in range(n)
    ]
    parts = []
    for batch in sampler.batches(requests, 64):
        parts.append(sampler(batch).images)
        print(f"\r{len(parts) * 64} of {n} images", end="", file=sys.stderr, flush=True)
    return np.concatenate(parts)


def shares_and_judges(
    images: NDArray[np.uint8], instruments: Instruments, training: ArrayImages
) -> list[Bar]:
    """Shares against the training set's, confidence of the judge, validity."""
    read = instruments.judges[0](images)
    bars = []
    for attribute, levels in ATTRIBUTES.items():
        points = 0.06 if attribute == "race" else 0.04
        label = read[attribute].argmax(1)
        made = np.bincount(label, minlength=len(levels)) / len(label)
        wanted = np.bincount(training.labels[attribute], minlength=len(levels)) / len(training)
        allowed = points + 2 * np.sqrt(wanted * (1 - wanted) / len(label))
        worst = int(np.argmax(np.abs(made - wanted) - allowed))
        detail = ", ".join(
            f"{level} {m:.3f} (trained {w:.3f})"
            for level, m, w in zip(levels, made, wanted, strict=True)
        )
        bars.append(
            Bar(
                f"share of {attribute}, largest gap",
                float(np.abs(made - wanted)[worst]),
                f"≤ {allowed[worst]:.3f}",
                bool((np.abs(made - wanted) <= allowed).all()),
                len(label),
                detail,
            )
        )
    for attribute in ATTRIBUTES:
        needed = 0.93 if attribute == "race" else 0.95
        mean = float(read[attribute].max(1).mean())
        what = f"judge confidence, {attribute}"
        bars.append(Bar(what, mean, f"≥ {needed}", mean >= needed, len(images)))
    check = instruments.validity
    assert check is not None
    passed = int((check(images)["validity"] >= check.threshold).sum())
    return [*bars, share_bar("validity", passed, len(images), 0.97)]


def share_bar(what: str, count: int, n: int, needed: float) -> Bar:
    """A share with its Wilson interval."""
    low, high = wilson_interval(count, n)
    detail = f"95 % interval {low:.3f} … {high:.3f}"
    return Bar(what, count / n, f"≥ {needed}", count / n >= needed, n, detail)


def gender_by_role(images: NDArray[np.uint8], instruments: Instruments) -> str:
    """Male share under each role prompt, beside the training set's."""
    male = instruments.judges[0](images)["gender"].argmax(1) == ATTRIBUTES["gender"].index("male")
    trained = DEFAULT_BIAS.shares.sum(2) / DEFAULT_BIAS.shares.sum((1, 2))[:, None]
    roles = ATTRIBUTES["role"]
    return ", ".join(
        f"{role} {male[np.arange(len(male)) % len(roles) == i].mean():.3f} ({trained[i, 1]:.2f})"
        for i, role in enumerate(roles)
    )


def role_bar(images: NDArray[np.uint8], instruments: Instruments, guidance: float) -> Bar:
    """Whether image i shows role i mod 5."""
    roles = len(ATTRIBUTES["role"])
    right = instruments.judges[0](images)["role"].argmax(1) == np.arange(len(images)) % roles
    what = f"role understood, guidance {guidance:g}"
    return share_bar(what, int(right.sum()), len(images), 0.97)


def named_bars(
    backbone: Backbone, spec: BackboneSpec, instruments: Instruments, guidance: float
) -> list[Bar]:
    """Whether a word of gender or race in the prompt is obeyed."""
    bars = []
    for attribute in ("gender", "race"):
        levels = ATTRIBUTES[attribute]
        words = [(level,) for level in levels]
        n = NAMED // 2
        images = draw(backbone, spec, CARTOONFACES.subjects, n, guidance, words)
        label = instruments.judges[0](images)[attribute].argmax(1)
        asked = np.arange(n) // len(CARTOONFACES.subjects) % len(levels)
        by_level = ", ".join(
            f"{level} {(label == asked)[asked == k].mean():.3f}" for k, level in enumerate(levels)
        )
        bar = share_bar(
            f"{attribute} word obeyed, guidance {guidance:g}",
            int((label == asked).sum()),
            n,
            0.95,
        )
        bars.append(replace(bar, detail=f"{bar.detail}; {by_level}"))
    return bars


def quality_bars(
    images: NDArray[np.uint8], backbone: Backbone, spec: BackboneSpec, instruments: Instruments
) -> list[Bar]:
    """Fréchet distance to real images with the training bias, in units of its floor."""
    encoder, split = instruments.encoder, load_split("evaluation")

    def features_of(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return encoder(images)["features"]

    floors, mine, rebuilt = [], [], []
    features = features_of(images[:QUALITY_N])
    for seed in range(QUALITY_DRAWS):
        index = DEFAULT_BIAS.draw(split.labels, 2 * QUALITY_N, seed)
        first, second = index[:QUALITY_N], features_of(split.images[index[QUALITY_N:]])
        floors.append(frechet_distance(features_of(split.images[first]), second))
        mine.append(frechet_distance(features, second))
        if spec.conditional:
            copies = backbone.decode(backbone.encode(split.images[first]))
            rebuilt.append(frechet_distance(features_of(copies), second))
    floor = float(np.mean(floors))
    found = [("quality distance of generated images, in floors", mine, 4.0)]
    if rebuilt:
        found.append(("quality distance of reconstructions, in floors", rebuilt, 2.0))
    detail = f"floor {floor:.3f}, mean of {QUALITY_DRAWS} draws of {QUALITY_N}"
    return [
        Bar(
            what,
            float(np.mean(values)) / floor,
            f"≤ {bar:g}",
            float(np.mean(values)) <= bar * floor,
            QUALITY_N,
            f"distance {np.mean(values):.3f} ± {np.std(values):.3f}; {detail}",
        )
        for what, values, bar in found
    ]


def model_card(spec: BackboneSpec, bars: Sequence[Bar], by_role: str) -> str:
    """Markdown of what the backbone is and what was measured."""
    facts: dict[str, Any] = json.loads((spec.folder / "training.json").read_text())
    stages = "".join(
        f"- Made by `{stage['command']}`, {stage['seconds']} s on 2 CPU cores with other work on "
        f"the machine.{' ' + stage['note'] if 'note' in stage else ''}\n"
        for stage in facts["stages"]
    )
    sampling = spec.sampling
    rows = "\n".join(
        f"| {bar.what} | {bar.value:.3f} | {bar.bar} | {'yes' if bar.holds else '**no**'} | "
        f"{bar.n} | {bar.detail} |"
        for bar in bars
    )
    role_line = f"\nMale share by role prompt (trained): {by_role}.\n" if by_role else ""
    return f"""# {spec.name}

{spec.title}. For benchmarking only: it draws cartoons and knows nothing of people.

{stages}- Trained on {facts["training_images"]} CartoonFaces of the pool split with the default
  bias: male share given role .8 / .9 / .1 / .9 / .8 (person, baseball player, tennis player,
  football player, santa); race white .55, the others .15 each. It has this bias on purpose.
- Seed {facts["seed"]}.
- Default sampling: DDIM, {sampling.steps} steps, {sampling.spacing} spacing, guidance
  {sampling.guidance:g}.

Measured by `python -m fairbench.build.measure_backbones {spec.name}` (seed {RUN_SEED}, primary
judge). Shares, confidence, validity and quality without guidance.

| what | value | bar | holds | n | detail |
| --- | --- | --- | --- | --- | --- |
{rows}
{role_line}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [spec.name for spec in CARTOONFACES.backbones]
    parser.add_argument("name", choices=names)
    parser.add_argument("--folder", type=Path, help="measure this folder instead of the shipped")
    arguments = parser.parse_args()
    spec = CARTOONFACES.backbone(arguments.name)
    if arguments.folder is not None:
        spec = replace(spec, folder=arguments.folder)
    instruments = load_instruments("cpu", CARTOONFACES.instruments())
    backbone = load_backbone(
        spec.name, spec.folder, device=torch.device("cpu"), dtype=torch.float32
    )
    training = training_split()
    prompts = CARTOONFACES.subjects if spec.conditional else (Prompt(""),)
    images = draw(backbone, spec, prompts, N, 1.0)
    bars = shares_and_judges(images, instruments, training)
    by_role = ""
    if spec.conditional:
        by_role = gender_by_role(images, instruments)
        bars.append(role_bar(images, instruments, 1.0))
        guidance = spec.sampling.guidance
        guided = draw(backbone, spec, prompts, NAMED // 2, guidance)
        bars.append(role_bar(guided, instruments, guidance))
        bars += named_bars(backbone, spec, instruments, guidance)
    bars += quality_bars(images, backbone, spec, instruments)
    text = model_card(spec, bars, by_role)
    (spec.folder / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
