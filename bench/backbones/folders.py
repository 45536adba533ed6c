"""Pipeline folders: where they are, what is in them, which of their files are loaded."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairbench.core.documents import from_json, read_object
from fairbench.core.errors import AssetError
from fairbench.storage.hub import hub_folder, missing

__all__ = ["Component", "PipelineFolder", "files_sha256", "resolve_folder", "training_card"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
PREFERRED = ("", "fp16", "bf16")
MADE_BY = "give --backbone a folder made by save_pretrained, or a hub id such as owner/name"
LORA = "LoRA weights, which need a pipeline to be fused with and saved"
CONVERT = (
    "is a single checkpoint file, without the tokenizer and the configuration of a pipeline; turn "
    "it into a folder by diffusers' StableDiffusionPipeline.from_single_file(FILE)"
    ".save_pretrained(FOLDER) (StableDiffusionXLPipeline for SDXL) and give --backbone FOLDER"
)


def resolve_folder(name: str | Path, *, allow_download: bool = False) -> Path:
    """The local folder of a backbone: a folder itself, or that of a hub id in the hub's cache.

    Args:
        name: Path of a pipeline folder, or a hub id ``owner/name``.
        allow_download: Whether a hub id that isn't in the cache may be downloaded.
    Raises:
        AssetError: If there is no such folder, or the hub id isn't in the cache and may not be, or
            can't be, downloaded.
    """
    path = Path(name).expanduser()
    if path.is_dir() or path.is_file():
        PipelineFolder.read(path)
        return path.resolve()
    if not HUB_ID.fullmatch(str(name)):
        raise AssetError(
            f"there is no folder {name}; expected a diffusers pipeline folder with "
            f"model_index.json; {MADE_BY}"
        )
    cached = hub_folder(str(name))
    lacks = None if cached is None else _missing(cached)
    if cached is not None and lacks is None:
        return cached
    if not allow_download:
        raise AssetError(missing(str(name)) if lacks is None else f"{name}: {lacks}")
    try:
        from diffusers import DiffusionPipeline

        return Path(DiffusionPipeline.download(str(name)))
    except Exception as error:  # network, rights and names fail in many ways
        reason = (str(error).splitlines() or [""])[0]
        raise AssetError(
            f"{name} can't be downloaded: {type(error).__name__}: {reason}; check the name and "
            "the network, or give the path of a pipeline folder"
        ) from error


def _missing(folder: Path) -> str | None:
    """What a snapshot lacks, in words; None if it is whole."""
    try:
        PipelineFolder.read(folder).files()
    except AssetError as error:
        return (
            f"only a part of it is in the hub's cache ({error}); give --allow-download, or the "
            "path of a pipeline folder"
        )
    return None


@dataclass(frozen=True)
class Weights:
    """Weight files of one part.

    Attributes:
        variant: Such as ``"fp16"``; None for full precision.
        safe: Whether they are safetensors.
        files: The file, or the list of several and these.
    """

    variant: str | None
    safe: bool
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Component:
    """One part of a pipeline.

    Attributes:
        name: What the pipeline calls it, such as ``"unet"``.
        library: Where its class is defined, such as ``"diffusers"``.
        kind: Its class.
        folder: Where its files lie: its own folder, or that of the pipeline.
    """

    name: str
    library: str
    kind: str
    folder: Path

    @property
    def is_model(self) -> bool:
        """Whether it has weights."""
        return not re.search(r"Scheduler|Tokenizer|Extractor|Processor$", self.kind)

    def config(self) -> dict[str, Any]:
        """Its configuration; empty if it has none.

        Raises:
            AssetError: If that can't be read.
        """
        for name in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
            path = self.folder / name
            if name.startswith("scheduler") == self.kind.endswith("Scheduler") and path.is_file():
                return _json(path)
        return {}

    def check_config(self) -> None:
        """Refuse a part whose configuration is missing or another class's.

        Raises:
            AssetError: If it is.
        """
        scheduler = self.kind.endswith("Scheduler")
        name = "scheduler_config.json" if scheduler else "config.json"
        if not (self.is_model or scheduler):
            return
        if not (self.folder / name).is_file():
            raise AssetError(
                f"{self.folder} has no {name} of the {self.name} ({self.kind}); complete the "
                "folder"
            )
        own = self.config().get("_class_name")
        if self.library == "diffusers" and self.is_model and own not in (None, self.kind):
            raise AssetError(
                f"{self.folder / name} is of a {own}, where model_index.json names a {self.kind} "
                f"as the {self.name}; correct one of them, or get the folder anew"
            )

    def weights(self) -> Weights:
        """The weight files that are loaded.

        Weights in full precision come before those of a variant such as fp16, safetensors before
        pickled ones.

        Raises:
            AssetError: If there are none, or one of several files is missing.
        """
        found: dict[tuple[str, bool], Path] = {}
        for stem in STEMS:
            for path in sorted(self.folder.glob(f"{stem}.*")):
                sort = _sort_of(path.name.removeprefix(f"{stem}."))
                if sort is not None:
                    found.setdefault(sort, path)
        variants = dict.fromkeys([*PREFERRED, *sorted({variant for variant, _ in found})])
        for variant in variants:
            for safe in (True, False):
                if (variant, safe) in found:
                    path = found[variant, safe]
                    files = [path, *_shards(path)] if ".index." in path.name else [path]
                    return Weights(variant or None, safe, tuple(files))
        raise AssetError(
            f"{self.folder} has no weights of the {self.name} ({self.kind}); expected "
            f"{'diffusion_pytorch_model' if self.library == 'diffusers' else 'model'}.safetensors"
            ", also with .fp16, or the same as .bin; complete the folder"
        )

    def files(self) -> list[Path]:
        """Every file that is read when it is loaded.

        Raises:
            AssetError: As :meth:`weights`, or without a configuration.
        """
        if self.is_model:
            self.check_config()
            return [self.folder / "config.json", *self.weights().files]
        if self.kind.endswith("Scheduler"):
            self.check_config()
            return [self.folder / "scheduler_config.json"]
        found = [
            path
            for path in sorted(self.folder.iterdir())
            if path.suffix in (".json", ".txt", ".model", ".tiktoken")
            and path.name != "model_index.json"
        ]
        if not found:
            raise AssetError(
                f"{self.folder} has no files of the {self.name} ({self.kind}); complete the folder"
            )
        if "Tokenizer" in self.kind and not _has_vocabulary({path.name for path in found}):
            raise AssetError(  # else every prompt would be the same one
                f"{self.folder} has no vocabulary of the {self.name} ({self.kind}); expected "
                "tokenizer.json, or vocab.json and merges.txt; complete the folder"
            )
        return found


def _has_vocabulary(names: Collection[str]) -> bool:
    """Whether files of these names tell a tokenizer its words."""
    pairs = {"vocab.json", "merges.txt"} <= set(names)
    alone = any(name in ("tokenizer.json", "vocab.txt") for name in names)
    return pairs or alone or any(name.endswith((".model", ".tiktoken")) for name in names)


def _sort_of(ending: str) -> tuple[str, bool] | None:
    """(variant, whether safetensors) of what follows the stem of a weight file; None for others.

    ``safetensors``, ``fp16.safetensors``, ``safetensors.index.json`` and
    ``safetensors.index.fp16.json`` are such endings; a single shard isn't.
    """
    parts = ending.split(".")
    if "index" in parts and parts[-1] == "json":
        parts = [part for part in parts if part not in ("index", "json")]
        parts = [*[part for part in parts if part not in ("safetensors", "bin")], *parts]
        parts = list(dict.fromkeys(parts))
    if not parts or parts[-1] not in ("safetensors", "bin") or len(parts) > 2:
        return None
    variant = parts[0] if len(parts) == 2 else ""
    if re.search(r"\d{5}-of-\d{5}", variant):
        return None
    return variant, parts[-1] == "safetensors"


def _shards(index: Path) -> Iterator[Path]:
    listed = _json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise AssetError(f"{index} lists no weight files; complete the folder")
    for name in sorted(set(listed.values())):
        path = index.parent / Path(str(name)).name
        if not path.is_file():
            raise AssetError(f"{path} is missing, which {index.name} lists; complete the folder")
        yield path


def _json(path: Path) -> dict[str, Any]:
    return read_object(path, "complete the folder")


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline in diffusers' folder format; its JSON is read, its weights aren't.

    Attributes:
        path: The folder.
        index: What its ``model_index.json`` says.
        kind: Class of the pipeline.
    """

    path: Path
    index: Mapping[str, Any]
    kind: str

    @classmethod
    def read(cls, path: Path) -> PipelineFolder:
        """What a folder is.

        Raises:
            AssetError: If it is none, in one line that says what it is instead.
        """
        if path.is_file():
            if _holds_lora(path):
                raise AssetError(f"{path} holds {LORA}; {MADE_BY}")
            if path.suffix.lower() in SINGLE_FILES:
                raise AssetError(f"{path} {CONVERT}")
            raise AssetError(f"{path} is a file; expected a diffusers pipeline folder; {MADE_BY}")
        index = path / "model_index.json"
        if not index.is_file():
            raise AssetError(
                "expected a diffusers pipeline folder with model_index.json at "
                f"{path}, found none{_instead(path)}; {MADE_BY}"
            )
        try:
            content = _json(index)
            kind = content["_class_name"]
        except (AssetError, KeyError):
            kind = None
        if isinstance(kind, list):  # a class from a file of the folder's own
            raise AssetError(
                f"{index} names {kind[-1]}, a pipeline with code of its own, which isn't run; "
                "use a pipeline of diffusers"
            )
        if not isinstance(kind, str):
            raise AssetError(f"{index} names no pipeline class; {MADE_BY}")
        return cls(path, content, kind)

    def components(self, names: Collection[str] | None = None) -> list[Component]:
        """Its parts, sorted by name; those without a class are left out.

        Args:
            names: The parts to list; None: all but the safety checker and its extractor.
        """
        listed = []
        for name, entry in sorted(self.index.items()):
            wanted = name not in SAFETY if names is None else name in names
            if not wanted or not isinstance(entry, list) or len(entry) != 2 or not entry[1]:
                continue
            own = self.path / name
            library, kind = str(entry[0]), str(entry[1])
            listed.append(Component(name, library, kind, own if own.is_dir() else self.path))
        return listed

    def component(self, name: str) -> Component | None:
        """One part; None if the pipeline has none of that name."""
        return next(iter(self.components((name,))), None)

    def config(self, name: str) -> dict[str, Any]:
        """Configuration of one part; empty without it."""
        part = self.component(name)
        return {} if part is None else part.config()

    def files(self, names: Collection[str] | None = None) -> list[Path]:
        """``model_index.json`` and every file that is read when these parts are loaded.

        Raises:
            AssetError: If one is missing, can't be read, or was cut off.
        """
        parts = (part.files() for part in self.components(names))
        every = [self.path / "model_index.json", *(path for part in parts for path in part)]
        listed = sorted(set(every))
        for path in listed:
            _check_whole(path)
        return listed


