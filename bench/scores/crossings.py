"""Earlier place of :mod:`fairbench.scores.parts.crossings`."""

from fairbench.scores.parts.crossings import Reading, Sample, crossing, crossing_groups, crossings

__all__ = ["Reading", "Sample", "crossing", "crossing_groups", "crossings"]
