"""Judges that ``fairbench train-judge`` made for a data set, as far as their cards say.

They lie in the cache folder, ``judges/<data set>/<name>.safetensors`` with ``<name>.json`` beside,
whose ``attributes`` maps each attribute that it reads to the levels. Their spec is called
``<data set>/<name>``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fairbench.storage.cache import cache_folder

__all__ = ["judge_folder", "trained_judges"]


def judge_folder(dataset: str) -> Path:
    """Where the judges of a data set lie."""
    return cache_folder() / "judges" / dataset


def trained_judges(dataset: str) -> Mapping[str, tuple[str, ...]]:
    """Name of each judge's spec -> the attributes that it reads, in the order of their names."""
    found = {}
    for card in sorted(judge_folder(dataset).glob("*.json")):
        if not card.with_suffix(".safetensors").is_file():
            continue
        try:
            read = json.loads(card.read_text(encoding="utf-8")).get("attributes", ())
        except (OSError, ValueError, AttributeError):
            continue  # its loader says what is wrong with it, once it is asked for by name
        found[f"{dataset}/{card.stem}"] = tuple(read)
    return found
