"""Metrics: pure functions of arrays, NumPy and SciPy only, no torch at import."""

from __future__ import annotations

from fairbench.metrics.fairness import (
    DiscrepancyInterval,
    count_groups,
    discrepancy_interval,
    discrepancy_of_shares,
    fairness_discrepancy,
    mean_discrepancy_interval,
    mean_noise_floor,
    noise_floor,
    noise_floor_for,
    shares,
    wilson_interval,
)
from fairbench.metrics.quality import (
    FrechetInterval,
    KernelDistance,
    frechet_distance,
    frechet_from_moments,
    frechet_interval,
    kernel_distance,
)

__all__ = [
    "DiscrepancyInterval",
    "FrechetInterval",
    "KernelDistance",
    "count_groups",
    "discrepancy_interval",
    "discrepancy_of_shares",
    "fairness_discrepancy",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_interval",
    "kernel_distance",
    "mean_discrepancy_interval",
    "mean_noise_floor",
    "noise_floor",
    "noise_floor_for",
    "shares",
    "wilson_interval",
]
