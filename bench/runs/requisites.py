"""What must lie on the disk before a run can begin, looked for before anything heavy is imported.

All that is missing is named at once: the user may have to fetch it from elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from fairbench.core.errors import InputError
from fairbench.datasets.base import Dataset, get_dataset
from fairbench.storage import hub

__all__ = ["find_requisites", "missing_backbone", "missing_requisites"]


def find_requisites(
    name: str | None,
    root: Path | None,
    *,
    generating: bool,
    backbone: str | None = None,
    allow_download: bool = False,
) -> Dataset:
    """A data set whose files are there, and the backbone's too where images are to be made.

    Args:
        name: As ``--dataset``.
        root: As ``--data-root``.
        generating: Whether a backbone is needed.
        backbone: As ``--backbone``.
        allow_download: Whether a missing backbone may be got from the hub.

    Raises:
        InputError: If there is no such data set, or files are missing; names all of them, the
            places looked in, what to type.
    """
    dataset = get_dataset(name, root)
    reasons = [dataset.lacking()]
    if generating and not allow_download:
        reasons.append(missing_backbone(dataset, backbone))
    if any(reasons):
        raise InputError("; ".join(filter(None, reasons)))
    return dataset


def missing_requisites(
    name: str | None, root: Path | None, *, backbone: str | None, allow_download: bool
) -> list[str]:
    """What `find_requisites` would name as missing, one reason each; empty if nothing is.

    Raises:
        InputError: If there is no such data set.
    """
    dataset = get_dataset(name, root)
    reasons = [dataset.lacking(), "" if allow_download else missing_backbone(dataset, backbone)]
    return [reason for reason in reasons if reason]


def missing_backbone(dataset: Dataset, name: str | None) -> str:
    """What is said of a backbone of the hub that isn't in its cache; "" if nothing is."""
    own = {spec.name: spec for spec in dataset.backbones}
    if name is None:
        repository = dataset.backbones[0].hub if dataset.backbones else ""
    elif name in own:
        repository = own[name].hub
    else:
        repository = name if hub.is_repository(name) and not Path(name).exists() else ""
    return hub.missing(repository) if repository and hub.hub_folder(repository) is None else ""
