"""Methods by name, and their parameters from the command line; imports no torch."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import fairbench.methods
from fairbench.errors import InputError, unknown_name
from fairbench.types import Method

__all__ = ["get_method", "make_method", "method_names", "parameters_of"]


def method_names() -> list[str]:
    """Names of all methods: the public files of ``fairbench.methods``."""
    found = pkgutil.iter_modules(fairbench.methods.__path__)
    return sorted(module.name for module in found if not module.name.startswith("_"))


def get_method(name: str) -> type[Method]:
    """A method's class by name.

    Raises:
        InputError: If there is none of that name.
    """
    if name not in method_names():
        raise unknown_name("method", name, method_names())
    module = importlib.import_module(f"fairbench.methods.{name}")
    return typing.cast("type[Method]", module.METHOD)


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


def parameters_of(method: type[Method]) -> list[Parameter]:
    """A method's parameters, in declared order."""
    return [
        Parameter(f.name, _type_name(kind), f.default, f.metadata["help"])
        for f, kind in _fields(method)
    ]


def make_method(name: str, given: Sequence[str]) -> tuple[Method, str | None]:
    """A method with parameters from ``key=value`` strings.

    Args:
        name: The method.
        given: ``preset=NAME`` sets a preset; other keys override it.
    Returns:
        The method and the preset's name, None without one.
    Raises:
        InputError: If a key is unknown or given twice, or a value isn't of its type or range.
    """
    method = get_method(name)
    fields = {f.name: (f, kind) for f, kind in _fields(method)}
    values: dict[str, str] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--param must be key=value; seen {item!r}")
        if key in values:
            raise InputError(f"--param {key} is given twice; give it once")
        if key != "preset" and key not in fields:
            known = [*fields, *(["preset"] if method.presets else [])]
            if not known:
                raise InputError(f"{name} has no parameters; seen --param {item}")
            raise unknown_name(f"parameter of {name}", key, known)
        values[key] = value
    preset = values.pop("preset", None)
    arguments = dict(_preset(method, name, preset)) if preset is not None else {}
    for key, value in values.items():
        field, kind = fields[key]
        arguments[key] = _parse(key, value, kind, field.metadata)
    return method(**arguments), preset


def _preset(method: type[Method], name: str, preset: str) -> Mapping[str, Any]:
    if not method.presets:
        raise InputError(f"{name} has no presets; seen --param preset={preset}")
    if preset not in method.presets:
        raise unknown_name(f"preset of {name}", preset, method.presets)
    return method.presets[preset]


def _fields(method: type[Method]) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(method, localns={"Backbone": object})
    return [(f, hints[f.name]) for f in dataclasses.fields(typing.cast("Any", method))]


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return typing.cast("str", kind.__name__)


def _parse(key: str, text: str, kind: Any, limits: Mapping[str, Any]) -> Any:
    wrong = InputError(f"--param {key} must be {_type_name(kind)}; seen {text!r}")
    if typing.get_origin(kind) is Literal:
        if text not in typing.get_args(kind):
            raise wrong
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise InputError(f"--param {key} must be true or false; seen {text!r}")
        return text == "true"
    if kind is str:
        if not text.strip():
            raise InputError(f"--param {key} must be a text; seen {text!r}")
        return text.strip()
    try:
        value = kind(text)
    except ValueError:
        raise wrong from None
    if not math.isfinite(value):
        raise InputError(f"--param {key} must be a finite number; seen {text!r}")
    if "minimum" in limits and value < limits["minimum"]:
        raise InputError(f"--param {key} must be at least {limits['minimum']}; seen {text}")
    return value
