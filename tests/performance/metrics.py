"""How long the quality metrics take beside the packages that compute the same numbers.

Run by hand, from anywhere, with nothing else on the machine:

    python tests/performance/metrics.py                      # 10,000 x 2048; tens of minutes
    python tests/performance/metrics.py --num 1000 --dim 256 # half a minute, to see that it works

Everything is timed in one process on the same random features, ours and theirs in turn, and only
ratios mean anything: they are theirs / ours, so above 1 is a gain. Each value is compared with
theirs first, and a difference beyond its tolerance ends the script with exit status 1. Peak memory
is what a call allocates on top of its input, from `tracemalloc`, which sees NumPy's arrays but not
torch's; it is measured in a run of its own, since tracing slows a call down.

Nine tenths of our time is matrix products, so much depends on what NumPy's BLAS makes of the
processor: OpenBLAS takes its Haswell kernels on AMD, and OPENBLAS_CORETYPE=SkylakeX nearly doubles
their speed where there is AVX-512. Give all packages as many threads by OMP_NUM_THREADS. Measured
with one thread on such an AMD EPYC, whose other core was busy: set 2.8x (3.2x with that variable),
cached 4.5x torch-fidelity and 11x clean-fid, subgroups 106x.

Three parts:
    set          Fréchet, kernel, inception score, precision, recall, density and coverage, against
                 torch-fidelity (all but the last two), clean-fid (Fréchet) and prdc (density and
                 coverage; it computes precision and recall too), one after another
    cached       one Fréchet distance whose reference is known, against both packages' own
    subgroups    distances of small groups from one reference, against one clean-fid call each
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from cleanfid import fid as clean_fid
from prdc import compute_prdc
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from fairbench.metrics import (
    FrechetMoments,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall_density_coverage,
)

T = TypeVar("T")

K, SUBSETS, SUBSET_SIZE, CLASSES, SPLITS, SEED = 3, 100, 1000, 1008, 10, 2020


class Bench:
    """Times calls, prints ratios and remembers whether any value was off."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.agree = True

    def seconds(self, *calls: Callable[[], Any]) -> list[float]:
        """Median seconds of each call, the calls taking turns."""
        taken = [[] for _ in calls]
        for _ in range(self.repeats):
            for call, spent in zip(calls, taken, strict=True):
                start = time.perf_counter()
                call()
                spent.append(time.perf_counter() - start)
        return [float(np.median(spent)) for spent in taken]

    def check(self, name: str, ours: float, theirs: float, tolerance: float) -> None:
        off = abs(ours - theirs) / max(abs(theirs), 1e-12)
        self.agree &= off <= tolerance
        verdict = "" if off <= tolerance else f"   OFF, tolerance {tolerance:g}"
        print(f"  {name:<20}{ours:>16.9g}{theirs:>16.9g}{off:>10.1e}{verdict}", flush=True)

    def ratio(self, name: str, ours: float, theirs: float) -> None:
        print(f"  {name:<44}{ours:>9.2f} s{theirs:>9.2f} s{theirs / ours:>8.1f}x", flush=True)


def features(num: int, dim: int, seed: int) -> np.ndarray:
    """(num, dim) float32, correlated, not negative, variances falling: much like pooled ones."""
    rng = np.random.default_rng(seed)
    scale = np.linspace(1, 0.05, dim)
    mix = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0]
    raw = (rng.standard_normal((num, dim)) * scale) @ mix + 0.02 * (seed - 1)
    return np.maximum(raw + 0.5, 0).astype(np.float32)


