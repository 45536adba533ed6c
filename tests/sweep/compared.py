"""What of a results folder doesn't depend on who made it, when, where and how often."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OF_THE_MACHINE = ("seconds", "peak_memory_mib", "environment", "created")


def left(results: Path) -> dict[str, Any]:
    """Records without times, host and device; bytes of what lies beside them."""
    found: dict[str, Any] = {}
    for path in sorted(results.glob("[!.]*/*/*")):
        name = path.relative_to(results).as_posix()
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            found[name] = {k: v for k, v in record.items() if k not in OF_THE_MACHINE}
        elif not path.name.startswith("."):
            found[name] = path.read_bytes()
    return found
