"""Parameters of methods: their types, their text form and their limits; imports no torch."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from fairbench.core.errors import InputError

LARGEST = 1e9
"""Size beyond which no parameter means anything, and that float32 and int64 still bear."""

SIZES: Mapping[str, int] = MappingProxyType(
    {
        "accumulate": 4096,
        "batch": 4096,
        "groups": 64,
        "iterations": 10_000_000,
        "max_attempts": 10_000,
        "rank": 1024,
        "ratio_batch": 4096,
        "ratio_width": 1024,
        "risk_draws": 1024,
        "steps": 10_000_000,
        "trajectories": 100_000,
    }
)
"""Largest values of what memory or time grow with, by the names that methods share.

A parameter that bears more says so by ``"maximum"`` beside its help.
"""

__all__ = [
    "SIZES",
    "Parameter",
    "check_parameters",
    "kinds_of",
    "parameters_of",
    "parsed",
    "refuse_unused",
]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        name: As in ``--param name=value``.
        type: Type as the user reads it, such as ``"int"`` or ``"cond|both"``.
        default: Its default.
        help: What it means.
    """

    name: str
    type: str
    default: Any
    help: str


def parameters_of(method: type[Any]) -> list[Parameter]:
    """A method's parameters, in declared order."""
    kinds = kinds_of(method)
    return [
        Parameter(f.name, _type_name(kinds[f.name]), f.default, f.metadata["help"])
        for f in dataclasses.fields(method)
    ]


def kinds_of(method: type[Any]) -> Mapping[str, Any]:
    """A method's parameters and the types that they are annotated with, in declared order."""
    hints = typing.get_type_hints(method, localns={"Backbone": object})
    return {f.name: hints[f.name] for f in dataclasses.fields(method)}


def parsed(name: str, text: str, kind: Any) -> Any:
    """The value of ``--param name=text``; whether it lies within limits is checked later.

    Raises:
        InputError: If the text isn't of the parameter's type.
    """
    if kind is bool:
        if text not in ("true", "false"):
            raise InputError(f"--param {name} must be true or false; seen {text!r}")
        return text == "true"
    if typing.get_origin(kind) is Literal:
        return text
    if kind is str:
        return text.strip()
    try:
        return kind(text)
    except ValueError:
        raise _wrong(name, text, kind) from None


def check_parameters(method: Any) -> None:
    """Whether every parameter of a method has its type and lies within its limits.

    Raises:
        InputError: For the first that doesn't, with what was expected and seen.
    """
    kinds = kinds_of(type(method))
    for field in dataclasses.fields(method):
        kind, value = kinds[field.name], getattr(method, field.name)
        if typing.get_origin(kind) is Literal:
            if value not in typing.get_args(kind):
                raise _wrong(field.name, value, kind)
            continue
        accepted = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise _wrong(field.name, value, kind)
        if kind is str and not str(value).strip():
            raise InputError(f"--param {field.name} must be a text; seen {value!r}")
        if kind in (int, float):
            _check_number(field.name, value, field.metadata)


def refuse_unused(method: Any, names: Sequence[str], unless: str) -> None:
    """Refuse parameters that were changed but have no effect.

    Args:
        method: Whose parameters they are.
        names: Those without effect in this method as it is configured.
        unless: What would give them one, such as ``"step_rule=paper"``.
    Raises:
        InputError: If one of them isn't at its default.
    """
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name in names and value != field.default:
            raise InputError(
                f"--param {field.name} has an effect with {unless} alone; leave it out, or set "
                f"that too (seen {value}, given or by the preset)"
            )


def _check_number(name: str, value: float, limits: Mapping[str, Any]) -> None:
    if not math.isfinite(value):
        raise InputError(f"--param {name} must be a finite number; seen {str(value)!r}")
    if abs(value) > LARGEST:
        raise InputError(f"--param {name} must be at most {LARGEST:g} in size; seen {value:g}")
    largest = limits.get("maximum", SIZES.get(name) if isinstance(value, int) else None)
    if largest is not None and value > largest:
        raise InputError(f"--param {name} must be at most {largest}; seen {value}")
    if "minimum" in limits and value < limits["minimum"]:
        raise InputError(f"--param {name} must be at least {limits['minimum']}; seen {value}")


def _wrong(name: str, seen: Any, kind: Any) -> InputError:
    return InputError(f"--param {name} must be {_type_name(kind)}; seen {seen!r}")


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return typing.cast("str", kind.__name__)