LONGEST_HEADER = 100_000_000
"""Bytes of a header that the safetensors format allows."""

LFS = b"version https://git-lfs"


def _check_whole(path: Path) -> None:
    """Refuse a file that is there by its name alone; of weights no more than the header is read.

    Raises:
        AssetError: If it can't be opened, is empty or a pointer of Git LFS, or isn't as long as
            its header says.
    """
    try:
        with path.open("rb") as file:
            size, start = path.stat().st_size, file.read(len(LFS))
            file.seek(0)
            safe = path.suffix == ".safetensors" and start != LFS
            expected = _size_by_header(file.read, size) if safe else None
    except OSError as error:
        raise AssetError(f"{path} can't be read ({error.strerror}); complete the folder") from None
    if start == LFS:
        raise AssetError(
            f"{path} is a pointer of Git LFS and not the file itself; run git lfs pull in the "
            "folder"
        )
    if size == 0:
        raise AssetError(f"{path} is empty; get it anew")
    if safe and expected is None:
        raise AssetError(f"{path} has no header of the safetensors format; get it anew")
    if safe and expected != size:
        raise AssetError(
            f"{path} is {size:,} bytes long, expected {expected:,} by its header: it was cut off "
            "or damaged; get it anew"
        )


def _header(read: Callable[[int], bytes], size: int) -> tuple[int, dict[str, Any]] | None:
    """Length and content of the header of a safetensors file of so many bytes; None without."""
    length = int.from_bytes(read(8), "little")
    if not 2 <= length <= min(size - 8, LONGEST_HEADER):
        return None
    try:
        told = from_json(read(length))
    except ValueError:
        return None
    return (length, told) if isinstance(told, dict) else None


