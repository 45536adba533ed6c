"""The methods: one public file each, found by name; nothing here imports torch."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import fairbench.methods
from fairbench.core.errors import InputError, unknown_name
from fairbench.core.method import Method
from fairbench.core.parameters import check_parameters, kinds_of, parsed

__all__ = ["get_method", "make_method", "method_names"]


def method_names() -> list[str]:
    """Names of all methods: the public files of ``fairbench.methods``."""
    found = pkgutil.iter_modules(fairbench.methods.__path__)
    return sorted(module.name for module in found if not module.ispkg)


def get_method(name: str) -> type[Method]:
    """A method's class by name.

    Raises:
        InputError: If there is none of that name.
    """
    if name not in method_names():
        raise unknown_name("method", name, method_names())
    module = importlib.import_module(f"fairbench.methods.{name}")
    return typing.cast("type[Method]", module.METHOD)


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
    kinds = kinds_of(method)
    values: dict[str, str] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--param must be key=value; seen {item!r}")
        if key in values:
            raise InputError(f"--param {key} is given twice; give it once")
        if key != "preset" and key not in kinds:
            known = [*kinds, *(["preset"] if method.presets else [])]
            if not known:
                raise InputError(f"{name} has no parameters; seen --param {item}")
            raise unknown_name(f"parameter of {name}", key, known)
        values[key] = value
    preset = values.pop("preset", None)
    arguments = dict(_preset(method, name, preset)) if preset is not None else {}
    for key, value in values.items():
        arguments[key] = parsed(key, value, kinds[key])
    made = method(**arguments)
    check_parameters(made)  # a method need not be a MethodBase, which does it itself
    return made, preset


def _preset(method: type[Method], name: str, preset: str) -> Mapping[str, Any]:
    if not method.presets:
        raise InputError(f"{name} has no presets; seen --param preset={preset}")
    if preset not in method.presets:
        raise unknown_name(f"preset of {name}", preset, method.presets)
    return method.presets[preset]
