"""Writes the plan of committed records, ``bench/assets/plans/committed.toml``.

    python -m fairbench.build.committed_plan results

Run again after records are added or removed; a test compares the two.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fairbench.core.record import Record
from fairbench.datasets.base import get_dataset
from fairbench.runs.question import question_of
from fairbench.storage.records import read_records
from fairbench.sweep.plan import COMMITTED

HEAD = """\
# The runs of fairbench's own results, as fairbench sweep --committed does them.
# Written by fairbench.build.committed_plan from the records; not by hand.
"""


def block_of(record: Record) -> dict[str, Any]:
    asked = question_of(record)
    block: dict[str, Any] = {
        "dataset": asked.dataset,
        "methods": [asked.method],
        "backbones": [asked.backbone],
        "tasks": [asked.task],
        "seeds": [asked.seed],
        "num_images": asked.num_images,
    }
    usual = get_dataset(asked.dataset).backbone(asked.backbone).sampling
    for name in ("steps", "guidance", "eta"):
        if getattr(asked, name) != getattr(usual, name):
            block[name] = getattr(asked, name)
    for name, default in (("target", "uniform"), ("bias", "default")):
        if getattr(asked, name) != default:
            block[name] = getattr(asked, name)
    if asked.parameters:
        pairs = (item.partition("=") for item in asked.parameters)
        block["parameters"] = {name: value for name, _, value in pairs}
    return block


def merged(blocks: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Blocks that differ in one list alone as one block."""
    found: dict[str, dict[str, Any]] = {}
    for block in blocks:
        rest = json.dumps({k: v for k, v in block.items() if k != name}, sort_keys=True)
        if rest in found:
            found[rest][name] = sorted({*found[rest][name], *block[name]})
        else:
            found[rest] = dict(block)
    return list(found.values())


def text_of(block: dict[str, Any]) -> str:
    lines = ["[[block]]"]
    parameters = block.get("parameters", {})
    lines += [f"{k} = {json.dumps(v)}" for k, v in block.items() if k != "parameters"]
    if parameters:
        inner = ", ".join(f"{k} = {json.dumps(v)}" for k, v in parameters.items())
        lines.append(f"parameters.{block['methods'][0]} = {{ {inner} }}")
    return "\n".join(lines) + "\n"


def plan_text(results: Path) -> str:
    records = [
        record for record in read_records(results, sys.exit) if "evaluated" not in record.config
    ]
    blocks = merged(merged([block_of(record) for record in records], "seeds"), "tasks")
    return HEAD + "".join(f"\n{text_of(block)}" for block in blocks)


if __name__ == "__main__":
    COMMITTED.parent.mkdir(exist_ok=True)
    COMMITTED.write_text(plan_text(Path(sys.argv[1])), encoding="utf-8")
