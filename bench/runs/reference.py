"""What generated images are compared with: real ones that match the prompts, and error tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairbench.core.progress import Progress
from fairbench.core.task import Prompt, Task
from fairbench.datasets import cartoonfaces
from fairbench.instruments.measuring import Instruments, measure
from fairbench.scores.quality import Columns, Reference

__all__ = ["confusions_of", "encoder_columns", "make_reference", "real_images"]


def make_reference(
    task: Task,
    sensitive: Sequence[str],
    instruments: Instruments,
    cache: Path,
    progress: Progress,
) -> Reference:
    """The evaluation images that match the task's prompts, as the instruments see them.

    The evaluation split is balanced over role, gender and race, so that any choice of roles is
    balanced over gender and race.
    """
    part, answers = real_images(task)
    measured = measure(part.images, instruments, cache, progress)
    return Reference(
        features=measured.features,
        labels=dict(part.labels),
        prompt_index=answers,
        natural=np.stack([_natural(prompt, sensitive) for prompt in task.prompts]),
    )


def real_images(task: Task) -> tuple[cartoonfaces.Split, NDArray[np.int64]]:
    """The evaluation images that answer a prompt of the task, and which one, (M,)."""
    split = cartoonfaces.load_split("evaluation")
    answers = np.full(len(split), -1, dtype=np.int64)
    for p, prompt in reversed(list(enumerate(task.prompts))):
        answers[_matches(prompt, split.labels)] = p
    return split.take(answers >= 0), answers[answers >= 0]


def _matches(prompt: Prompt, labels: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.bool_]:
    """(N,) which images show what a prompt asks for."""
    matching = np.ones(len(labels["role"]), dtype=bool)
    for name, level in prompt.stratum.items():
        matching &= labels[name] == cartoonfaces.ATTRIBUTES[name].index(level)
    return matching


def _natural(prompt: Prompt, sensitive: Sequence[str]) -> NDArray[np.float64]:
    """Shares of the sensitive crossing that the backbones were trained on, given the prompt."""
    shares = cartoonfaces.DEFAULT_BIAS.shares
    axes = list(cartoonfaces.CELL_ATTRIBUTES)
    for name, level in prompt.stratum.items():
        index = cartoonfaces.ATTRIBUTES[name].index(level)
        shares = np.take(shares, [index], axis=axes.index(name))
    gone = tuple(axis for axis, name in enumerate(axes) if name not in sensitive)
    kept = [name for name in axes if name in sensitive]
    crossed = shares.sum(axis=gone).transpose([kept.index(name) for name in sensitive])
    return np.asarray(crossed.ravel() / crossed.sum(), dtype=np.float64)


def confusions_of(instruments: Instruments) -> dict[str, Mapping[str, NDArray[np.int64]]]:
    """Judge, the primary one first -> attribute or crossing -> counts on labelled images."""
    return {judge.name: judge.confusion for judge in instruments.judges}


def encoder_columns(instruments: Instruments) -> dict[str, Columns]:
    """Encoder -> how its columns are called.

    ``fid`` and ``kid`` are Inception's with clean-fid's resizing and no others'.
    """
    special = {"inception@clean": ("fid", "kid"), "inception@tf": ("fid_tf", "kid_tf")}
    names = [instruments.encoder.name, *(one.name for one in instruments.public)]
    columns = {}
    for name in names:
        stem = re.sub(r"\W", "_", name)
        columns[name] = Columns(stem, *special.get(name, (f"frechet_{stem}", f"kernel_{stem}")))
    return columns
