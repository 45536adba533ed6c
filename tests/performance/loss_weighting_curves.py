"""How loss weightings do at few sampling steps and after short training: what their papers claim.

Run by hand, with nothing else on the machine; every run is kept in the cache and in a folder of
records, so that the same command goes on where it was interrupted:

    python tests/performance/loss_weighting_curves.py                        # hours on two cores
    python tests/performance/loss_weighting_curves.py --training 500 --sampling 10 --num-images 500

Each length of training is a run of its own, from random weights unless ``--start backbone``, with
its own decay of the learning rate. The papers' claims are about networks that predict noise, which
those from random weights do here unless ``--prediction native``; the backbone predicts velocity.
Weights are divided by their mean, so that all weightings take
steps of the same size. Each trained network is sampled at every number of steps, all beginning at
the noisiest timestep. Printed for each: the Fréchet and kernel distances in the data set's own
encoder from real images with the *training* bias, with 95 % intervals, and for the record the
fairness discrepancy, which no weighting aims at: that of badly trained networks is low because
their images are ambiguous, so read it beside validity.

The same numbers, one at a time, come from the command line alone:

    fairbench run --method debiased_loss_weighting --backbone cartoonfaces-ddpm --steps 10 \\
        --param start=scratch --param prediction=noise --param steps=2500
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from fairbench.core.progress import Reporter
from fairbench.core.record import Record
from fairbench.runs.config import RunConfig
from fairbench.runs.running import run

COLUMNS = (
    "frechet_cartoonfaces_natural",
    "kernel_cartoonfaces_natural",
    "validity",
    "fairness_discrepancy",
)


def show(record: Record, name: str) -> str:
    """A score with its interval, or why there is none."""
    score = record.score(name)
    if score is None:
        return f"{'not measured':>24}"
    if score.low is None or score.high is None:
        return f"{score.value:>24.4g}"
    return f"{score.value:>9.4g} [{score.low:.4g}, {score.high:.4g}]".rjust(24)


def main() -> None:
    """Run every combination and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weightings", nargs="+", default=["constant", "p2", "min_snr", "debias"])
    parser.add_argument("--training", nargs="+", type=int, default=[2500, 10_000])
    parser.add_argument("--sampling", nargs="+", type=int, default=[10, 50])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--backbone", default="cartoonfaces-ddpm")
    parser.add_argument("--start", choices=["scratch", "backbone"], default="scratch")
    parser.add_argument("--prediction", choices=["noise", "native"], default="noise")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-images", type=int, default=2000)
    parser.add_argument("--results", type=Path, default=Path("loss-weighting-results"))
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    print(f"{'weighting':<14}{'training':>9}{'seed':>5}{'sampling':>9}", end="")
    print("".join(f"{name.replace('cartoonfaces_', ''):>24}" for name in COLUMNS))
    for steps, seed, weighting in itertools.product(
        chosen.training, chosen.seeds, chosen.weightings
    ):
        for sampling in chosen.sampling:
            config = RunConfig(
                "debiased_loss_weighting",
                backbone=chosen.backbone,
                num_images=chosen.num_images,
                seed=seed,
                steps=sampling,
                guidance=1.0,
                device=chosen.device,
                parameters=(
                    f"loss_weighting={weighting}",
                    f"start={chosen.start}",
                    f"prediction={chosen.prediction if chosen.start == 'scratch' else 'native'}",
                    f"steps={steps}",
                    f"learning_rate={chosen.learning_rate}",
                ),
                results=chosen.results,
            )
            record = run(config, Reporter(warn=lambda line: print(line, file=sys.stderr))).record
            print(f"{weighting:<14}{steps:>9}{seed:>5}{sampling:>9}", end="")
            print("".join(show(record, name) for name in COLUMNS), flush=True)


if __name__ == "__main__":
    main()