def quiet(call: Callable[[], T]) -> T:
    """The call's result without what it prints or warns."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def fidelity_frechet(x: np.ndarray, y: np.ndarray) -> float:
    # In float64: it sums float32 features in float32, which no tolerance of ours allows.
    wide = (torch.from_numpy(z.astype(np.float64)) for z in (x, y))
    stats = [fid_features_to_statistics(z) for z in wide]
    return fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]


def clean_frechet(x: np.ndarray, y: np.ndarray) -> float:
    wide = (z.astype(np.float64) for z in (x, y))
    moments = [m for z in wide for m in (z.mean(axis=0), np.cov(z, rowvar=False))]
    return float(clean_fid.frechet_distance(*moments))


def peak_mib(call: Callable[[], Any]) -> float:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def whole_set(bench: Bench, x: np.ndarray, y: np.ndarray) -> None:
    size = min(SUBSET_SIZE, len(x))
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((len(x), CLASSES)) * 2).astype(np.float32)
    tx, ty, tl = (torch.from_numpy(z) for z in (x, y, logits))
    kid = {"kid_subsets": SUBSETS, "kid_subset_size": size, "rng_seed": SEED, "verbose": False}
    # In float64, as ours is; in float32 it agrees to fewer digits.
    wide = tx.double(), ty.double()
    parts: list[tuple[str, Callable[[], Any], list[tuple[str, Callable[[], Any]]]]] = [
        (
            "Fréchet",
            lambda: frechet_distance(x, y),
            [
                ("torch-fidelity", lambda: fidelity_frechet(x, y)),
                ("clean-fid", lambda: quiet(lambda: clean_frechet(x, y))),
            ],
        ),
        (
            "kernel, 100 subsets",
            lambda: kernel_distance(x, y, subsets=SUBSETS, subset_size=size, seed=SEED),
            [("torch-fidelity", lambda: kid_features_to_metric(*wide, **kid))],
        ),
        (
            "inception score",
            lambda: inception_score(logits, splits=SPLITS, seed=SEED),
            [("torch-fidelity", lambda: isc_features_to_metric(tl, SPLITS, True, SEED))],
        ),
        (
            "neighbours",
            lambda: precision_recall_density_coverage(x, y, k=K),
            [
                (
                    "torch-fidelity",
                    lambda: prc_features_to_metric(
                        tx, ty, prc_neighborhood=K, save_cpu_ram=True, verbose=False
                    ),
                ),
                ("prdc", lambda: quiet(lambda: compute_prdc(y, x, K))),
            ],
        ),
    ]

    print("\nvalues                          ours          theirs     off")
    found = {name: ours() for name, ours, _ in parts}
    theirs = {(name, who): call() for name, _, others in parts for who, call in others}
    frechet, kernel, score, near = found.values()
    other = theirs["neighbours", "torch-fidelity"]
    prdc = theirs["neighbours", "prdc"]
    # A float32 distance of theirs may put the odd image on the other side of a ball's edge.
    edge = 5 / len(x)
    bench.check("Fréchet", frechet, theirs["Fréchet", "torch-fidelity"], 1e-6)
    bench.check("Fréchet", frechet, theirs["Fréchet", "clean-fid"], 1e-6)
    expected = theirs["kernel, 100 subsets", "torch-fidelity"]
    bench.check("kernel", kernel.value, expected["kernel_inception_distance_mean"], 1e-6)
    expected = theirs["inception score", "torch-fidelity"]
    bench.check("inception score", score.mean, expected["inception_score_mean"], 1e-6)
    bench.check("precision", near.precision, other["precision"], edge)
    bench.check("recall", near.recall, other["recall"], edge)
    bench.check("density", near.density, prdc["density"], edge)
    bench.check("coverage", near.coverage, prdc["coverage"], edge)

    print("\nthe whole set                                      ours     theirs")
    total_ours = total_theirs = 0.0
    for name, ours, others in parts:
        mine, *rest = bench.seconds(ours, *(call for _, call in others))
        for (who, _), spent in zip(others, rest, strict=True):
            bench.ratio(f"{name}, {who}", mine, spent)
        total_ours += mine
        total_theirs += sum(rest)
    bench.ratio("all, one after another", total_ours, total_theirs)

    print("\npeak memory on top of the input, MiB")
    for name, ours, others in parts:
        line = [f"ours {peak_mib(ours):.0f}"]
        line += [f"{who} {peak_mib(call):.0f}" for who, call in others if who != "torch-fidelity"]
        print(f"  {name:<22}{', '.join(line)}", flush=True)


def cached(bench: Bench, x: np.ndarray, y: np.ndarray) -> None:
    reference = FrechetMoments.of(y)
    stats = [fid_features_to_statistics(torch.from_numpy(z.astype(np.float64))) for z in (x, y)]
    moments = [m for s in stats for m in (s["mu"], s["sigma"])]
    generated = FrechetMoments.of_moments(*moments[:2])
    start = time.perf_counter()
    reference.distance(generated)  # finds the factor
    first = time.perf_counter() - start
    print(f"\none Fréchet distance from known moments; the reference's first took {first:.2f} s")
    ours, fidelity, clean = bench.seconds(
        lambda: reference.distance(generated),
        lambda: fid_statistics_to_metric(*stats, False),
        lambda: quiet(lambda: clean_fid.frechet_distance(*moments)),
    )
    bench.ratio("torch-fidelity", ours, fidelity)
    bench.ratio("clean-fid", ours, clean)


def subgroups(bench: Bench, x: np.ndarray, y: np.ndarray, groups: int, size: int) -> None:
    """Clean-fid's time for all groups is extrapolated from two: it doesn't depend on the rows."""
    rng = np.random.default_rng(0)
    rows = [rng.choice(len(x), size, replace=False) for _ in range(groups)]
    mean, covariance = y.mean(axis=0, dtype=np.float64), np.cov(y, rowvar=False)
    reference = FrechetMoments.of(y)

    def theirs(chosen: np.ndarray) -> float:
        z = x[chosen].astype(np.float64)
        moments = z.mean(axis=0), np.cov(z, rowvar=False)
        return float(quiet(lambda: clean_fid.frechet_distance(*moments, mean, covariance)))

    print(f"\n{groups} groups of {size} against one reference")
    # clean-fid's root of a singular product is rough, or has 1e-6 added to its diagonal.
    bench.check("first group", reference.distance(x[rows[0]]), theirs(rows[0]), 1e-2)
    (ours,) = bench.seconds(lambda: [reference.distance(x[chosen]) for chosen in rows])
    (pair,) = bench.seconds(lambda: [theirs(chosen) for chosen in rows[:2]])
    bench.ratio(f"clean-fid, {groups}/2 x the time of 2 calls", ours, pair * groups / 2)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=10_000, help="rows of either set")
    parser.add_argument("--dim", type=int, default=2048, help="length of a feature")
    parser.add_argument("--groups", type=int, default=50, help="subgroups")
    parser.add_argument("--group-size", type=int, default=500, help="rows of a subgroup")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each call; median")
    parser.add_argument("--only", choices=["set", "cached", "subgroups"], help="one part")
    options = parser.parse_args()
    bench = Bench(options.repeats)
    x, y = (features(options.num, options.dim, seed) for seed in (1, 2))
    print(f"{options.num} x {options.dim} float32, torch threads {torch.get_num_threads()}")
    if options.only in (None, "set"):
        whole_set(bench, x, y)
    if options.only in (None, "cached"):
        cached(bench, x, y)
    if options.only in (None, "subgroups"):
        subgroups(bench, x, y, options.groups, min(options.group_size, options.num))
    return 0 if bench.agree else 1


if __name__ == "__main__":
    sys.exit(main())
