"""What other packages declare as entry points: methods, readers, model families and metrics.

Nothing of another package is imported before somebody uses a name that it declares.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from expunge.system.errors import ConfigError

# Kind, the last part of the group `expunge.KIND` -> what one of them is called.
KINDS = {"methods": "method", "readers": "reader", "models": "model family", "metrics": "metric"}


@cache
def declared() -> Mapping[str, Mapping[str, tuple[EntryPoint, ...]]]:
    """By kind and name, in order of names: the entry points of all installed packages. Several claim one name where the
    tuple is longer than 1."""
    found = entry_points()
    by_kind: dict[str, dict[str, tuple[EntryPoint, ...]]] = {}
    for kind in KINDS:
        by_name: dict[str, tuple[EntryPoint, ...]] = {}
        for entry in sorted(found.select(group=f"expunge.{kind}"), key=lambda e: (e.name, _package(e))):
            by_name[entry.name] = (*by_name.get(entry.name, ()), entry)
        by_kind[kind] = by_name
    return by_kind


def names(kind: str) -> list[str]:
    """Names that other packages declare for this kind, sorted; some may be our own, and then ours are taken."""
    return list(declared()[kind])


def package_of(kind: str, name: str) -> str:
    """`NAME VERSION` of the package that declares `name`; of all of them, joined by "and", where several do."""
    return " and ".join(dict.fromkeys(_package(entry) for entry in declared()[kind][name]))


def load(kind: str, name: str, wanted: type | None) -> Any:
    """What a package declares as `name`: an instance of `wanted`, or a function where that is None.

    Raises ConfigError, one line with the package's name and version, where several packages claim the name, where it
    cannot be imported, or where it is something else.
    """
    entries, who = declared()[kind][name], f"{KINDS[kind]} {name!r} of {package_of(kind, name)}"
    if len(entries) > 1:
        places = ", ".join(entry.value for entry in entries)
        raise ConfigError(f"{who}: several claim this name ({places}); uninstall all of them but one")
    value = entries[0].value
    try:
        found = entries[0].load()
    except (Exception, SystemExit) as e:  # whatever another package raises while it is imported
        why = (str(e).strip().splitlines() or [""])[0]
        raise ConfigError(f"{who}: {value} cannot be imported: {type(e).__name__}: {why}") from e
    if not (callable(found) if wanted is None else isinstance(found, wanted)):
        kind_of = "function" if wanted is None else f"{wanted.__module__}.{wanted.__name__}"
        raise ConfigError(f"{who}: {value} is no {kind_of}")
    return found


def _package(entry: EntryPoint) -> str:
    return "a package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
