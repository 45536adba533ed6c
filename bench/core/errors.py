"""The errors that fairbench raises on purpose.

Each message is one line that says what was expected, what was seen and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AssetError",
    "ContractError",
    "FairbenchError",
    "InputError",
    "UnfitError",
    "unknown_name",
]


class FairbenchError(Exception):
    """Base of every error below; the command line prints it as one line and exits with 2."""


class InputError(FairbenchError):
    """A name, number, file or folder that the user gave can't be used."""


class UnfitError(InputError):
    """Method, backbone, task or data set are each right, and can't be combined."""


class AssetError(FairbenchError):
    """A data or weight file is missing, damaged or not the expected one."""


class ContractError(FairbenchError, ValueError):
    """Arrays or objects passed to a function break what its docstring asks for."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that isn't registered, with the nearest known names.

    Args:
        kind: What was looked up, such as ``"method"``.
        name: What was asked for.
        known: Every registered name.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")
