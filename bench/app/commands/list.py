"""``fairbench list``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairbench.app.options import Debug, Json
from fairbench.app.terminal import guarded, print_json, print_table, warn
from fairbench.core.errors import unknown_name
from fairbench.core.tables import Column

if TYPE_CHECKING:
    from fairbench.core.method import Method

__all__ = ["Kind", "list_"]


class Kind(StrEnum):
    """What ``fairbench list`` can list."""

    METHODS = "methods"
    DATASETS = "datasets"
    TASKS = "tasks"
    BACKBONES = "backbones"
    METRICS = "metrics"
    INSTRUMENTS = "instruments"
    FAMILIES = "families"
    FORMATS = "formats"


SPARE = {"arxiv": 5, "family": 4, "weights": 3, "role": 2, "number_of_groups": 2, "pipelines": 1}
"""Columns that a narrow terminal does without; the largest number goes first."""

SENTENCES = frozenset({"title", "meaning", "supervision", "pipelines", "weights", "ranked"})
"""Columns of words, which may go on in the next line."""


def list_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="|".join(Kind), help="What to list.", autocompletion=lambda: list(Kind)
        ),
    ],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List what can be chosen."""
    with guarded(debug):
        # Left to typer, an enumeration's error would name no near value.
        if kind not in list(Kind):
            raise unknown_name("kind", kind, Kind)
        rows = _listing(Kind(kind))
        if json_:
            print_json(rows)
            return
        titles = [
            key
            for key, value in rows[0].items()
            if key == "supervision" or not isinstance(value, list | dict)
        ]
        columns = [
            Column(title, (), whole=title not in SENTENCES, spare=SPARE.get(title, 0))
            for title in titles
        ]
        print_table([{key: _cell(row[key]) for key in titles} for row in rows], columns)


def _cell(value: Any) -> str:
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)


def _preset_row(method: type[Method], values: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset sets, and what that makes of the row."""
    card = method(**values).configured_card()
    return {
        "parameters": dict(values),
        "role": card.role,
        "ranked": card.ranked,
        "supervision": sorted(card.supervision),
    }


def _listing(kind: Kind) -> list[dict[str, Any]]:
    if kind is Kind.METHODS:
        from fairbench.core.parameters import parameters_of
        from fairbench.methods import known_methods

        found, broken = known_methods()
        for reason in broken.values():
            warn(reason)
        rows = []
        for method in found.values():
            card = dataclasses.asdict(method.card) | {
                "supervision": sorted(method.card.supervision),
                "needs": sorted(method.card.needs),
                "deviations": list(method.card.deviations),
            }
            parameters = [dataclasses.asdict(p) for p in parameters_of(method)]
            presets = {key: _preset_row(method, value) for key, value in method.presets.items()}
            order = ("name", "title", "role", "family", "supervision", "arxiv")
            rest = {key: value for key, value in card.items() if key not in order}
            first = {key: card[key] for key in order}
            rows.append(first | {"details": rest, "parameters": parameters, "presets": presets})
        return rows
    if kind is Kind.METRICS:
        from fairbench.scores.catalogue import metrics

        return [{"name": name, "meaning": meaning} for name, meaning in metrics().items()]
    if kind is Kind.INSTRUMENTS:
        from fairbench.instruments.catalogue import instrument_specs

        specs = instrument_specs()
        return [
            {
                "name": name,
                "kind": spec.kind,
                "title": spec.title,
                "weights": spec.weights or "come with it",
            }
            for name, spec in sorted(specs.items())
        ]
    if kind is Kind.FAMILIES:
        from fairbench.backbones.base import FAMILIES

        families, faults = FAMILIES.entries()
        for reason in faults.values():
            warn(reason)
        return [
            {
                "name": family.name,
                "title": family.title,
                "pipelines": ", ".join(family.pipelines) or "any other text-to-image",
                "prompts": "yes" if family.conditional else "no",
            }
            for family in families.values()
        ]
    if kind is Kind.FORMATS:
        from fairbench.leaderboards.formats import formats

        return [
            {"name": one.name, "files": ", ".join(one.suffixes) or "none, for a terminal"}
            for one in formats().values()
        ]
    from fairbench.datasets.base import DATASETS

    datasets, faults = DATASETS.entries()
    for reason in faults.values():
        warn(reason)
    rows = []
    for dataset in datasets.values():
        if kind is Kind.DATASETS:
            levels = {name: list(values) for name, values in dataset.attributes.items()}
            rows.append({"name": dataset.name, "title": dataset.card.title, "attributes": levels})
        elif kind is Kind.BACKBONES:
            for spec in dataset.backbones:
                sampling = dataclasses.asdict(spec.sampling)
                row = {"name": spec.name, "dataset": dataset.name, "title": spec.title}
                rows.append(row | {"sampling": sampling})
        else:
            for question in dataset.tasks:
                task = dataset.task(question.name, conditional=True)
                ranked = "mean over prompts" if task.per_prompt else "pooled"
                row = {"name": question.name, "dataset": dataset.name, "ranked": ranked}
                groups = {"number_of_groups": len(task.groups), "groups": list(task.groups)}
                prompts = [prompt.text for prompt in task.prompts]
                rows.append(row | groups | {"prompts": prompts})
    return rows
