"""The methods: one public file or entry point each, found by name; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairbench.core.errors import InputError, unknown_name
from fairbench.core.method import Method, MethodCard
from fairbench.core.parameters import check_parameters, kinds_of, parsed
from fairbench.core.registry import Registry

__all__ = ["METHODS", "get_method", "known_methods", "make_method", "method_names"]


METHODS: Registry[type[Method]] = Registry("method", "fairbench.methods", "METHOD")


def method_names() -> list[str]:
    """Names of all methods, files here and entry points of other packages; imports none."""
    return sorted({*METHODS.files(), *METHODS.foreign()})


def get_method(name: str) -> type[Method]:
    """A method's class by name.

    Raises:
        InputError: If there is none of that name, or another package's is broken.
    """
    method = METHODS.load(name)
    if method is None or not isinstance(getattr(method, "card", None), MethodCard):
        raise InputError(
            f"method {name!r}: expected METHOD, a class with a MethodCard; seen {method!r}"
        )
    return method


def known_methods() -> tuple[Mapping[str, type[Method]], Mapping[str, str]]:
    """Name -> class, and name -> why it can't be loaded, which stops no listing."""
    found: dict[str, type[Method]] = {}
    broken: dict[str, str] = {}
    for name in method_names():
        try:
            found[name] = get_method(name)
        except InputError as error:
            broken[name] = str(error)
    return found, broken


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
