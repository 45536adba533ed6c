"""What is installed, found and missing, and what to do about it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from fairbench.core.errors import FairbenchError
from fairbench.core.specs import BackboneSpec
from fairbench.datasets.base import DATASETS, Dataset, Role, get_dataset
from fairbench.instruments.weights import weight_states
from fairbench.runs.provenance import DISTRIBUTION, PACKAGES, package_versions
from fairbench.storage import hub
from fairbench.storage.cache import cache_folder

__all__ = ["Finding", "examine"]

REINSTALL = f"reinstall {DISTRIBUTION}"
FURTHER_PACKAGES = (
    "clean-fid",
    "facenet-pytorch",
    "matplotlib",
    "pandas",
    "platformdirs",
    "pyarrow",
    "rich",
    "scikit-learn",
    "torch-fidelity",
    "torchvision",
    "typer",
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: The thing.
        ok: Whether it is as it should be.
        found: What was seen, and where.
        remedy: What to do if it isn't ok.
        optional: Whether fairbench works without it; then it isn't ok, but no fault either.
    """

    what: str
    ok: bool
    found: str
    remedy: str = ""
    optional: bool = False


def examine(*, verify: bool) -> list[Finding]:
    """Look at Python, packages, devices, folders and every file that fairbench ships.

    Args:
        verify: Also load the data and the networks and hash every weight file that is there.
    """
    findings = [Finding("python", True, platform.python_version())]
    findings += _packages()
    findings += _devices()
    findings.append(_cache())
    findings += _files()
    findings += _weights(verify=verify)
    if verify:
        findings += _verified()
    return findings


def _packages() -> Iterator[Finding]:
    for name, version in package_versions((DISTRIBUTION, *PACKAGES, *FURTHER_PACKAGES)).items():
        yield Finding(
            f"package {name}",
            version != "missing",
            version,
            _unless(
                version != "missing", f"pip install {name}" if name != DISTRIBUTION else REINSTALL
            ),
        )


def _unless(ok: bool, remedy: str) -> str:
    return "" if ok else remedy


def _devices() -> Iterator[Finding]:
    import torch

    from fairbench.diffusion.devices import resolve_device, resolve_dtype

    device = resolve_device("auto")
    dtype = str(resolve_dtype("auto", device)).removeprefix("torch.")
    yield Finding(
        "device", True, f"auto is {device} in {dtype}, {torch.get_num_threads()} threads"
    )


def _cache() -> Finding:
    try:
        folder = cache_folder()
    except FairbenchError as error:
        return Finding("cache folder", False, str(error), "set FAIRBENCH_CACHE")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Finding("cache folder", True, f"{folder}, {size / 2**20:.0f} MiB; may be deleted")


def _files() -> Iterator[Finding]:
    for dataset in _datasets():
        if dataset.card.on_disk:
            yield _on_disk(dataset)
        expected = list(dataset.files())
        for spec in dataset.backbones:
            if spec.hub:
                yield _of_the_hub(spec)
                continue
            expected.append(spec.folder / "model_index.json")
            expected.append(spec.folder / "unet" / "diffusion_pytorch_model.safetensors")
        for path in expected:
            yield _file(path)


def _on_disk(dataset: Dataset) -> Finding:
    """Whether a data set's files are where FAIRBENCH_DATA says; it may be done without."""
    reason = get_dataset(dataset.name).lacking()
    what = f"data set {dataset.name}"
    if not reason:
        return Finding(what, True, "there", "")
    remedy = f"fairbench data prepare {dataset.name} says what to do"
    return Finding(what, False, reason.partition(";")[0], remedy, optional=True)


def _of_the_hub(spec: BackboneSpec) -> Finding:
    found = hub.hub_folder(spec.hub)
    what = f"backbone {spec.name}"
    if found is not None:
        return Finding(what, True, str(found), "")
    return Finding(
        what,
        False,
        f"not at {hub.hub_place(spec.hub)}",
        f"run 'hf download {spec.hub}', or --allow-download",
        optional=True,
    )


def _datasets() -> list[Dataset]:
    found, _ = DATASETS.entries()
    return list(found.values())


def _file(path: Path) -> Finding:
    ok = path.is_file()
    found = f"{path}, {path.stat().st_size / 2**20:.2f} MiB" if ok else f"not at {path}"
    return Finding(f"file {path.parent.name}/{path.name}", ok, found, _unless(ok, REINSTALL))


def _weights(*, verify: bool) -> Iterator[Finding]:
    """Files of other projects: without one only the metrics that need it can't be computed."""
    for state in weight_states(verify=verify):
        missing = state.path is None
        found = f"{state.found}; needed for {state.spec.purpose}" if missing else state.found
        # A damaged file is a fault: it would be loaded.
        ok = not missing and not state.damaged
        yield Finding(f"external {state.spec.name}", ok, found, state.remedy, optional=missing)


def _verified() -> Iterator[Finding]:
    from fairbench.backbones.base import weights_sha256
    from fairbench.instruments.judges import judge_names, load_judge
    from fairbench.instruments.measuring import load_instruments

    for dataset in _datasets():
        if dataset.card.on_disk:
            continue
        for role in get_args(Role):
            try:
                data = dataset.split(role)
                if data is not None:
                    yield Finding(f"split {role}", True, f"{dataset.name}, {len(data)} images")
            except FairbenchError as error:
                yield Finding(f"split {role}", False, str(error), REINSTALL)
        try:
            cache = cache_folder()
            judges = [load_judge(n, dataset, cache) for n in judge_names(dataset, (), cache)]
            loaded = load_instruments("cpu", dataset.instruments(), judges=judges)
            for name, sha256 in loaded.hashes().items():
                yield Finding(f"weights {name}", True, f"sha256 {sha256[:16]}… as on its card")
        except FairbenchError as error:
            yield Finding(f"instruments of {dataset.name}", False, str(error), REINSTALL)
    for dataset in _datasets():
        for spec in dataset.backbones:
            if spec.folder.is_dir() and not spec.hub:
                try:
                    seen = weights_sha256(spec.folder)
                except FairbenchError as error:
                    yield Finding(f"weights {spec.name}", False, str(error), REINSTALL)
                    continue
                ok = seen == spec.expected_sha256()
                found = f"sha256 {seen[:16]}…, {'as' if ok else 'not as'} trained"
                yield Finding(f"weights {spec.name}", ok, found, _unless(ok, REINSTALL))
