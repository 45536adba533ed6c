"""Everything that one run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fairbench.core.score import Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SCHEMA", "PerImage", "Record", "Status"]

SCHEMA = 2


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
        manifest: Rows (prompt index, image index, sha256 of the raw RGB bytes), in image order, of
            a record of schema 1; empty in newer ones, whose sidecar holds them.
        created: UTC time of writing, ISO 8601.
        sidecar: SHA-256 of ``<key>.images.npz`` beside the record, which holds what is known of
            each image; None where there is none.
        rescored: When scores were brought up to date last, by which code, and which of them, with
            what that rested on; None if they are those of `created`.
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
    sidecar: str | None = None
    rescored: Mapping[str, Any] | None = None

    def score(self, name: str) -> Score | None:
        """The score of that name, or None if the run didn't measure it."""
        return next((score for score in self.scores if score.name == name), None)


@dataclass(frozen=True, eq=False)
class PerImage:
    """What is known of each of N images of a record.

    Attributes:
        sha256: N hex digests of the raw RGB bytes.
        prompt_index: (N,) index into the task's prompts.
        image_index: (N,) number among the images of its prompt.
        requested: (N,) index of the group that was asked for; None if none was.
        batch_id: (N,) equal for images that depend on each other.
        valid: (N,) bool, whether the validity check accepts it; all true without a check.
        labels: Judge -> attribute -> (N,) likeliest level.
    """

    sha256: tuple[str, ...]
    prompt_index: NDArray[np.int64]
    image_index: NDArray[np.int64]
    requested: NDArray[np.int64] | None
    batch_id: NDArray[np.int64]
    valid: NDArray[np.bool_]
    labels: Mapping[str, Mapping[str, NDArray[np.int64]]]

    def __len__(self) -> int:
        return len(self.sha256)

    @property
    def manifest(self) -> tuple[tuple[int, int, str], ...]:
        """Rows (prompt index, image index, sha256), in image order."""
        rows = zip(self.prompt_index.tolist(), self.image_index.tolist(), self.sha256, strict=True)
        return tuple(rows)
