"""What is known of distances to real images, whose columns are called after encoders."""

from __future__ import annotations

from dataclasses import replace

from fairbench.core.score import ScoreSpec

__all__ = ["BALANCED", "distance_specs"]

BALANCED = "real images of each group"
_INCEPTION = "with --encoder inception@clean or inception@tf, as in its paper: "
_STEMS = (("frechet_*", "frechet_<encoder>"), ("fid*", "fid[_tf]"))
_KERNELS = (("kernel_*", "kernel_<encoder>"), ("kid*", "kid[_tf]"))


def distance_specs(kind: str, spec: ScoreSpec) -> tuple[ScoreSpec, ...]:
    """One spec for each way in which such a column is called.

    ``fid`` and ``kid`` are Inception's distances, which the readable leaderboards leave out.

    Args:
        kind: ``"frechet"`` or ``"kernel"``; the latter, of the order of 0.001, is shown ×1000.
        spec: Of the column, its pattern being what follows the encoder, such as ``"balanced"``.
    """
    kernel = kind == "kernel"
    stems = _KERNELS if kernel else _STEMS
    return tuple(
        replace(
            spec,
            pattern=f"{stem}_{spec.pattern}",
            display=f"{shown}_{spec.pattern}",
            meaning=spec.meaning if stem.endswith("_*") else f"{_INCEPTION}{spec.meaning}",
            scale=1000.0 if kernel else 1.0,
            main=spec.main if stem.endswith("_*") else None,
            compact=spec.compact and stem.endswith("_*"),
        )
        for stem, shown in stems
    )
