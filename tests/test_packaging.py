"""What is installed is what the tree holds, under one import name and no other."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = "fairbench-diffusion"
FOLDERS = {
    "bench": "fairbench",
    "methods": "fairbench.methods",
    "metrics": "fairbench.metrics",
    "leaderboards": "fairbench.leaderboards",
}
NOT_SHIPPED = {"node_modules", "__pycache__"}


def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def files(folder):
    for path in sorted((ROOT / folder).rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not NOT_SHIPPED & {*parts}:
            yield path


def modules():
    """Source file -> the name that it is imported by."""
    named = {}
    for folder, package in FOLDERS.items():
        for path in files(folder):
            if path.suffix == ".py":
                inner = path.relative_to(ROOT / folder).with_suffix("").parts
                parts = [package, *inner]
                named[path] = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return named


def python(code, folder, *arguments):
    """What a fresh interpreter started in `folder` prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed_folder():
    return Path(importlib.util.find_spec("fairbench").origin).parent


def test_every_source_file_imports_under_its_fairbench_name(tmp_path):
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    names = list(modules().values())
    assert "fairbench.app.cli" in names
    python(code, tmp_path, *names)


def test_installed_source_is_the_tree():
    for path, name in modules().items():
        installed = Path(importlib.util.find_spec(name).origin)
        assert installed.read_bytes() == path.read_bytes(), f"{name} is stale; install again"


def test_bare_names_stay_free(tmp_path):
    code = (
        "import importlib.util, sys\n"
        "print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    )
    assert python(code, tmp_path, *FOLDERS) == "[]\n"


def test_no_file_in_bench_shadows_a_sibling():
    for folder in FOLDERS:
        assert not (ROOT / "bench" / folder).exists()
        assert not (ROOT / "bench" / f"{folder}.py").exists()


def test_packages_list_is_complete():
    folders = {
        name if path.name == "__init__.py" else name.rpartition(".")[0]
        for path, name in modules().items()
    }
    assert set(settings()["packages"]) == folders
    for name in folders:
        assert importlib.util.find_spec(name).origin is not None, f"{name} lacks an __init__.py"


def test_every_asset_is_installed():
    assets = [path.relative_to(ROOT / "bench") for path in files("bench/assets")]
    for path in [*assets, Path("py.typed")]:
        installed = installed_folder() / path
        assert installed.is_file(), f"{path} isn't installed; see package-data in pyproject.toml"
        assert installed.stat().st_size == (ROOT / "bench" / path).stat().st_size


def test_data_judges_and_build_scripts_are_installed():
    folder = installed_folder()
    for split in ("pool", "method_reference", "judge", "evaluation"):
        assert (folder / "assets" / "cartoonfaces" / f"{split}.npz.xz").is_file()
    for name in ("primary", "second", "validity", "cartoonfaces"):
        assert (folder / "assets" / "judges" / f"{name}.json").is_file()
        assert (folder / "assets" / "judges" / f"{name}.safetensors").is_file()
    for name in ("render.mjs", "package.json", "package-lock.json"):
        assert (folder / "build" / "cartoonfaces" / name).is_file()


def test_default_backbone_is_installed():
    from fairbench.datasets.base import DATASETS

    found, broken = DATASETS.entries()
    assert not broken
    for dataset in found.values():
        if dataset.card.on_disk:  # what doesn't come with fairbench needn't be there
            continue
        spec = dataset.backbone(None)
        assert (spec.folder / "model_index.json").is_file()
        assert list((spec.folder / "unet").glob("*.safetensors"))


def test_wheel_holds_nothing_else():
    shipped = [str(path) for path in importlib.metadata.files(DISTRIBUTION) or ()]
    assert not [path for path in shipped if "node_modules" in Path(path).parts]
    tops = {Path(path).parts[0] for path in shipped}
    assert not tops & {*FOLDERS, "build", "tests", "results"}


def test_licence_is_the_whole_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert importlib.metadata.metadata(DISTRIBUTION)["License-Expression"] == "Apache-2.0"


def test_listing_methods_imports_no_torch(tmp_path):
    code = (
        "import sys\n"
        "from fairbench.app.cli import main\n"
        "sys.argv = ['fairbench', 'list', 'methods', '--json']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & {*sys.modules}\n"
        "assert not heavy, heavy\n"
    )
    names = [row["name"] for row in json.loads(python(code, tmp_path))]
    public = [path.stem for path in (ROOT / "methods").glob("[!_]*.py")]
    assert sorted(names) == sorted(public)


@pytest.mark.parametrize("command", [["-m", "fairbench"], ["fairbench"]])
def test_both_ways_to_start_it(command, tmp_path):
    if command == ["fairbench"]:
        command = [str(Path(sys.executable).with_name("fairbench"))]
    else:
        command = [sys.executable, *command]
    done = subprocess.run(
        [*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "leaderboard" in done.stdout


def test_ci_runs_the_readme_command():
    assert "\nsh tests/run.sh\n" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec sh tests/run.sh")
