"""Metrics: pure functions of arrays, NumPy and SciPy only, no torch at import."""

from __future__ import annotations

from fairbench.metrics.diversity import (
    Memorisation,
    duplicate_rate,
    mean_pairwise_cosine,
    memorisation,
    vendi_score,
)
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
from fairbench.metrics.frechet import (
    FrechetInfinity,
    FrechetInterval,
    FrechetMoments,
    frechet_distance,
    frechet_from_moments,
    frechet_infinity,
    frechet_interval,
)
from fairbench.metrics.inception import (
    InceptionScore,
    inception_score,
)
from fairbench.metrics.kernel import (
    KernelDistance,
    gaussian_kernel_distance,
    kernel_distance,
)
from fairbench.metrics.neighbours import (
    NeighbourScores,
    expected_coverage,
    precision_recall_density_coverage,
)
from fairbench.metrics.references import (
    BalancedSubset,
    CellQuality,
    GroupQuality,
    Parity,
    ReferenceWeights,
    balanced_subset,
    group_quality,
    reference_weights,
)

__all__ = [
    "BalancedSubset",
    "CellQuality",
    "DiscrepancyInterval",
    "FrechetInfinity",
    "FrechetInterval",
    "FrechetMoments",
    "GroupQuality",
    "InceptionScore",
    "KernelDistance",
    "Memorisation",
    "NeighbourScores",
    "Parity",
    "ReferenceWeights",
    "balanced_subset",
    "count_groups",
    "discrepancy_interval",
    "discrepancy_of_shares",
    "duplicate_rate",
    "expected_coverage",
    "fairness_discrepancy",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_infinity",
    "frechet_interval",
    "gaussian_kernel_distance",
    "group_quality",
    "inception_score",
    "kernel_distance",
    "mean_discrepancy_interval",
    "mean_noise_floor",
    "mean_pairwise_cosine",
    "memorisation",
    "noise_floor",
    "noise_floor_for",
    "precision_recall_density_coverage",
    "reference_weights",
    "shares",
    "vendi_score",
    "wilson_interval",
]
