"""Features to scores: distances to three references, neighbours, diversity, parity of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError
from fairbench.core.score import Score
from fairbench.metrics import (
    FrechetMoments,
    GroupQuality,
    KernelDistance,
    Parity,
    frechet_infinity,
    frechet_interval,
    gaussian_kernel_distance,
    group_quality,
    inception_score,
    kernel_distance,
    memorisation,
    precision_recall_density_coverage,
    reference_weights,
    stratified_kernel_distance,
    vendi_score,
)
from fairbench.metrics.jackknife import jackknife_variance, student
from fairbench.scores.crossings import Reading, crossing, crossing_groups
from fairbench.scores.plain import auc_score, mean_score, share_score

__all__ = ["Columns", "QualityScores", "Reference", "diversity_score"]

KERNEL_SUBSET = 500
KID_SUBSET = 1000
NEIGHBOURS = 5
NEIGHBOUR_SCORES = ("precision", "recall", "density", "coverage")
DIVERSITY_BLOCKS = 20
STUDENT_9 = 2.262  # 9 degrees of freedom
NORMAL = 1.96
FALSE_MATCHES = 1e-2
"""Share of unseen real images that may pass for copies."""

INFINITY_N = 5000
"""Images that extrapolating a distance to infinitely many needs."""

GROUP_N = 30
"""Images of each group behind its Fréchet distance and neighbours: the same for every method."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images to compare with: they match the task's prompts, balanced over the groups.

    Attributes:
        features: Encoder -> (M, D).
        labels: Attribute -> (M,) true levels.
        prompt_index: (M,) the prompt that each image would answer.
        balanced: Rows in which every declared group is equally often; None: not looked for, then
            all images count as balanced.
        unbalanced: Why no rows are balanced; empty if some are.
        natural: (P, K) shares of the sensitive crossing for each prompt in the data that the
            backbone was trained on, rows sum to 1; None if nobody knows them.
    """

    features: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.integer[Any]]]
    prompt_index: NDArray[np.int64]
    natural: NDArray[np.float64] | None
    balanced: NDArray[np.int64] | None = None
    unbalanced: str = ""


@dataclass(frozen=True)
class Columns:
    """How the columns of one encoder are called.

    Attributes:
        encoder: In columns such as ``precision_<encoder>``.
        frechet: Its Fréchet distance, such as ``"fid"``.
        kernel: Its kernel distance, such as ``"kid"``.
    """

    encoder: str
    frechet: str
    kernel: str


class QualityScores:
    """Everything that is said about how good the images are, in one run.

    Args:
        reading: The sample as the primary judge reads it.
        sensitive: Attributes whose crossing makes the groups.
        reference: Real images.
        encoders: Encoder -> how its columns are called.
        seed: Of every draw.
    """

    def __init__(
        self,
        reading: Reading,
        sensitive: Sequence[str],
        reference: Reference,
        encoders: Mapping[str, Columns],
        seed: int = 0,
    ) -> None:
        self.reading, self.sensitive, self.reference = reading, tuple(sensitive), reference
        self.encoders, self.seed = encoders, seed
        self.details: dict[str, Any] = {}
        self.not_measured: dict[str, str] = {}
        self.groups = crossing_groups(self.sensitive, reading.levels)
        self.real = crossing(reference.labels, self.sensitive, reading.levels)

    def scores(self) -> list[Score]:
        """Distances and neighbours, of all images; parity, of valid ones."""
        scores = []
        for encoder, columns in self.encoders.items():
            x, y = self.features(encoder)
            even = self.balanced(encoder)
            if even is None:
                self._refuse_balanced(columns)
            else:
                scores += self._balanced(encoder, columns, x, even)
            for name, strata, shares in self._mixtures():
                scores += self._mixture(name, columns, (x, y), strata, shares)
            if even is not None:
                scores += self._neighbours(encoder, columns, x, even)
                scores += self._diversity(encoder, columns, x, even)
                scores += self._at_infinity(encoder, columns, x, even)
        return [*scores, *self._classes(), *self._texts()]

    def features(self, encoder: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Generated and real features."""
        return self.reading.sample.measured.features[encoder], self.reference.features[encoder]

    def balanced(self, encoder: str) -> NDArray[np.float32] | None:
        """Real features in which every declared group is equally often; None if there are none."""
        if self.reference.unbalanced:
            return None
        rows, features = self.reference.balanced, self.reference.features[encoder]
        return features if rows is None else features[rows]

    def _refuse_balanced(self, columns: Columns) -> None:
        """Say of every column against a balanced reference why it isn't measured."""
        names = [f"{columns.frechet}_balanced", f"{columns.kernel}_balanced"]
        names += [f"{columns.frechet}_infinity_balanced", f"vendi_{columns.encoder}"]
        names += [f"{name}_{columns.encoder}" for name in NEIGHBOUR_SCORES]
        self.not_measured |= dict.fromkeys(names, self.reference.unbalanced)

    def _balanced(
        self,
        encoder: str,
        columns: Columns,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
    ) -> list[Score]:
        source = f"encoder {encoder}, {len(y)} balanced real images"
        found = frechet_interval(x, y, seed=self.seed)
        published = KID_SUBSET if columns.kernel.startswith("kid") else KERNEL_SUBSET
        size = min(published, len(x), len(y))
        distance = kernel_distance(x, y, subset_size=size, seed=self.seed)
        return [
            _distance(
                f"{columns.frechet}_balanced",
                (found.value, found.low, found.high),
                len(x),
                source,
            ),
            _kernel(
                f"{columns.kernel}_balanced",
                distance,
                len(x),
                f"{source}, 100 subsets of {size}",
            ),
        ]

    def _mixtures(self) -> list[tuple[str, NDArray[np.int64], NDArray[np.float64]]]:
        """References of other proportions: name, cell of each real image, share of each cell.

        Cells are prompt × group. Prompts keep the shares that the sample has.
        """
        cells = len(self.groups)
        strata = self.reference.prompt_index * cells + self.real
        prompts = self.reading.sample.prompt_index
        mix = np.bincount(prompts, minlength=len(self.reading.task.prompts)) / len(prompts)
        mixtures = []
        if self.reference.natural is not None:
            natural = (mix[:, None] * self.reference.natural).ravel()
            mixtures.append(("natural", strata, natural))
        if self.reading.n:
            counts = self.reading.counts_by_prompt(self.sensitive).astype(np.float64)
            sizes = counts.sum(axis=1, keepdims=True)
            if (sizes > 0).all():
                own = (mix[:, None] * counts / sizes).ravel()
                mixtures.append(("reweighted", strata, own))
            else:
                self.not_measured["reweighted"] = "a prompt has no valid image"
        return mixtures

    def _mixture(
        self,
        name: str,
        columns: Columns,
        features: tuple[NDArray[np.float32], NDArray[np.float32]],
        strata: NDArray[np.int64],
        shares: NDArray[np.float64],
    ) -> list[Score]:
        x, y = features
        whose = "training" if name == "natural" else "measured"
        scores = []
        try:
            weights = reference_weights(strata, shares)
            source = (
                f"{len(y)} real images weighted to the {whose} shares, worth "
                f"{weights.effective_n:.0f}"
            )
            distance = stratified_kernel_distance(x, y, strata, shares, seed=self.seed)
            scores.append(_kernel(f"{columns.kernel}_{name}", distance, len(x), source))
            moments = FrechetMoments.of(y, weights.weights)
            found = frechet_interval(x, moments, seed=self.seed)
            ends = (found.value, found.low, found.high)
            scores.append(_distance(f"{columns.frechet}_{name}", ends, len(x), source))
        except ContractError as error:
            self.not_measured[f"{columns.frechet}_{name}"] = str(error)
        return scores

    def _neighbours(
        self,
        encoder: str,
        columns: Columns,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
    ) -> list[Score]:
        """Precision, recall, density and coverage at equal n of both sides."""
        n = min(len(x), len(y))
        if n <= NEIGHBOURS:
            reason = f"{n} images; more than {NEIGHBOURS} needed"
            self.not_measured[f"precision_{columns.encoder}"] = reason
            return []
        mine, real = _equally_many(x, y, np.random.default_rng(self.seed))
        found = precision_recall_density_coverage(mine, real, k=NEIGHBOURS)
        source = f"encoder {encoder}, {n} balanced real images, {NEIGHBOURS} neighbours"
        self.details[f"expected_coverage_{columns.encoder}"] = found.expected_coverage
        scores = [
            share_score(
                f"{name}_{columns.encoder}",
                round(getattr(found, name) * n),
                n,
                "higher",
                source,
            )
            for name in ("precision", "recall", "coverage")
        ]
        half = NORMAL * found.density_error
        ends = (found.density, max(0.0, found.density - half), found.density + half)
        return [
            *scores,
            Score(
                name=f"density_{columns.encoder}",
                value=ends[0],
                low=ends[1],
                high=ends[2],
                n=n,
                better="higher",
                interval="normal",
                source=source,
            ),
        ]

    def _diversity(
        self,
        encoder: str,
        columns: Columns,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
    ) -> list[Score]:
        """Effective number of different images, in units of as many real ones."""
        n = min(len(x), len(y))
        if n < 2 * DIVERSITY_BLOCKS:
            reason = f"{n} images, {2 * DIVERSITY_BLOCKS} needed"
            self.not_measured[f"vendi_{columns.encoder}"] = reason
            return []
        source = f"encoder {encoder}, in units of {n} balanced real images"
        return [diversity_score(f"vendi_{columns.encoder}", x, y, source, seed=self.seed)]

    def _at_infinity(
        self,
        encoder: str,
        columns: Columns,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
    ) -> list[Score]:
        """The balanced distance without the bias of a finite sample, where n allows it."""
        name = f"{columns.frechet}_infinity_balanced"
        try:
            found = frechet_infinity(x, y, seed=self.seed)
        except ContractError as error:
            few = len(x) < INFINITY_N
            self.not_measured[name] = "not measurable at this n" if few else str(error)
            return []
        self.details[name] = {"r_squared": found.r_squared, "slope": found.slope}
        half = NORMAL * found.standard_error
        source = f"encoder {encoder}, {len(y)} balanced real images, extrapolated to infinite n"
        ends = (found.value, found.value - half, found.value + half)
        score = _distance(name, ends, len(x), source)
        return [replace(score, interval="of the fitted line")]

    def _classes(self) -> list[Score]:
        """Inception score of encoders that classify; unranked: faces are no class of theirs."""
        scores = []
        for encoder, logits in self.reading.sample.measured.logits.items():
            splits = min(10, len(logits))
            found = inception_score(logits, splits=splits, seed=2020)
            half = STUDENT_9 * found.std / np.sqrt(splits)
            scores.append(
                Score(
                    name="inception_score" if encoder.endswith("clean") else "inception_score_tf",
                    value=found.mean,
                    low=max(1.0, found.mean - half),
                    high=found.mean + half,
                    n=len(logits),
                    better="higher",
                    interval=f"t over {splits} splits",
                    source=f"encoder {encoder}",
                )
            )
        return scores

    def _texts(self) -> list[Score]:
        """Of encoders that read texts: distance by their own kernel, and fit to the prompt."""
        scores = []
        alignment = self.reading.sample.measured.alignment
        for encoder, columns in self.encoders.items():
            if not encoder.startswith("clip-"):
                continue
            x, y = self.features(encoder)[0], self.balanced(encoder)
            if y is None:
                self.not_measured[f"cmmd_{columns.encoder}_balanced"] = self.reference.unbalanced
                continue
            source = f"encoder {encoder}, {len(y)} balanced real images"
            distance = gaussian_kernel_distance(x, y, seed=self.seed)
            scores.append(_kernel(f"cmmd_{columns.encoder}_balanced", distance, len(x), source))
            if encoder not in alignment:
                reason = "nobody says which prompts the images were made from"
                self.not_measured[f"clip_score_{columns.encoder}"] = reason
                continue
            scores.append(
                mean_score(
                    f"clip_score_{columns.encoder}",
                    alignment[encoder],
                    "higher",
                    f"encoder {encoder}: 100 × cosine to the user's own prompt",
                )
            )
        return scores

    def parity(self) -> tuple[list[Score], dict[str, GroupQuality]]:
        """Quality of the groups of the sensitive crossing side by side, of valid images.

        Returns:
            Scores of the worst group and the gap, and the whole by encoder.
        """
        scores: list[Score] = []
        found: dict[str, GroupQuality] = {}
        reading = self.reading
        if reading.n < 2:
            self.not_measured["*_worst_group"] = f"{reading.n} valid image"
            return scores, found
        cells = reading.index(self.sensitive)[reading.valid]
        for encoder, columns in self.encoders.items():
            x, y = self.features(encoder)
            quality = group_quality(
                x[reading.valid],
                cells,
                y,
                self.real,
                len(self.groups),
                k=NEIGHBOURS,
                common_n=GROUP_N,
                minimum=GROUP_N,
                seed=self.seed,
            )
            found[encoder] = quality
            source = f"encoder {encoder}, {' × '.join(self.sensitive)}, valid images"
            for name, parity in (
                (columns.kernel, quality.kernel),
                (columns.frechet, quality.frechet),
                (f"recall_{columns.encoder}", quality.recall),
            ):
                scores += self._worst(name, parity, quality, source)
        return scores, found

    def copying(self, seen: Mapping[str, NDArray[np.float32]]) -> list[Score]:
        """Whether valid images lie nearer to images learned from than unseen real ones do.

        Compared within each group of the sensitive crossing: where few images were learned from,
        the nearest one is far, whoever drew the image.

        Args:
            seen: Encoder -> (T, D) features of the images that the method learned from.

        Returns:
            By encoder the chance of being nearer, in [0, 1], and the share of images nearer than
            99 % of the real ones; both lower is better. Why they are missing is in
            `not_measured`.
        """
        reading, scores = self.reading, []
        cells = reading.index(self.sensitive)[reading.valid]
        counts = np.bincount(self.real, minlength=len(self.groups))
        missing = [name for k, name in enumerate(self.groups) if not counts[k] and k in cells]
        for encoder, columns in self.encoders.items():
            name = f"memorisation_{columns.encoder}"
            if missing or not len(cells):
                named = f"no real image of {', '.join(missing)}" if missing else "no valid image"
                self.not_measured[name] = named
                continue
            x, y = self.features(encoder)
            found = memorisation(
                x[reading.valid],
                seen[encoder],
                y,
                groups=(cells, self.real, len(self.groups)),
                false_matches=FALSE_MATCHES,
            )
            source = (
                f"encoder {encoder}, cosine to the nearest of {len(seen[encoder])} images learned "
                f"from, against {len(y)} unseen real images of the same group"
            )
            told = f"{source}: chance of being nearer, 0.5 without copies"
            beyond = f"{source}: nearest beyond {found.threshold:.3f}, as {FALSE_MATCHES:.1%} of "
            scores += [
                auc_score(name, found.auc, found.auc_error, reading.n, "normal, DeLong", told),
                share_score(
                    f"copies_{columns.encoder}",
                    round(found.copies * reading.n),
                    reading.n,
                    "lower",
                    f"{beyond}the real ones are",
                ),
            ]
        return scores

    def _worst(self, name: str, parity: Parity, quality: GroupQuality, source: str) -> list[Score]:
        if parity.worst is None or parity.gap is None:
            self.not_measured[f"{name}_worst_group"] = self._named(parity.reason)
            return []
        at = parity.by_cell.index(parity.worst)
        cell = quality.cells[at]
        low, high = None, None
        if cell.kernel is not None and cell.kernel.value == parity.worst:
            low, high = cell.kernel.low, cell.kernel.high
        n = cell.n_generated if low is not None else GROUP_N
        interval = "jackknife, of the group that came out worst" if low is not None else ""
        if low is None:
            source += f", {GROUP_N} of each group and as many real ones, mean of draws"
        return [
            Score(
                name=f"{name}_worst_group",
                value=parity.worst,
                low=low,
                high=high,
                n=n,
                better=parity.better,
                interval=interval,
                source=f"{source}: {self.groups[at]}",
            ),
            Score(
                name=f"{name}_group_gap",
                value=parity.gap,
                low=None,
                high=None,
                n=n,
                better="lower",
                source=f"{source}: largest less smallest",
            ),
        ]

    def _named(self, reason: str) -> str:
        """A reason with the names of groups instead of "cell 3"."""
        for cell in reversed(range(len(self.groups))):
            reason = reason.replace(f"cell {cell} ", f"{self.groups[cell]} ")
        return reason


