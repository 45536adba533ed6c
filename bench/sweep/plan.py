"""A plan: methods, tasks, backbones, seeds and parameters, and the runs that it asks for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fairbench.core.documents import content, from_toml
from fairbench.core.errors import InputError, unknown_name
from fairbench.datasets.base import get_dataset
from fairbench.methods import get_method, method_names
from fairbench.runs.config import RunConfig

__all__ = ["COMMITTED", "MOST_RUNS", "Plan", "plan_of", "read_plan"]

COMMITTED = Path(__file__).parents[1] / "assets" / "plans" / "committed.toml"
"""The plan of the records that come with fairbench's sources."""

MOST_RUNS = 100_000

ALL = "all"

LISTS: Mapping[str, str] = MappingProxyType(
    {"methods": "method", "tasks": "task", "backbones": "backbone", "seeds": "seed"}
)
"""Lists that are crossed -> the option of ``fairbench run`` that an entry is."""

TABLES = ("parameters", "grid")

SAME: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "dataset": (str,),
        "data_root": (str,),
        "target": (str,),
        "num_images": (int,),
        "bias": (str,),
        "dtype": (str,),
        "network_batch": (int,),
        "decode_batch": (int,),
        "compile": (bool,),
        "steps": (int,),
        "guidance": (float, int),
        "eta": (float, int),
        "scheduler": (str,),
        "encoders": (list,),
        "faces": (bool,),
        "controls": (list,),
        "judges": (list,),
        "accept_judge": (bool,),
        "allow_download": (bool,),
    }
)
"""Options of every run of a block, as `RunConfig` calls them -> their types."""

