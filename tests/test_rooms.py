"""Imports point downwards only: from a room to rooms below it, never back up, never in a circle.

The order is that of docs/architecture.md. Rooms on one step don't see each other.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "bench": "fairbench",
    "methods": "fairbench.methods",
    "metrics": "fairbench.metrics",
    "leaderboards": "fairbench.leaderboards",
}
STEPS = (
    ("core",),
    ("metrics",),
    ("storage",),
    ("inputs",),
    ("diffusion",),
    ("datasets", "backbones"),
    ("instruments",),  # those of a data set read its declared levels
    ("methods",),
    ("scores",),
    ("runs",),
    ("leaderboards", "gate", "sweep"),
    ("app",),
)
HEIGHT = {room: step for step, rooms in enumerate(STEPS) for room in rooms}

UPWARD: dict[tuple[str, str], str] = {}
"""Imports inside functions that point upwards, each with its reason; there is none so far."""


def modules() -> dict[str, Path]:
    """Dotted name -> source file; build scripts aren't part of the house."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            if "build" in inner[:1] or "node_modules" in inner:
                continue
            parts = [package, *inner]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(module: str, *, deferred: bool) -> Iterator[str]:
    """Modules of fairbench that a file imports: at its top, or inside functions too."""
    tree = ast.parse(MODULES[module].read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in inside and not deferred:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # ``from package import module`` names a module too.
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in whole]
        else:
            continue
        yield from (name for name in names if name in MODULES and name != module)


def test_every_file_is_in_a_room_of_the_plan() -> None:
    assert {room_of(name) for name in MODULES} - {"", "__main__"} <= HEIGHT.keys()


def test_no_import_points_upwards_or_sideways() -> None:
    wrong = []
    for module in MODULES:
        room = room_of(module)
        if room in ("", "__main__"):  # the front door
            continue
        for other in imports(module, deferred=True):
            target = room_of(other)
            if target in ("", room) or HEIGHT[target] < HEIGHT[room]:
                continue
            if (module, other) not in UPWARD:
                wrong.append(f"{module} -> {other}")
    assert not wrong


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module in MODULES:
        graph[module] |= set(imports(module, deferred=False))
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in done:
            return
        for other in sorted(graph[module]):
            walk(other, (*path, module))
        done.add(module)

    for module in MODULES:
        walk(module, ())


def test_no_room_imports_what_made_its_assets() -> None:
    for module, path in MODULES.items():
        assert "fairbench.build" not in {
            node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        }, module
