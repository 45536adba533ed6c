"""Judges by name, as ``--judge`` and a data set give it: one file or folder, or one of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from fairbench.core.errors import InputError, unknown_name
from fairbench.datasets.base import Dataset
from fairbench.instruments.base import AttributeJudge
from fairbench.instruments.catalogue import instrument_specs, load_instrument
from fairbench.instruments.fairface import load_fairface
from fairbench.instruments.trained import is_trained_judge, load_trained_judge, trained_judges

__all__ = ["judge_names", "load_judge"]

CHECKPOINTS = (".pt", ".pth")


def judge_names(dataset: Dataset, asked: Sequence[str], cache: Path) -> tuple[str, ...]:
    """The judges of a run, the first being the one that scores come from.

    Args:
        dataset: Whose images are judged.
        asked: What the user named; then it is these and no others.
        cache: Folder that trained judges lie in.

    Raises:
        InputError: If the data set needs a trained one and there is none.
    """
    if asked:
        return tuple(dict.fromkeys(asked))
    own = dataset.instruments()
    trained = tuple(trained_judges(dataset.name, cache)) if own.trained else ()
    if not trained and not own.judges:
        raise InputError(
            f"data set {dataset.name} has no judge yet; train one: "
            f"fairbench train-judge --dataset {dataset.typed}"
        )
    return trained or own.judges


def load_judge(
    name: str,
    dataset: Dataset,
    cache: Path,
    *,
    device: str = "cpu",
    batch_size: int | None = None,
    allow_download: bool = False,
) -> AttributeJudge:
    """Load a judge.

    Args:
        name: One that ``fairbench list instruments`` lists; one that was trained for the data
            set; or the path of a trained judge's folder or of a FairFace checkpoint.
        dataset: Whose images it is to read.
        cache: Folder that trained judges lie in.
        device: As ``--device``.
        batch_size: Images that it sees at once, if it leaves that open.
        allow_download: Get its weights from upstream if they are nowhere.

    Raises:
        InputError: If there is no such judge, or none for this data set.
        AssetError: If its weights are missing, damaged or those of another network.
    """
    known = [one.name for one in instrument_specs().values() if one.kind == "judge"]
    if name in known:
        found = load_instrument(
            name,
            "judge",
            device=device,
            batch_size=batch_size,
            allow_download=allow_download,
            dataset=dataset,
        )
        return cast(AttributeJudge, found)
    trained = trained_judges(dataset.name, cache)
    if name in trained:
        return load_trained_judge(trained[name], dataset, device)
    path = Path(name).expanduser()
    if path.is_dir() and is_trained_judge(path):
        return load_trained_judge(path, dataset, device)
    if path.suffix in CHECKPOINTS:
        return load_fairface(path, device=device, batch_size=batch_size, dataset=dataset)
    error = unknown_name("judge", name, [*known, *trained])
    raise InputError(
        f"{error}; or give the path of a trained judge's folder or of a FairFace checkpoint"
    )