BLOCKS, ENGINES = "block", "engine"


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        runs: Each once, in the plan's order; combinations that don't go together among them.
        engines: Engine -> settings of it.
    """

    runs: tuple[RunConfig, ...]
    engines: Mapping[str, Mapping[str, Any]]


def read_plan(path: Path | None, changes: Mapping[str, Any] | None = None) -> Plan:
    """Read a plan's file.

    Args:
        path: The file; None: what the command line alone says.
        changes: What takes the place of the file's, in every block.

    Raises:
        InputError: If it can't be read, or says something that isn't known here.
    """
    if path is None:
        return plan_of({}, "the command line", changes)
    try:
        document = from_toml(content(path))
    except OSError as error:
        raise InputError(f"{path}: expected a plan; {error.strerror}; check its name") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a plan in TOML, seen no text") from None
    except ValueError as error:
        line = " ".join(str(error).split())
        raise InputError(f"{path}: expected a plan in TOML; {line}") from None
    return plan_of(document, str(path), changes)


def plan_of(
    document: Mapping[str, Any], where: str, changes: Mapping[str, Any] | None = None
) -> Plan:
    """The runs of a plan that is read already; as `read_plan`."""
    known = [*LISTS, *TABLES, *SAME]
    for name in document:
        if name not in (*known, BLOCKS, ENGINES):
            raise _unknown(where, name, [*known, BLOCKS, ENGINES])
    base = {k: v for k, v in document.items() if k not in (BLOCKS, ENGINES)}
    blocks = document.get(BLOCKS, [{}])
    if not isinstance(blocks, list) or not all(isinstance(one, dict) for one in blocks):
        raise InputError(f"{where}: block must be written as [[block]]")
    found: dict[RunConfig, None] = {}
    for place, block in enumerate(blocks):
        at = f"{where}, block {place + 1}" if BLOCKS in document else where
        for name in block:
            if name not in known:
                raise _unknown(at, name, known)
        found |= dict.fromkeys(_runs(_Block(at, {**base, **block, **(changes or {})})))
        if len(found) > MOST_RUNS:
            raise InputError(f"{at}: more than {MOST_RUNS:,} runs; split the plan")
    return Plan(tuple(found), _engines(document.get(ENGINES, {}), where))


def _engines(table: Any, where: str) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(table, dict) or not all(isinstance(one, dict) for one in table.values()):
        raise InputError(f"{where}: settings of an engine go into a table such as [engine.slurm]")
    return table


def _unknown(where: str, name: str, known: Sequence[str]) -> InputError:
    return InputError(f"{where}: {unknown_name('name in a plan', name, known)}")


@dataclass(frozen=True)
class _Block:
    """One crossing of a plan: where it stands, and what it says."""

    where: str
    said: Mapping[str, Any]

    def wrong(self, name: str, expected: str) -> InputError:
        return InputError(f"{self.where}: {name} must be {expected}; seen {self.said.get(name)!r}")

    def names(self, name: str, everything: Sequence[str]) -> list[str | None]:
        """A list of names; one None where the block says nothing."""
        given = self.said.get(name)
        if given is None:
            return [None]
        if given == ALL or given == [ALL]:
            return list(everything)
        listed = [given] if isinstance(given, str) else given
        if (
            not isinstance(listed, list)
            or not listed
            or not all(isinstance(one, str) and one for one in listed)
        ):
            raise self.wrong(name, 'a list of names, or "all"')
        if len(set(listed)) < len(listed):
            raise self.wrong(name, "a list in which each name stands once")
        return list(listed)

    def seeds(self) -> list[int]:
        """The seeds; 0 where the block says nothing."""
        given = self.said.get("seeds", [0])
        listed = [given] if type(given) is int else given
        if (
            not isinstance(listed, list)
            or not listed
            or not all(type(one) is int for one in listed)
        ):
            raise self.wrong("seeds", "a list of whole numbers")
        if len(set(listed)) < len(listed):
            raise self.wrong("seeds", "a list in which each seed stands once")
        return list(listed)

    def same(self) -> dict[str, Any]:
        """What all runs of the block have in common."""
        found: dict[str, Any] = {}
        for name, kinds in SAME.items():
            if name not in self.said:
                continue
            value = self.said[name]
            if type(value) not in kinds:
                raise self.wrong(name, _spelled(kinds))
            if kinds == (list,):
                if not all(isinstance(one, str) and one for one in value):
                    raise self.wrong(name, "a list of names")
                value = tuple(value)
            found[name] = Path(value) if name == "data_root" else value
        return found

    def parameters(self, methods: Sequence[str]) -> Mapping[str, list[tuple[str, ...]]]:
        """Method -> the combinations of its parameters, as ``--param`` has them."""
        fixed, grid = (self._by_method(name, methods) for name in TABLES)
        found = {}
        for method in methods:
            mine = tuple(f"{k}={self._text('parameters', v)}" for k, v in fixed[method].items())
            axes = []
            for name, values in grid[method].items():
                if name in fixed[method]:
                    raise InputError(
                        f"{self.where}: give {name} of {method} in parameters or in grid, not both"
                    )
                if not isinstance(values, list) or not values:
                    raise self.wrong("grid", f"lists of values; {method}.{name} is none")
                axis = [f"{name}={self._text('grid', value)}" for value in values]
                if len(set(axis)) < len(axis):
                    raise self.wrong("grid", f"lists in which each value stands once ({name})")
                axes.append(axis)
            found[method] = [(*mine, *chosen) for chosen in itertools.product(*axes)]
        return found

    def _by_method(self, table: str, methods: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        given = self.said.get(table, {})
        if not isinstance(given, dict) or not all(isinstance(v, dict) for v in given.values()):
            raise self.wrong(table, f"tables of methods, such as [{table}.fairgen]")
        for name in given:
            get_method(name)
        return {method: given.get(method, {}) for method in methods}

    def _text(self, table: str, value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int | float):
            return str(value)
        raise self.wrong(table, f"texts, numbers, true or false; one is {value!r}")


def _runs(block: _Block) -> Iterator[RunConfig]:
    """The runs of a block: seeds vary fastest, then parameters, tasks, backbones and methods."""
    if "methods" not in block.said:
        raise InputError(
            f'{block.where}: no methods; say methods = ["vanilla"], or "all" for every one'
        )
    methods = [str(name) for name in block.names("methods", method_names())]
    for method in methods:
        get_method(method)
    same = block.same()
    dataset = get_dataset(same.get("dataset"), same.get("data_root"))
    tasks = block.names("tasks", [spec.name for spec in dataset.tasks])
    for task in tasks:
        dataset.task_spec(task)
    backbones = block.names("backbones", [spec.name for spec in dataset.backbones])
    parameters = block.parameters(methods)
    seeds = block.seeds()
    for method, backbone, task in itertools.product(methods, backbones, tasks):
        for chosen in parameters[method]:
            for seed in seeds:
                yield RunConfig(
                    method, task=task, backbone=backbone, seed=seed, parameters=chosen, **same
                )


def _spelled(kinds: Sequence[type]) -> str:
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(kinds[0], "a list of names")
