"""Whether a record may enter a board, and exactly what is wrong if not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fairbench.core.errors import FairbenchError, InputError
from fairbench.core.keys import run_key
from fairbench.core.record import PerImage, Record
from fairbench.core.score import RANKED
from fairbench.core.text import shown
from fairbench.methods import get_method
from fairbench.runs.config import MINIMUM_IMAGES
from fairbench.runs.copies import MOST_COPIES
from fairbench.scores.catalogue import is_older, spec_of
from fairbench.storage.records import RecordError, read_per_image, read_record

__all__ = ["Finding", "records_in", "validate"]


# Names that a configuration holds for readers; the key hashes what they stand for.
_NAMES = {"backbone", "preset", "judges", "accept_judge"}


@dataclass(frozen=True)
class Finding:
    """One thing about a record.

    Attributes:
        level: ``"error"``: it must not enter a board. ``"warning"``: it may, and a reader should
            know. ``"unverified"``: nobody can make its images again from it.
        check: Which check found it, in a word.
        text: What was expected and what is seen.
    """

    level: Literal["error", "warning", "unverified"]
    check: str
    text: str


def records_in(paths: Sequence[Path]) -> list[Path]:
    """Records among files and folders, in order, each once.

    Raises:
        InputError: If a path isn't there, or a folder holds no record.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            # What a sweep keeps beside the records lies in a hidden folder, and is none.
            inside = [
                one
                for one in sorted(path.rglob("*.json"))
                if not any(part.startswith(".") for part in one.relative_to(path).parts)
            ]
            if not inside:
                raise InputError(f"{path}: expected records, seen no .json file in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: expected a record, seen none; check the path")
    return list(dict.fromkeys(found))


def validate(path: Path) -> list[Finding]:
    """Everything that is wrong with, or worth knowing of, the record at a path."""
    try:
        record = read_record(path)
    except RecordError as error:
        return [Finding("error", "schema", shown(str(error)))]
    found = [*_of_record(path, record), *_of_images(path, record)]
    return [Finding(one.level, one.check, shown(one.text)) for one in found]


def _of_record(path: Path, record: Record) -> Iterator[Finding]:
    if record.key != path.stem:
        yield Finding("error", "key", f"the file is called {path.stem}, its key is {record.key}")
    folders = path.resolve().parent
    if (folders.parent.name, folders.name) != (record.dataset, record.method):
        yield Finding(
            "warning",
            "place",
            f"expected in {record.dataset}/{record.method}/, seen in "
            f"{folders.parent.name}/{folders.name}/",
        )
    with suppress(FairbenchError):
        config = {name: value for name, value in record.config.items() if name not in _NAMES}
        if "evaluated" not in config and run_key(config) != record.key:
            yield Finding(
                "error",
                "key",
                f"its configuration has the key {run_key(config)}, it says {record.key}: one of "
                "the two was changed",
            )
    if record.status != "complete":
        yield Finding("error", "status", f"expected complete, seen {record.status}")
    told = int(record.config.get("num_images", len(record.manifest)) or 0)
    if told < MINIMUM_IMAGES:
        yield Finding("error", "images", f"expected {MINIMUM_IMAGES} images or more, seen {told}")
    names = [score.name for score in record.scores]
    if RANKED not in names:
        yield Finding("warning", "scores", f"{RANKED} is missing: the row can't be ranked by it")
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Finding("error", "scores", f"{name} is there {names.count(name)} times")
    old: list[str] = []
    for score in record.scores:
        spec = spec_of(score.name)
        if spec is None:
            yield Finding("warning", "scores", f"{score.name} is no score of this version")
        elif is_older(score):
            old.append(score.name)
        if score.low is not None and score.high is not None and score.low > score.high:
            yield Finding("error", "scores", f"{score.name}: its interval ends before it begins")
    if old:
        yield Finding(
            "warning",
            "scores",
            f"{len(old)} scores are of older versions than the code's, such as {old[0]}; "
            "fairbench rescore brings them up to date",
        )
    yield from _of_groups(record)
    yield from _of_evaluator(record)
    if record.facts.get("fairness", {}).get("quota", {}).get("quota"):
        yield Finding(
            "warning", "quota", "groups were dealt out in turn, not drawn: the row isn't ranked"
        )
    yield from _verified(record)


