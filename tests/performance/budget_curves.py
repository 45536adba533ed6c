"""What more training buys: curves over budgets at a constant rate, and over reference images.

Run by hand, with nothing else on the machine; every run is kept in the cache and in a folder of
records, so that the same command goes on where it was interrupted:

    python tests/performance/budget_curves.py                       # hours on two cores
    python tests/performance/budget_curves.py --methods tiw --steps 600 2400 --num-images 1000

Rates stay constant and weights are averaged, so that a training is the beginning of every longer
one: one training a method gives the whole curve. The methods that read a reference set are trained
with fewer of its images, too, at the smallest budget. Printed for each: the corrected discrepancy,
the kernel distance to images of the model's own composition, valid faces and, where there is a
reference set, how often an image lies nearer to it than a real one does.

The same numbers, one at a time, come from the command line alone:

    fairbench run --method tiw --param rate_schedule=constant --param steps=2400
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from fairbench.core.progress import Reporter
from fairbench.core.record import Record
from fairbench.runs.config import RunConfig
from fairbench.runs.running import run

CURVES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "balanced_data": ("balanced_data", ()),
    "dsm_reference": ("dsm_reference", ()),
    "iw": ("iw", ()),
    "tiw": ("tiw", ()),
    "invdiff": ("invdiff", ()),
    "oracle_groups": ("invdiff", ("preset=oracle_groups",)),
}
"""Name -> method and parameters."""

READ_REFERENCES = ("dsm_reference", "iw", "tiw")
COLUMNS = {
    "fairness_discrepancy_corrected": "discrepancy",
    "kernel_cartoonfaces_reweighted": "kernel distance",
    "validity": "valid faces",
    "memorisation_cartoonfaces": "memorisation",
}
"""Score -> what its column is called."""


def show(record: Record, name: str) -> str:
    """A score with its interval, or nothing where it isn't measured."""
    score = record.score(name)
    if score is None:
        return f"{'–':>26}"
    if score.low is None or score.high is None:
        return f"{score.value:>26.4g}"
    return f"{score.value:.3g} [{score.low:.3g}, {score.high:.3g}]".rjust(26)


def settings(chosen: argparse.Namespace) -> Iterator[tuple[str, int, int | None]]:
    """Name, steps and number of reference images of each run, None for all or none."""
    for name in chosen.methods:
        for steps in sorted(chosen.steps):
            yield name, steps, None
        if name in READ_REFERENCES:
            for count in sorted(chosen.references):
                yield name, min(chosen.steps), count


def main() -> None:
    """Run every setting and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(CURVES), choices=list(CURVES))
    parser.add_argument("--steps", nargs="+", type=int, default=[600, 2400])
    parser.add_argument("--references", nargs="*", type=int, default=[80, 200])
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--task", default="gender")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("budget-curves"))
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    print(f"{'method':<16}{'steps':>7}{'references':>12}", end="")
    print("".join(f"{told:>26}" for told in COLUMNS.values()))
    for name, steps, count in settings(chosen):
        method, given = CURVES[name]
        parameters = [*given, "rate_schedule=constant", f"steps={steps}"]
        if count is not None:
            parameters.append(f"reference_images={count}")
        config = RunConfig(
            method,
            task=chosen.task,
            num_images=chosen.num_images,
            seed=chosen.seed,
            parameters=tuple(parameters),
            device=chosen.device,
            results=chosen.results,
        )
        if chosen.guidance is not None:
            config = replace(config, guidance=chosen.guidance)
        record = run(config, Reporter(warn=lambda line: print(line, file=sys.stderr))).record
        print(f"{name:<16}{steps:>7}{'' if count is None else count:>12}", end="")
        print("".join(show(record, column) for column in COLUMNS), flush=True)


if __name__ == "__main__":
    main()
