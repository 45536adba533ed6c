"""Everything that one run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fairbench.core.score import Score

__all__ = ["SCHEMA", "Record", "Status"]

SCHEMA = 1


Status = Literal["complete", "failed", "interrupted"]


@dataclass(frozen=True)
class Record:
    """Everything that one run leaves behind, as plain JSON values.

    Attributes:
        schema: Version of this layout.
        key: Hex run key; also the file's name.
        generation_key: Key of the images; None where they weren't generated here.
        status: Only ``"complete"`` records count as found and enter a leaderboard.
        error: One line about what went wrong, or None.
        method, dataset, task: Names on the command line.
        config: Everything that the run key hashes over.
        card: The method's card.
        environment: Versions, device and code that made the record.
        seconds: Stage -> seconds it took.
        peak_memory_mib: Highest memory use, MiB.
        extra_parameters: Parameters the method adds to the backbone.
        network_calls_per_image: Mean denoiser evaluations an image, guidance branches apart.
        scores: The numbers, in the order they were measured.
        groups: Table name (``"gender"``, ``"gender|tennis player"``) -> rows with group, count,
            n, share, low, high and target.
        facts: Values only this method has, such as a hit matrix.
        manifest: Rows (prompt index, image index, sha256 of the raw RGB bytes), in image order.
        created: UTC time of writing, ISO 8601.
    """

    schema: int
    key: str
    generation_key: str | None
    status: Status
    error: str | None
    method: str
    dataset: str
    task: str
    config: Mapping[str, Any]
    card: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: Mapping[str, float]
    peak_memory_mib: float
    extra_parameters: int
    network_calls_per_image: float
    scores: tuple[Score, ...]
    groups: Mapping[str, list[dict[str, Any]]]
    facts: Mapping[str, Any]
    manifest: tuple[tuple[int, int, str], ...]
    created: str

    def score(self, name: str) -> Score | None:
        """The score of that name, or None if the run didn't measure it."""
        return next((score for score in self.scores if score.name == name), None)