def _of_groups(record: Record) -> Iterator[Finding]:
    for name, rows in record.groups.items():
        if not rows:
            continue
        counts = [int(row.get("count", 0)) for row in rows]
        n = int(rows[0].get("n", 0))
        if any(count > n for count in counts):
            yield Finding(
                "error", "groups", f"{name}: a group has more images than the {n} in all"
            )
        elif sum(counts) != n:
            yield Finding("error", "groups", f"{name}: {sum(counts)} images in groups, {n} in all")
        targets = [row.get("target") for row in rows]
        wanted = [float(target) for target in targets if target is not None]
        if len(wanted) == len(rows) and abs(sum(wanted) - 1) > 1e-6:
            yield Finding("error", "groups", f"{name}: wanted shares add up to {sum(wanted):.6g}")


def _of_evaluator(record: Record) -> Iterator[Finding]:
    """A network that guided the images can't judge them."""
    hashes = record.config.get("hashes", {})
    judges = {str(value): name for name, value in hashes.items() if name != "reference"}
    used = dict(_strings(record.config.get("parameters", {}), "parameters"))
    used |= dict(_strings(record.facts.get("guided_by", {}), "facts.guided_by"))
    for where, value in used.items():
        if value in judges:
            yield Finding(
                "error",
                "evaluator",
                f"{where} names the weights of {judges[value]}, which judges it",
            )
        elif value in {str(one) for one in record.config.get("judges", ())}:
            yield Finding("error", "evaluator", f"{where} is {value}, which judges it")


def _strings(tree: object, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _strings(value, f"{where}.{name}")
    elif isinstance(tree, list | tuple):
        for place, value in enumerate(tree):
            yield from _strings(value, f"{where}[{place}]")
    elif isinstance(tree, str) and tree:
        yield where, tree


def _verified(record: Record) -> Iterator[Finding]:
    if "evaluated" in record.config:
        yield Finding("unverified", "origin", "its images were made elsewhere")
        return
    try:
        version = get_method(record.method).version
    except InputError as error:
        yield Finding("unverified", "origin", str(error))
        return
    had = int(record.config.get("version", 0))
    if had != version:
        yield Finding("unverified", "origin", f"method version {had}, the code's is {version}")
    code = record.environment.get("code")
    if isinstance(code, dict) and code.get("clean") is False:
        yield Finding("unverified", "origin", "it was made by changed code that no commit holds")


def _of_images(path: Path, record: Record) -> Iterator[Finding]:
    if record.status != "complete":
        return
    try:
        images = read_per_image(path, record)
    except RecordError as error:
        yield Finding("error", "sidecar", str(error))
        return
    if record.schema > 1 and images is None:
        yield Finding("warning", "sidecar", "it has none: rows can't be compared in pairs")
    manifest = record.manifest if images is None else images.manifest
    told = record.config.get("num_images")
    if manifest and told is not None and len(manifest) != told:
        yield Finding(
            "error", "completeness", f"expected {told} images, the manifest has {len(manifest)}"
        )
    places = [row[:2] for row in manifest]
    if len(set(places)) < len(places):
        yield Finding("error", "completeness", "an image stands in the manifest more than once")
    hashes = [row[2] for row in manifest]
    distinct = len(set(hashes))
    if hashes and 1 - distinct / len(hashes) > MOST_COPIES:
        yield Finding(
            "error",
            "duplicates",
            f"{len(hashes) - distinct} of {len(hashes)} images are exact copies",
        )
    copies = record.facts.get("copies")
    for split in ("evaluation", "method_reference", "pool"):
        leaked = None if copies is None else copies.get(split)
        if leaked is None:
            continue
        if leaked:
            level: Literal["error", "warning"] = "error" if split == "evaluation" else "warning"
            yield Finding(level, "disjointness", f"{leaked} images are of the {split} split")
    if copies is None or copies.get("evaluation") is None:
        yield Finding(
            "warning", "disjointness", "it doesn't say whether images are of the evaluation split"
        )
    if images is not None:
        yield from _counts_agree(record, images)


def _counts_agree(record: Record, images: PerImage) -> Iterator[Finding]:
    """Tables of groups against what the sidecar says of each image."""
    first = next(iter(images.labels.values()), {})
    for name, levels in first.items():
        rows = record.groups.get(name)
        if not rows:
            continue
        said = [int(((levels == place) & images.valid).sum()) for place in range(len(rows))]
        counts = [int(row["count"]) for row in rows]
        if said != counts:
            yield Finding(
                "error", "groups", f"{name}: the record counts {counts}, its sidecar {said}"
            )
