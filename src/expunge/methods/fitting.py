"""Fit an entry of the section `fit` in params.yaml: the entry in `after`, the method itself, and the collapse guard."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from expunge.methods.correcting import refuse_correction
from expunge.methods.inputs import FitInputs
from expunge.methods.method import After, Method, Settings, load_installed
from expunge.methods.selection import choose_settings
from expunge.methods.table import METHODS
from expunge.methods.unlearned import UnlearnedModel
from expunge.methods.utility import MAX_DROP, refuse_lost, retained_accuracy
from expunge.models.classifier import ABOVE
from expunge.system import plugins
from expunge.system.errors import ConfigError

CORRECTING = [name for name, method in METHODS.items() if "corrections" in method.kind.facts.requests]

# torch imports its compiler when a process creates its first optimizer. This takes seconds, which must not count as the
# fit time of a method.
DESCENDS = {name for name, method in METHODS.items() if method.kind.facts.cost != "closed form"}


def warm_up(name: str, table: Mapping[str, Settings], training: str) -> None:
    """Trigger the imports that the entry needs on a model with this `training`, so that they are not timed."""
    settings = table.get(name) or {}
    needed = {settings.get("method", name), (settings.get("after") or {}).get("method")}
    if needed & (DESCENDS | {"exact"} if training == ABOVE else DESCENDS):
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def method_named(method: str, entry: str) -> Method:
    """Return the method of the entry `entry` of params, ours or an installed package's.

    Raises ConfigError for an unknown method.
    """
    if method in METHODS:
        return METHODS[method]
    others = plugins.names("methods")
    if method in others:
        return load_installed(method)
    known = ", ".join([*METHODS, *others])
    raise ConfigError(f"params.yaml: fit.{entry}: unknown method {method!r}; the methods are {known}")


def fit(name: str, request: FitInputs, table: Mapping[str, Settings]) -> UnlearnedModel:
    """Fit the entry `name` of `table`, the section `fit` of params.

    Raises ConfigError for a missing entry, an unknown method or an invalid setting, and CollapseError if the result
    lost too much accuracy on retained rows.
    """
    if name not in table:
        raise ConfigError(f"params.yaml: fit.{name} is missing; add it ({{}} takes the defaults)")
    given = dict(table[name] or {})
    max_drop = given.pop("max_drop", MAX_DROP)
    given.pop("fit_seeds", None)  # handled by `seeding.other_seeds`
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop <= 1:
        raise ConfigError(
            f"params.yaml: fit.{name}.max_drop is {max_drop!r}; it must be a share of rows between 0 and 1"
        )
    unlearned = _fit(name, name, request, given, max_drop)
    if not method_named(given.get("method", name), name).kind.facts.is_guarded:
        return unlearned
    accuracy = retained_accuracy(request, unlearned)
    refuse_lost(name, accuracy, max_drop)
    return dataclasses.replace(unlearned, info={**unlearned.info, "held_out": accuracy.to_json()})


def _fit(name: str, default: str, request: FitInputs, given: Settings, max_drop: float) -> UnlearnedModel:
    """Fit the entry `name` with the settings `given`; if these name no method, it is `default`.

    `max_drop`: the share of retained rows that a choice of settings may lose.
    """
    settings = dict(given)
    method, after = settings.pop("method", default), settings.pop("after", None)
    choose = settings.pop("choose", None)
    line = method_named(method, name)
    refuse_correction(name, method, line.kind.facts, request, CORRECTING)
    if after is not None and line.after is After.refused:
        raise ConfigError(
            f"params.yaml: fit.{name}.after: {method} starts from the original and takes no `after`; remove it"
        )
    if after is not None and not (isinstance(after, Mapping) and "method" in after):
        raise ConfigError(
            f"params.yaml: fit.{name}.after is {after!r}; write a method with its settings, `after: {{method: NAME, "
            f"...}}`"
        )

    def fitted(request: FitInputs, settings: Settings) -> UnlearnedModel:
        before = None if after is None else _fit(name, after["method"], request, after, max_drop)
        unlearned = line.fit(name, request, settings, before)
        if method in METHODS:
            return unlearned
        made_by = plugins.package_of("methods", method)
        return dataclasses.replace(unlearned, info={**unlearned.info, "package": made_by})

    if not choose:
        return fitted(request, settings)
    taken, record = choose_settings(
        name, request, choose, lambda part, more: fitted(part, {**settings, **more}), max_drop
    )
    unlearned = fitted(request, {**settings, **taken})
    return dataclasses.replace(unlearned, info={**unlearned.info, "chosen": record})