def _equally_many(
    x: NDArray[np.float32], y: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """As many rows of either, drawn without replacement, in their order."""
    n = min(len(x), len(y))
    mine, real = (side[np.sort(rng.choice(len(side), n, replace=False))] for side in (x, y))
    return mine, real


def diversity_score(
    name: str, x: NDArray[np.float32], y: NDArray[np.float32], source: str, *, seed: int
) -> Score:
    """Effective number of different rows of x, in units of as many rows of y.

    Args:
        name: Of the score.
        x: (N, D) generated embeddings, N >= 4.
        y: (M, D) real ones, M >= 4.
        source: What they are.
        seed: Of the draw and of the jackknife's blocks, 20 or as many as n allows.
    """
    rng = np.random.default_rng(seed)
    mine, real = _equally_many(x, y, rng)
    value, unit, n = vendi_score(mine), vendi_score(real), len(mine)
    parts = np.array_split(rng.permutation(n), min(DIVERSITY_BLOCKS, n // 2))
    left = np.array([vendi_score(np.delete(mine, part, axis=0)) for part in parts])
    quantile = round(student(0.95, len(parts) - 1), 3)
    half = quantile * float(np.sqrt(jackknife_variance(left)))
    return Score(
        name=name,
        value=value / unit,
        low=max(0.0, value - half) / unit,
        high=(value + half) / unit,
        n=n,
        better="higher",
        interval=f"jackknife, {len(parts)} blocks",
        source=source,
    )


def _distance(name: str, ends: tuple[float, float, float], n: int, source: str) -> Score:
    value, low, high = ends
    return Score(
        name=name,
        value=value,
        low=low,
        high=high,
        n=n,
        better="lower",
        interval="jackknife, 20 blocks",
        source=source,
    )


def _kernel(name: str, found: KernelDistance, n: int, source: str) -> Score:
    return _distance(name, (found.value, found.low, found.high), n, source)
