"""How long ten thousand records take to become a board, and how much memory.

Run by hand, from anywhere, with nothing else on the machine:

    python tests/performance/leaderboard.py        # some minutes, mostly to write them
    python tests/performance/leaderboard.py --records 500 --schemas 2

The records are the committed ones over and over, each time under other names, so that every row
is worked out anew: ``--vary backbone`` makes new tables of the usual size, ``parameter`` makes a
few tables of thousands of rows, ``seed`` makes rows of hundreds of seeds. Counts are jittered, so
that no two rows have the same. Schema 1 keeps 100 rows of each manifest; schema 2 moves them to a
sidecar, with labels. Each board is made twice, in processes of their own: without an index, and
with the one that the first left behind. Printed: seconds; processor seconds of the process and its
helpers, which a busy machine changes little; the largest resident memory of the process, and of
one helper, most of which is shared with it. Exit status 1 if a board is above a bar.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fairbench.core.record import PerImage
from fairbench.storage.records import _packed

SECONDS, MEBIBYTES = 20.0, 500.0
COMMITTED = Path(__file__).resolve().parent.parent.parent / "results"
ROWS = 100

MAKE = """
import resource, sys, time
from pathlib import Path
start = time.perf_counter()
from fairbench.leaderboards import leaderboard
from fairbench.leaderboards.formats.csv import to_csv
text = to_csv(leaderboard(sys.argv[1]))
took = time.perf_counter() - start
own, helper = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
busy = sum(one.ru_utime + one.ru_stime for one in (own, helper))
print(took, busy, own.ru_maxrss / 1024, helper.ru_maxrss / 1024, text.count(chr(10)) - 1)
"""


def varied(data: dict[str, Any], how: str, number: int, draw: random.Random) -> dict[str, Any]:
    """A record under another name, with other counts."""
    config = dict(data["config"])
    if how == "backbone":
        config["backbone"] = f"{config['backbone']}-{number}"
    elif how == "parameter":
        config["parameters"] = {**config["parameters"], "number": number}
    else:
        config["seed"] = int(config["seed"]) + 1000 * number
    key = hashlib.sha256(f"{data['key']} {number}".encode()).hexdigest()[:16]
    generation = hashlib.sha256(f"{data['generation_key']} {number}".encode()).hexdigest()[:16]
    groups = {}
    for name, rows in data["groups"].items():
        counts = [int(row["count"]) for row in rows]
        moved = draw.randint(0, min(3, counts[0]))
        counts = (
            [counts[0] - moved, *counts[1:-1], counts[-1] + moved] if len(counts) > 1 else counts
        )
        groups[name] = [{**row, "count": count} for row, count in zip(rows, counts, strict=True)]
    return {**data, "config": config, "key": key, "generation_key": generation, "groups": groups}


def sidecar(data: dict[str, Any], draw: random.Random) -> bytes:
    """What is known of each image, as of a run that draws groups at random."""
    n = len(data["manifest"])
    generator = np.random.default_rng(draw.getrandbits(32))
    names = [name for name in data["groups"] if "|" not in name and "/" not in name]
    labels = {name: generator.integers(0, len(data["groups"][name]), n) for name in names}
    return _packed(
        PerImage(
            tuple(hashlib.sha256(f"{data['key']} {i}".encode()).hexdigest() for i in range(n)),
            np.array([row[0] for row in data["manifest"]]),
            np.array([row[1] for row in data["manifest"]]),
            None,
            np.arange(n),
            np.ones(n, dtype=bool),
            {"primary": labels, "second": labels},
        )
    )


def fill(folder: Path, records: int, schema: int, how: str) -> None:
    """Write so many records."""
    originals = [json.loads(path.read_bytes()) for path in sorted(COMMITTED.glob("*/*/*.json"))]
    draw = random.Random(0)
    for index in range(records):
        number, place = divmod(index, len(originals))
        data = varied(originals[place], how, number, draw)
        data["manifest"] = [
            [p, i, hashlib.sha256(f"{data['key']} {i}".encode()).hexdigest()]
            for p, i, _ in data["manifest"][:ROWS]
        ]
        path = folder / data["dataset"] / data["method"] / f"{data['key']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if schema == 2:
            packed = sidecar(data, draw)
            path.with_suffix(".images.npz").write_bytes(packed)
            data["facts"] = {
                **data["facts"],
                "copies": {"images": ROWS, "distinct": ROWS, "evaluation": 0},
            }
            data |= {"schema": 2, "sidecar": hashlib.sha256(packed).hexdigest()}
            del data["manifest"]
        path.write_text(json.dumps(data, indent=2))


def main() -> int:
    """Fill folders, time both boards of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--schemas", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--vary", nargs="+", default=["backbone", "parameter", "seed"])
    asked = parser.parse_args()
    worst = 0
    for how in asked.vary:
        for schema in asked.schemas:
            with tempfile.TemporaryDirectory() as folder:
                results = Path(folder) / "results"
                fill(results, asked.records, schema, how)
                environment = {**os.environ, "FAIRBENCH_CACHE": str(Path(folder) / "cache")}
                for what in ("without an index", "with one"):
                    done = subprocess.run(
                        [sys.executable, "-c", MAKE, str(results)],
                        env=environment,
                        stdout=subprocess.PIPE,
                        text=True,
                        check=True,
                    )
                    took, busy, own, helper, rows = map(float, done.stdout.split())
                    print(
                        f"schema {schema}, {asked.records:,} records by {how}, {what}: "
                        f"{took:.1f} s ({busy:.1f} s of processors), "
                        f"{own:.0f} MiB (+ {helper:.0f} MiB a helper), {rows:.0f} rows",
                        flush=True,
                    )
                    if took > SECONDS or own + helper > MEBIBYTES:
                        worst = 1
    return worst


if __name__ == "__main__":
    sys.exit(main())
