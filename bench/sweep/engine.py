"""What does the steps of a sweep: one small interface, and one file in ``engines/`` a kind."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from fairbench.core.errors import InputError
from fairbench.core.registry import Registry
from fairbench.sweep.steps import Ended, Step

__all__ = ["ENGINES", "Crew", "Engine", "load_engine", "missing_package"]


@dataclass(frozen=True)
class Crew:
    """What an engine needs to know.

    Attributes:
        results: Where records are, as workers reach it: an absolute path or an address.
        device: As ``--device``.
        jobs: Steps at once; None for what the engine finds.
        settings: From the plan, of this engine.
        sweep: Name of this sweep in claims: no other has it.
    """

    results: str
    device: str = "auto"
    jobs: int | None = None
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    sweep: str = field(default_factory=lambda: f"{socket.gethostname()} {secrets.token_hex(6)}")

    def setting(self, name: str, kind: type, default: Any) -> Any:
        """One setting of the plan's.

        Raises:
            InputError: If it is of another type.
        """
        value = self.settings.get(name, default)
        if value is not default and type(value) is not kind:
            raise InputError(f"[engine]: {name} must be of type {kind.__name__}; seen {value!r}")
        return value


class Engine(Protocol):
    """Does steps, several at once; knows nothing of what they need or share."""

    def full(self) -> bool:
        """Whether no further step can begin now."""
        ...

    def room(self, step: Step) -> bool:
        """Whether this step can begin now, where some can."""
        ...

    def start(self, step: Step) -> None:
        """Begin a step, at the latest in the next `wait`."""
        ...

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Steps that ended, as soon as one has; none after so many seconds."""
        ...

    def close(self) -> None:
        """End what still runs, and let go of everything."""
        ...


class Maker(Protocol):
    """Makes an engine."""

    def __call__(self, crew: Crew) -> Engine:
        """Make it.

        Raises:
            InputError: If a package, a program or a setting of it is missing or wrong.
        """
        ...


ENGINES: Registry[Maker] = Registry("engine", "fairbench.sweep.engines", "ENGINE")


def load_engine(name: str) -> Maker:
    """What makes the engine of a name.

    Raises:
        InputError: If there is none of that name.
    """
    found = ENGINES.load(name)
    if found is None:
        raise InputError(f"engine {name!r}: expected ENGINE, which makes one; seen none")
    return found


def missing_package(name: str, package: str) -> InputError:
    """The error for an engine whose package isn't installed.

    Args:
        name: Of the engine, and of this package's extra.
        package: That it needs.
    """
    return InputError(
        f"--engine {name} needs {package}, which isn't installed; "
        f"pip install 'fairbench-diffusion[{name}]'"
    )
