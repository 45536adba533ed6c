"""Values as plain JSON, and the keys of configurations."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

from fairbench.core.errors import ContractError

__all__ = ["canonical", "plain", "run_key"]

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_AS_THEY_ARE = frozenset({str, bool, int, type(None)})
"""Types whose values JSON holds as they are."""


def plain(value: object, where: str = "value") -> Any:
    """The same value in the types that JSON has; sets are sorted, dataclasses become objects.

    Args:
        value: Mappings with string keys, sequences, sets, dataclasses, numbers, strings, None.
        where: What to call it in an error.

    Raises:
        ContractError: If a float isn't finite or a type has no JSON form.
    """
    kind = type(value)  # what JSON gives, first: asking for abstract types takes much longer
    if kind in _AS_THEY_ARE:
        return value
    if kind is dict:
        found: dict[str, Any] = {}
        for key, item in cast("dict[object, object]", value).items():
            if type(item) in _AS_THEY_ARE:
                found[_name(key, where)] = item
            else:
                found[_name(key, where)] = plain(item, f"{where}.{key}")
        return found
    if kind is list:
        items = cast("list[object]", value)
        if _AS_THEY_ARE.issuperset(map(type, items)):
            return list(items)
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(items)]
    if kind is float:
        return finite(cast("float", value), where)
    if isinstance(value, (str, bool)):
        return value
    # NumPy's scalars are registered as numbers, so this needs no NumPy.
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return finite(float(value), where)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {_name(key, where): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item, where) for item in value), key=canonical)
    raise ContractError(
        f"{where} must be plain JSON; seen {type(value).__name__}; convert it before recording"
    )


def canonical(value: object, where: str = "value") -> str:
    """One text for one value: sorted names, no spaces, floats by their repr.

    Raises:
        ContractError: As `plain` does.
    """
    kind = type(value)
    if (kind is float and math.isfinite(cast("float", value))) or kind is int:
        return repr(value)  # as JSON has it, without its many calls: most are asked of one number
    if kind is bool or value is None:
        return "null" if value is None else "true" if value else "false"
    return _encode(plain(value, where))


def run_key(config: Mapping[str, Any]) -> str:
    """The key of a configuration: 16 hex digits of the SHA-256 of its canonical JSON.

    Raises:
        ContractError: If the configuration holds NaN, infinity or a type without JSON form.
    """
    return hashlib.sha256(canonical(config, "config").encode("ascii")).hexdigest()[:16]


def _name(key: object, where: str) -> str:
    # json.dumps would write 1 and "1" alike, and two configurations would share a key.
    if not isinstance(key, str):
        raise ContractError(f"names in {where} must be strings; seen {key!r}")
    return key


def finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise ContractError(f"{where} must be finite; seen {value}")
    return value
