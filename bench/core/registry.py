"""The one scanner: finds entries of every kind by file, and in other packages by entry point.

A kind is a package of fairbench in which each public file is one entry: a method, a data set, a
kind of instrument, a family of backbones or of scores, a format. Files that entries share lie in a
subpackage, or don't define the kind's name. Another package adds an entry by an entry point in the
group that is called as the package is, such as ``fairbench.methods``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from fairbench.core.errors import ContractError, InputError, unknown_name

__all__ = ["Registry"]

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Registry(Generic[Entry]):
    """The entries of one kind.

    Attributes:
        kind: What messages call an entry, such as ``"data set"``.
        package: Dotted name of the package whose public files are entries; also the name of the
            group of entry points.
        attribute: What a file defines, such as ``"DATASET"``.
    """

    kind: str
    package: str
    attribute: str

    def files(self) -> list[str]:
        """Names of the package's public files, sorted; imports none of them."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            raise ContractError(f"expected a package {self.package}, seen none")
        found = pkgutil.iter_modules(spec.submodule_search_locations)
        return sorted(
            module.name for module in found if not module.ispkg and not module.name.startswith("_")
        )

    def foreign(self) -> dict[str, importlib.metadata.EntryPoint]:
        """Entry points of other packages by name; a file here takes precedence."""
        return {point.name: point for point in importlib.metadata.entry_points(group=self.package)}

    def load(self, name: str) -> Entry | None:
        """What a file or an entry point of that name defines; None if it is no entry.

        Raises:
            InputError: If there is no such file, or another package's can't be imported.
        """
        if name in self.files():
            module = importlib.import_module(f"{self.package}.{name}")
            return cast("Entry | None", getattr(module, self.attribute, None))
        foreign = self.foreign()
        if name not in foreign:
            raise unknown_name(self.kind, name, [*self.files(), *foreign])
        try:
            loaded: Any = foreign[name].load()
        except Exception as error:  # another package's code may fail in any way
            raise InputError(
                f"{self.kind} {name!r} of {foreign[name].value} can't be imported: "
                f"{type(error).__name__}: {error}; mend or uninstall that package"
            ) from error
        if isinstance(loaded, ModuleType):
            loaded = getattr(loaded, self.attribute, None)
        return cast("Entry | None", loaded)

    def entries(self) -> tuple[Mapping[str, Entry], Mapping[str, str]]:
        """Every entry by file or entry point, and why those that can't be loaded can't."""
        found: dict[str, Entry] = {}
        broken: dict[str, str] = {}
        for name in dict.fromkeys([*self.files(), *sorted(self.foreign())]):
            try:
                entry = self.load(name)
            except InputError as error:
                broken[name] = str(error)
                continue
            if entry is not None:
                found[name] = entry
        return found, broken
