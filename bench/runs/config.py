"""What a run is asked to do, checked before anything expensive starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import SamplingConfig
from fairbench.storage.objects import is_address

__all__ = [
    "MAXIMUM_IMAGES",
    "MINIMUM_IMAGES",
    "RunConfig",
    "check_batch",
    "check_count",
    "check_seed",
]

MINIMUM_IMAGES = 100
"""Below this a share's 95 % interval is wider than ±10 points."""

MAXIMUM_IMAGES = 1_000_000
"""Twenty times the largest tier of published evaluations; more is a slip of the keyboard."""

LARGEST_SEED = 2**32 - 1
LARGEST_BATCH = 4096
LARGEST_GUIDANCE = 1000.0


def check_count(images: int) -> None:
    """Refuse a number of images that means nothing, or that nothing can hold.

    Raises:
        InputError: With the smallest or the largest sensible one.
    """
    if images < MINIMUM_IMAGES:
        raise InputError(
            f"--num-images must be at least {MINIMUM_IMAGES}; seen {images}: with fewer, a "
            "share's interval is wider than ±10 points"
        )
    if images > MAXIMUM_IMAGES:
        raise InputError(f"--num-images must be at most {MAXIMUM_IMAGES}; seen {images}")


def check_seed(seed: int) -> None:
    """Refuse a seed that records can't hold.

    Raises:
        InputError: If it is negative or too large.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"--seed must lie in 0…{LARGEST_SEED}; seen {seed}")


def check_batch(option: str, rows: int | None) -> None:
    """Refuse a number of rows that is none, or that no device holds.

    Raises:
        InputError: With the largest sensible one.
    """
    if rows is not None and not 1 <= rows <= LARGEST_BATCH:
        raise InputError(f"--{option} must lie in 1…{LARGEST_BATCH}; seen {rows}")


def _place(results: Path | str) -> Path | str:
    """A path, or an address as it was given.

    Raises:
        InputError: For an address that was made a path, which loses a slash.
    """
    if isinstance(results, str) and is_address(results):
        return results
    if not isinstance(results, str | Path) or not str(results):
        raise InputError(f"results must be a folder or an address; seen {results!r}")
    path = Path(results)
    scheme = path.parts[0] if len(path.parts) > 1 else ""
    if len(scheme) > 2 and scheme.endswith(":") and not Path(scheme).exists():
        rest = "/".join(path.parts[1:])
        raise InputError(
            f"{path}: no folder {scheme}; give an address as a text, not as a path: "
            f'"{scheme}//{rest}"'
        )
    return path


@dataclass(frozen=True)
class RunConfig:
    """One ``fairbench run``.

    Attributes:
        method: Name of the method.
        dataset, task, backbone: Names; None for the default.
        data_root: Folder of the data set's files; None: what ``FAIRBENCH_DATA`` names.
        target: ``"uniform"`` or ``"female=0.5,male=0.5"``.
        num_images: Images in all, spread evenly over the prompts.
        seed: Fixes all randomness of the run.
        bias: Of the images that the method trains on, where its card says biased: ``"default"``,
            ``"none"``, ``"balanced"``, a profile of the data set, or
            ``"gender:female=0.9,male=0.1"``.
        device, dtype: As on the command line.
        network_batch: Rows of every network call; None for the backbone's own number.
        decode_batch: Images decoded at once; None for the network batch.
        batch_size: What older configurations call `network_batch`.
        data_parallel: Whether several processes share each step of a training; else the first
            trains alone, and all of them make images.
        compile: Whether to compile the denoising network; part of the key.
        parameters: ``key=value`` strings of the method.
        steps, guidance, eta, scheduler: Of sampling; None for the backbone's defaults.
        encoders: Public encoders to measure with beside the data set's own.
        faces: Whether to look for faces too, as on photographs.
        controls: Attributes within whose levels groups are compared too.
        judges: Judges to use instead of the data set's own: names or paths.
        accept_judge: Whether to use judges below 90 % balanced accuracy too.
        allow_download: Get weights, and a backbone of the hub, if they are nowhere.
        results: Folder of records, or a text that is an address which fsspec reaches, such as
            ``"s3://bucket/results"``. Other texts become paths.
        force: Compute although a record exists.
    """

    method: str
    dataset: str | None = None
    task: str | None = None
    backbone: str | None = None
    data_root: Path | None = None
    target: str = "uniform"
    num_images: int = 1000
    seed: int = 0
    bias: str = "default"
    device: str = "auto"
    dtype: str = "auto"
    network_batch: int | None = None
    decode_batch: int | None = None
    batch_size: int | None = None
    data_parallel: bool = False
    compile: bool = False
    parameters: tuple[str, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    eta: float | None = None
    scheduler: str | None = None
    encoders: tuple[str, ...] = ()
    faces: bool = False
    controls: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    accept_judge: bool = False
    allow_download: bool = False
    results: Path | str = Path("results")
    force: bool = False

    def __post_init__(self) -> None:
        check_count(self.num_images)
        for option, value in (("guidance", self.guidance), ("eta", self.eta)):
            if value is not None and not math.isfinite(value):
                raise InputError(f"--{option} must be a finite number; seen {value}")
        if self.guidance is not None and self.guidance > LARGEST_GUIDANCE:
            raise InputError(
                f"--guidance must be at most {LARGEST_GUIDANCE:g}; seen {self.guidance:g}"
            )
        check_seed(self.seed)
        if self.batch_size is not None and self.network_batch is None:
            object.__setattr__(self, "network_batch", self.batch_size)
        check_batch("network-batch", self.network_batch)
        check_batch("decode-batch", self.decode_batch)
        object.__setattr__(self, "results", _place(self.results))
        if self.scheduler not in (None, "ddim", "own"):
            raise InputError(f"--scheduler must be ddim or own; seen {self.scheduler!r}")

    @property
    def folder(self) -> Path:
        """Folder of records.

        Raises:
            ContractError: If the results are at an address: a run mirrors them in a folder first.
        """
        if isinstance(self.results, str):
            raise ContractError(f"expected a folder of records; seen the address {self.results}")
        return self.results

    def sampling(self, default: SamplingConfig, *, conditional: bool) -> SamplingConfig:
        """The backbone's sampling with the user's changes.

        Raises:
            InputError: If guidance is asked of a backbone that takes no prompt, or the scheduler
                or its noise of one that is called as a whole.
        """
        if not conditional and self.guidance not in (None, 1.0):
            raise InputError(
                f"--guidance {self.guidance:g} needs a text-to-image backbone; leave it out"
            )
        if default.scheduler == "own":  # nothing else can be chosen
            for option, value in (("scheduler", self.scheduler), ("eta", self.eta)):
                if value not in (None, 0.0):
                    raise InputError(
                        f"--{option} {value}: the backbone is called as a whole, with what its "
                        "folder says; leave it out"
                    )
        return replace(
            default,
            steps=default.steps if self.steps is None else self.steps,
            guidance=default.guidance if self.guidance is None else self.guidance,
            eta=default.eta if self.eta is None else self.eta,
            scheduler=cast("Any", self.scheduler) or default.scheduler,
        )
