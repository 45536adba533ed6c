"""The instruments that can be asked for by name: fairbench's own and those of other packages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from fairbench.core.errors import ContractError, InputError, unknown_name
from fairbench.core.registry import Registry
from fairbench.core.specs import InstrumentSpec
from fairbench.datasets.base import Dataset
from fairbench.instruments.base import Instrument, Kind

__all__ = ["REGISTRY", "instrument_spec", "instrument_specs", "load_instrument"]

REGISTRY: Registry[tuple[InstrumentSpec, ...]] = Registry(
    "instrument", "fairbench.instruments", "INSTRUMENTS"
)
"""Finds the files and entry points; each defines one or more instruments of one kind."""


def _scan() -> tuple[Mapping[str, InstrumentSpec], Mapping[str, str]]:
    """Instrument -> its spec, and file or entry point -> why it can't be used."""
    entries, broken = REGISTRY.entries()
    specs: dict[str, InstrumentSpec] = {}
    faults = dict(broken)
    for place, found in entries.items():
        if not isinstance(found, tuple) or not all(isinstance(o, InstrumentSpec) for o in found):
            faults[place] = (
                f"instruments of {place!r}: expected a tuple of InstrumentSpec, seen "
                f"{type(found).__name__}; mend that package"
            )
            continue
        twice = sorted(spec.name for spec in found if spec.name in specs)
        if twice:
            faults[place] = (
                f"instruments of {place!r}: {twice[0]} is there already; rename it in that package"
            )
            continue
        specs |= {spec.name: spec for spec in found}
    return MappingProxyType(specs), MappingProxyType(faults)


def instrument_specs() -> Mapping[str, InstrumentSpec]:
    """Every instrument by name; those of packages that can't be used are left out."""
    return _scan()[0]


def instrument_spec(name: str, kind: Kind | None = None) -> InstrumentSpec:
    """The instrument of that name.

    Args:
        name: One of `instrument_specs`.
        kind: What it must be; None for any.

    Raises:
        InputError: If there is none; the message says which packages couldn't be used.
    """
    specs, faults = _scan()
    known = {one.name: one for one in specs.values() if kind in (None, one.kind)}
    if name in known:
        return known[name]
    error = unknown_name(kind or "instrument", name, known)
    raise InputError("; ".join([str(error), *faults.values()])) if faults else error


def load_instrument(
    name: str,
    kind: Kind | None = None,
    *,
    device: str = "cpu",
    batch_size: int | None = None,
    allow_download: bool = False,
    dataset: Dataset | None = None,
) -> Instrument:
    """Load an instrument.

    Args:
        name: One of `instrument_specs`.
        kind: What it must be; None for any.
        device: As ``--device``.
        batch_size: Images that it sees at once, if it leaves that open; None for its own number.
        allow_download: Get its weights from upstream if they are nowhere.
        dataset: Whose images it is to read; needed by one that depends on it.

    Raises:
        InputError: If there is no such instrument or device, or one that depends on the data
            set and none is given.
        AssetError: If its weights are missing, damaged or those of another network.
        ContractError: If what is loaded is of another kind than its spec says.
    """
    spec = instrument_spec(name, kind)
    options: dict[str, Any] = {}
    if spec.per_dataset:
        if dataset is None:
            raise InputError(f"instrument {name} depends on the data set; name it by its dataset")
        options["dataset"] = dataset
    instrument = spec.load(
        device=device, batch_size=batch_size, allow_download=allow_download, **options
    )
    seen = getattr(instrument, "kind", type(instrument).__name__)
    if seen != spec.kind:
        raise ContractError(
            f"instrument {name}: expected one of kind {spec.kind}, seen {seen}; mend its spec or "
            "its class"
        )
    return cast(Instrument, instrument)
