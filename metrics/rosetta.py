"""Whose published bias is which member of the discrepancy family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fairbench.metrics.discrepancies import Member

__all__ = ["ROSETTA", "PublishedMeasure"]


@dataclass(frozen=True)
class PublishedMeasure:
    """What a paper or its code calls its bias, in terms of this family.

    Attributes:
        source: Paper or project, with its arXiv id where it has one.
        published_name: What the source calls it.
        member: The member that is its number; None if none is.
        labels: `"hard"` decisions, `"soft"` probabilities.
        aggregation: Over what the source pools or averages.
        evidence: `"code"`: the source's code was read; `"paper"`: as the paper says it;
            `"unverified"`: the accounts of it disagree.
        note: What else a reader must know to compare the numbers.
    """

    source: str
    published_name: str
    member: Member | None
    labels: Literal["hard", "soft"]
    aggregation: str
    evidence: Literal["code", "paper", "unverified"]
    note: str = ""


ROSETTA: tuple[PublishedMeasure, ...] = (
    PublishedMeasure(
        "Choi et al. 2020, arXiv 1910.12008",
        "fairness discrepancy",
        "l2",
        "hard",
        "10 sets of 10,000 images",
        "code",
        "also prints l1 and kl; its code takes shares over the classes seen only",
    ),
    PublishedMeasure(
        "Teo et al. 2023, CLEAM",
        "fairness discrepancy",
        "l2",
        "hard",
        "batches",
        "code",
        "after correction for classifier error, K = 2",
    ),
    PublishedMeasure(
        "Balancing Act, arXiv 2402.18206",
        "fairness discrepancy",
        "l2",
        "soft",
        "pooled, or by prompt for text-to-image",
        "paper",
    ),
    PublishedMeasure(
        "FairGen, arXiv 2412.18810",
        "fairness discrepancy",
        "l2",
        "soft",
        "mean over prompts",
        "code",
        "its CLIP variant leaves out the logit scale",
    ),
    PublishedMeasure(
        "TIW-DSM, arXiv 2403.01189",
        "Bias",
        "l1",
        "soft",
        "50,000 images",
        "unverified",
        "one account says l1, another l2",
    ),
    PublishedMeasure(
        "InvDiff, arXiv 2412.08480", "bias score", "pairwise", "hard", "mean over prompts", "code"
    ),
    PublishedMeasure(
        "Shen et al. 2024, fine-tuning for fairness",
        "bias",
        "pairwise",
        "hard",
        "mean over prompts",
        "code",
        "images with a face only",
    ),
    PublishedMeasure(
        "DebiasDiffusion",
        "fairness discrepancy",
        "squared",
        "soft",
        "pooled over prompts",
        "code",
        "age against (.75, .25)",
    ),
    PublishedMeasure(
        "SelfDebias",
        "fairness discrepancy",
        "l2",
        "soft",
        "folder",
        "code",
        "CLIP cosines over 0.07; also prints delta",
    ),
    PublishedMeasure(
        "InterpretDiffusion, VersusDebias",
        "deviation ratio",
        "delta",
        "hard",
        "mean over professions",
        "code",
    ),
    PublishedMeasure("ITI-GEN", "KL divergence", "kl", "hard", "attribute", "code"),
    PublishedMeasure("HEIM", "gender bias", "mad", "hard", "by prompt", "code", "K = 2"),
    PublishedMeasure("DALL-Eval", "MAD", "mad", "hard", "mean over prompts", "code"),
    PublishedMeasure(
        "OpenBias",
        "bias severity",
        "entropy_gap",
        "hard",
        "by prompt and pooled",
        "code",
        "shares are smoothed first",
    ),
    PublishedMeasure(
        "FAIntbench, BIGbench",
        "bias score",
        None,
        "hard",
        "weighted over attributes",
        "code",
        "a cosine to demographic shares; an answer without common classes scores as perfect",
    ),
)
