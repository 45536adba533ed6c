"""Copies the undebiased backbones' committed records to where they are shipped.

From the root of the source tree, after they were made or rescored:

    python -m fairbench.build.ship_records

What lists single images is left out: the records are compared with by their scores alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from fairbench.runs.baselines import SHIPPED

RESULTS = Path("results/cartoonfaces/vanilla")
IMAGES = 2000
"""Of the records that a leaderboard's protocol asks for."""


def main() -> None:
    """Replace every shipped record."""
    SHIPPED.mkdir(exist_ok=True)
    for path in SHIPPED.glob("*.json"):
        path.unlink()
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        config = record["config"]
        if (config["seed"], config["num_images"]) != (0, IMAGES):
            continue
        if "manifest" in record:
            record["manifest"] = []
        if "sidecar" in record:
            record["sidecar"] = None
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        (SHIPPED / path.name).write_text(text)


if __name__ == "__main__":
    main()