def _size_by_header(read: Callable[[int], bytes], size: int) -> int | None:
    """Bytes that a safetensors file has by its header; None if it has none that can be read."""
    found = _header(read, size)
    if found is None:
        return None
    length, content = found
    try:
        ends = [one["data_offsets"][1] for name, one in content.items() if name != "__metadata__"]
        return 8 + length + int(max(ends, default=0))
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _holds_lora(path: Path) -> bool:
    """Whether a file's weights are those of low-rank adapters, by their names."""
    if path.suffix != ".safetensors":
        return False
    try:
        with path.open("rb") as file:
            found = _header(file.read, path.stat().st_size)
    except OSError:
        return False
    return found is not None and any("lora" in name.lower() for name in found[1])


def training_card(folder: Path) -> dict[str, Any]:
    """What a folder's ``training.json`` says; empty without one.

    Raises:
        AssetError: If it can't be read.
    """
    path = folder / "training.json"
    return _json(path) if path.is_file() else {}


SAFETY = frozenset({"safety_checker", "feature_extractor"})
"""Parts that blacken images; a benchmark measures what the generator makes."""


def _instead(path: Path) -> str:
    """What a folder without an index looks like, to be added to the message."""
    if not path.is_dir():
        return ""
    if (path / "config.json").is_file():
        return " but the config.json of one part"
    single = [one for one in sorted(path.iterdir()) if one.suffix in SINGLE_FILES]
    named = any(path.glob("pytorch_lora_weights*")) or (path / "adapter_config.json").is_file()
    if named or (single and all(map(_holds_lora, single))):
        return f" but {LORA}"
    if single:
        return f" but the single checkpoint {single[0].name}, to be converted by from_single_file"
    inside = sorted(path.glob("*/model_index.json"))
    return f"; did you mean {inside[0].parent}?" if inside else ""


@functools.lru_cache(maxsize=4096)
def _content_sha256(path: str, size: int, changed: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(folder: Path, files: Collection[Path]) -> str:
    """Hash of names, relative to the folder, and contents of files."""
    total = hashlib.sha256()
    for path in sorted(files):
        stat = path.stat()
        content = _content_sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()
