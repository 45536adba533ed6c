"""Compare debiasing methods for image diffusion models under one protocol.

The names below are what a program may rely on; ``docs/python_api.md`` says what each does. Nothing
heavy is imported until one of them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairbench.core.errors import AssetError, ContractError, FairbenchError, InputError
    from fairbench.core.progress import Reporter
    from fairbench.core.record import PerImage, Record
    from fairbench.core.score import Score, ScoreSpec
    from fairbench.leaderboards import leaderboard
    from fairbench.runs.config import RunConfig
    from fairbench.runs.external import evaluate
    from fairbench.runs.running import Outcome, run
    from fairbench.storage.records import read_per_image, read_record, read_records

__all__ = [
    "AssetError",
    "ContractError",
    "FairbenchError",
    "InputError",
    "Outcome",
    "PerImage",
    "Record",
    "Reporter",
    "RunConfig",
    "Score",
    "ScoreSpec",
    "evaluate",
    "leaderboard",
    "read_per_image",
    "read_record",
    "read_records",
    "run",
]

_HOME = {
    **dict.fromkeys(
        ("AssetError", "ContractError", "FairbenchError", "InputError"), "fairbench.core.errors"
    ),
    "Reporter": "fairbench.core.progress",
    **dict.fromkeys(("PerImage", "Record"), "fairbench.core.record"),
    **dict.fromkeys(("Score", "ScoreSpec"), "fairbench.core.score"),
    "leaderboard": "fairbench.leaderboards",
    "RunConfig": "fairbench.runs.config",
    "evaluate": "fairbench.runs.external",
    **dict.fromkeys(("Outcome", "run"), "fairbench.runs.running"),
    **dict.fromkeys(
        ("read_per_image", "read_record", "read_records"), "fairbench.storage.records"
    ),
}


def __getattr__(name: str) -> Any:
    """A name of the API, from the room where it lives."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
