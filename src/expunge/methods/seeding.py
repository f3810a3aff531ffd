"""Fits of the same entry with other seeds, from which the variation between fits is estimated."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from expunge.methods.fitting import method_named
from expunge.methods.table import METHODS
from expunge.system import plugins
from expunge.system.errors import ConfigError

MAX_SEEDS = 100


def seeded(name: str, table: Mapping[str, Mapping[str, Any]], offset: int) -> dict[str, Mapping[str, Any]]:
    """Return a table with only the entry `name`, whose seed and that of its `after` are raised by `offset`.

    A method without a `seed` is unchanged: it has no randomness, or a secret one, as certified removal has. An unknown
    entry or method is passed through, because `fit` reports it.
    """
    return {name: _seeded(name, table[name] or {}, offset)} if name in table else {}


def other_seeds(name: str, table: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]] | None:
    """Tables of the further fits that `fit.NAME.fit_seeds` asks for, after the first; None if the entry has no seed.

    Raises ConfigError for a `fit_seeds` that is not an integer between 1 and MAX_SEEDS.
    """
    given = table.get(name) or {}
    count = given.get("fit_seeds", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_SEEDS:
        raise ConfigError(
            f"params.yaml: fit.{name}.fit_seeds is {count!r}; it must be a number of fits from 1 to {MAX_SEEDS}"
        )
    if seeded(name, table, 1) == {name: given}:
        return None
    return [seeded(name, table, offset) for offset in range(1, count)]


def _seeded(default: str, given: Mapping[str, Any], offset: int) -> dict[str, Any]:
    settings = dict(given)
    named = settings.get("method", default)
    known = named in METHODS or named in plugins.names("methods")
    method = method_named(named, default) if known else None
    if method is not None and (seed := inspect.signature(method.kind).parameters.get("seed")) is not None:
        settings["seed"] = int(settings.get("seed", seed.default)) + offset
    after = settings.get("after")
    if isinstance(after, Mapping) and "method" in after:
        settings["after"] = _seeded(str(after["method"]), after, offset)
    return settings
