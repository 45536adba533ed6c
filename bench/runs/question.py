"""What a record was asked: as a configuration, and as the command that asks it again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from fairbench.core.record import Record
from fairbench.methods import get_method
from fairbench.runs.config import RunConfig

__all__ = ["command_of", "question_of"]


def question_of(record: Record, results: Path = Path("results")) -> RunConfig:
    """What a user would ask today to get what the record answers.

    Args:
        record: Of a run.
        results: Folder of records that the configuration names.

    Raises:
        InputError: If there is no such method any more.
    """
    had = record.config
    method = get_method(record.method)
    preset = had.get("preset")
    given = dict(method.presets[preset]) if preset else {}
    default = method()
    chosen = {
        name: value
        for name, value in had["parameters"].items()
        if value != given.get(name, getattr(default, name))
    }
    shares = had["target"]
    uniform = len(set(shares.values())) == 1
    return RunConfig(
        record.method,
        dataset=record.dataset,
        task=record.task,
        backbone=had["backbone"],
        target="uniform" if uniform else ",".join(f"{k}={v!r}" for k, v in shares.items()),
        num_images=had["num_images"],
        seed=had["seed"],
        bias=had.get("bias", "default"),
        dtype=had["dtype"],
        parameters=(
            *([f"preset={preset}"] if preset else []),
            *(f"{name}={_text(value)}" for name, value in chosen.items()),
        ),
        judges=tuple(had.get("judges", ())),
        accept_judge=bool(had.get("accept_judge", False)),
        **{name: had["sampling"][name] for name in ("steps", "guidance", "eta")},
        results=results,
    )


def command_of(record: Record) -> str:
    """The command line that asks the record's question again.

    Raises:
        InputError: If there is no such method any more.
    """
    asked = question_of(record)
    options: list[tuple[str, Any]] = [
        ("method", asked.method),
        ("dataset", asked.dataset),
        ("task", asked.task),
        ("backbone", asked.backbone),
        *([] if asked.target == "uniform" else [("target", asked.target)]),
        ("num-images", asked.num_images),
        ("seed", asked.seed),
        *([] if asked.bias == "default" else [("bias", asked.bias)]),
        ("steps", asked.steps),
        ("guidance", asked.guidance),
        ("eta", asked.eta),
        ("dtype", asked.dtype),
        *(("param", parameter) for parameter in asked.parameters),
        *(("judge", judge) for judge in asked.judges),
    ]
    words = [word for name, value in options for word in (f"--{name}", _text(value))]
    if asked.accept_judge:
        words.append("--accept-judge")
    return shlex.join(["fairbench", "run", *words])


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
