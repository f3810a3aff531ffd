"""Entry points of other packages: methods, readers, model families and metrics.

A package is imported only when a name that it declares is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from expunge.system.errors import ConfigError

# Kind, which is the last part of the entry-point group `expunge.KIND` -> its name in messages.
KINDS = {"methods": "method", "readers": "reader", "models": "model family", "metrics": "metric"}


@cache
def declared() -> Mapping[str, Mapping[str, tuple[EntryPoint, ...]]]:
    """Return the entry points of all installed packages by kind and name, in order of names.

    A tuple longer than 1 means that several entry points claim one name.
    """
    found = entry_points()
    by_kind: dict[str, dict[str, tuple[EntryPoint, ...]]] = {}
    for kind in KINDS:
        by_name: dict[str, tuple[EntryPoint, ...]] = {}
        for entry in sorted(found.select(group=f"expunge.{kind}"), key=lambda e: (e.name, _package(e))):
            by_name[entry.name] = (*by_name.get(entry.name, ()), entry)
        by_kind[kind] = by_name
    return by_kind


def names(kind: str) -> list[str]:
    """Return the names that other packages declare for this kind, sorted.

    For a name that is also Expunge's own, Expunge's is used.
    """
    return list(declared()[kind])


def package_of(kind: str, name: str) -> str:
    """Return `NAME VERSION` of the package that declares `name`; several packages are joined by "and"."""
    return " and ".join(dict.fromkeys(_package(entry) for entry in declared()[kind][name]))


def load(kind: str, name: str, wanted: type | None) -> Any:
    """Import and return what a package declares as `name`: an instance of `wanted`, or a function if that is None.

    Raises ConfigError, one line with the package's name and version, if several packages claim the name, if the import
    fails, or if the object is of another type.
    """
    entries, who = declared()[kind][name], f"{KINDS[kind]} {name!r} of {package_of(kind, name)}"
    if len(entries) > 1:
        places = ", ".join(entry.value for entry in entries)
        raise ConfigError(f"{who}: several claim this name ({places}); uninstall all of them but one")
    value = entries[0].value
    try:
        found = entries[0].load()
    except (Exception, SystemExit) as e:  # importing another package may raise anything
        why = (str(e).strip().splitlines() or [""])[0]
        raise ConfigError(f"{who}: {value} cannot be imported: {type(e).__name__}: {why}") from e
    if not (callable(found) if wanted is None else isinstance(found, wanted)):
        kind_of = "function" if wanted is None else f"{wanted.__module__}.{wanted.__name__}"
        raise ConfigError(f"{who}: {value} is no {kind_of}")
    return found


def _package(entry: EntryPoint) -> str:
    return "a package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
