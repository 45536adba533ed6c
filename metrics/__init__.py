"""Metrics: pure functions of arrays, NumPy and SciPy only, no torch at import."""

from __future__ import annotations

from fairbench.metrics.by_group import (
    GroupTable,
    by_group_table,
)
from fairbench.metrics.clusters import (
    ClusteredDiscrepancy,
    cluster_counts,
    clustered_discrepancy,
    design_effect,
)
from fairbench.metrics.correction import (
    CorrectedDiscrepancy,
    CorrectedShares,
    correct_shares,
    corrected_discrepancy,
    corrected_noise_floor,
)
from fairbench.metrics.counting import (
    count_groups,
    share_intervals,
    shares,
    soft_shares,
    wilson_interval,
)
from fairbench.metrics.differential import (
    DifferentialFairness,
    LogRatio,
    differential_fairness,
    representation_epsilon,
)
from fairbench.metrics.discrepancies import (
    DiscrepancyFamily,
    discrepancy_family,
    family_intervals,
    family_noise_floors,
)
from fairbench.metrics.fairness import (
    DiscrepancyInterval,
    discrepancy_interval,
    discrepancy_of_shares,
    fairness_discrepancy,
    mean_discrepancy_interval,
    soft_discrepancy_interval,
    unbiased_squared_discrepancy,
    worst_distance,
)
from fairbench.metrics.floors import (
    mean_noise_floor,
    noise_floor,
    noise_floor_for,
)
from fairbench.metrics.information import (
    MutualInformation,
    TotalCorrelation,
    cramers_v,
    entropy,
    mutual_information,
    total_correlation,
)
from fairbench.metrics.intersectional import (
    Marginal,
    RepresentationRatios,
    SubgroupCoverage,
    SubgroupLattice,
    joint_counts,
    representation_ratios,
    subgroup_coverage,
    subgroup_lattice,
)
from fairbench.metrics.prompts import (
    PromptDiscrepancies,
    prompt_discrepancies,
    signed_root,
)
from fairbench.metrics.quality import (
    FrechetInterval,
    KernelDistance,
    frechet_distance,
    frechet_from_moments,
    frechet_interval,
    kernel_distance,
)
from fairbench.metrics.rosetta import ROSETTA, PublishedMeasure
from fairbench.metrics.significance import (
    GoodnessOfFit,
    McNemar,
    PairedDifference,
    QuotaCheck,
    detect_quota,
    goodness_of_fit,
    holm,
    mcnemar,
    paired_difference,
)
from fairbench.metrics.validity import (
    Validity,
    WorstCase,
    check_calibration,
    penalised_discrepancy,
    validity_rate,
    worst_case_bounds,
)

__all__ = [
    "ROSETTA",
    "ClusteredDiscrepancy",
    "CorrectedDiscrepancy",
    "CorrectedShares",
    "DifferentialFairness",
    "DiscrepancyFamily",
    "DiscrepancyInterval",
    "FrechetInterval",
    "GoodnessOfFit",
    "GroupTable",
    "KernelDistance",
    "LogRatio",
    "Marginal",
    "McNemar",
    "MutualInformation",
    "PairedDifference",
    "PromptDiscrepancies",
    "PublishedMeasure",
    "QuotaCheck",
    "RepresentationRatios",
    "SubgroupCoverage",
    "SubgroupLattice",
    "TotalCorrelation",
    "Validity",
    "WorstCase",
    "by_group_table",
    "check_calibration",
    "cluster_counts",
    "clustered_discrepancy",
    "correct_shares",
    "corrected_discrepancy",
    "corrected_noise_floor",
    "count_groups",
    "cramers_v",
    "design_effect",
    "detect_quota",
    "differential_fairness",
    "discrepancy_family",
    "discrepancy_interval",
    "discrepancy_of_shares",
    "entropy",
    "fairness_discrepancy",
    "family_intervals",
    "family_noise_floors",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_interval",
    "goodness_of_fit",
    "holm",
    "joint_counts",
    "kernel_distance",
    "mcnemar",
    "mean_discrepancy_interval",
    "mean_noise_floor",
    "mutual_information",
    "noise_floor",
    "noise_floor_for",
    "paired_difference",
    "penalised_discrepancy",
    "prompt_discrepancies",
    "representation_epsilon",
    "representation_ratios",
    "share_intervals",
    "shares",
    "signed_root",
    "soft_discrepancy_interval",
    "soft_shares",
    "subgroup_coverage",
    "subgroup_lattice",
    "total_correlation",
    "unbiased_squared_discrepancy",
    "validity_rate",
    "wilson_interval",
    "worst_case_bounds",
    "worst_distance",
]
