"""The same entry of the table with another fit seed: what part of a result is chance of the fit."""

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
    """A table with the entry `name` alone, its seed and that of what it starts from (`after`) raised by `offset`.

    A method without a `seed` has no randomness of its own (or, as certified removal, a secret one) and stays as it is.
    An entry or method that the table does not know is left for `fit` to name.
    """
    return {name: _seeded(name, table[name] or {}, offset)} if name in table else {}


def other_seeds(name: str, table: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]] | None:
    """Tables of the fits beside the first that `fit.NAME.fit_seeds` asks for; None where the entry has no seed at all.

    Raises ConfigError for a `fit_seeds` that is no number of at least 1.
    """
    given = table.get(name) or {}
    count = given.get("fit_seeds", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_SEEDS:
        raise ConfigError(
            f"params.yaml: fit.{name}.fit_seeds: {count!r} is no number of fits between 1 and {MAX_SEEDS}"
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
