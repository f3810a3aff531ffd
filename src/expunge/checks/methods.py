"""Check the entries of `fit` against the request, the data and the model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from expunge.checks.problem import Problem
from expunge.checks.schema import RequestSize, Schema
from expunge.config import Config, entries
from expunge.core.estimator import Estimator
from expunge.methods.method import After, Method, load_installed
from expunge.methods.selection import candidates
from expunge.methods.table import METHODS
from expunge.models.classifier import ABOVE, FROZEN
from expunge.system import plugins
from expunge.system.errors import ConfigError
from expunge.system.safe_yaml import shown

INSTEAD = "leave it out of methods (maps and heads work), or resize the pictures"

OF_ENTRIES = ("max_drop", "fit_seeds")  # about the entry as a whole, so not for what stands in its `after`


def method_problems(config: Config, schema: Schema, request: RequestSize) -> list[Problem]:
    """Return every conflict of the entries that `methods` names."""
    found: list[Problem] = []
    for name in config.methods:
        for where, method, settings in entries(config, name):
            found += _of_entry(config, schema, request, where, method, settings)
    return found


def _of_entry(
    config: Config, schema: Schema, request: RequestSize, where: str, method: str, given: dict[str, Any]
) -> list[Problem]:
    if not method:
        return [Problem(where, "names no method", "write {method: NAME, ...}")]
    others = [] if method in METHODS else plugins.names("methods")
    try:
        line = METHODS[method] if method in METHODS else load_installed(method) if method in others else None
    except ConfigError as e:
        return [Problem.from_error(where, e)]
    if line is None:
        near = difflib.get_close_matches(method, [*METHODS, *others], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "run `expunge methods` to list the methods"
        return [Problem(where, f"unknown method {shown(method)}", hint)]
    facts = line.kind.facts
    found = _settings(where, method, line, given) + _after(where, method, line, given)
    if request.kind is not None and request.kind not in facts.requests and not facts.is_control:
        kinds = {"classes": "whole classes", "rows": "rows of classes that stay", "corrections": "corrected labels"}
        able = {k: m.kind.facts.needs for k, m in METHODS.items() if request.kind in m.kind.facts.requests}
        also = ", ".join(k for k, n in able.items() if request.kind == "corrections" or n == facts.needs)
        says = f"{method} is for {kinds[facts.requests[0]]}, and this request names {kinds[request.kind]}"
        way_out = f"leave it out of methods{f', or take one of {also}' if also else ''}"
        found.append(Problem(where, says, way_out))
    if "images" in facts.needs and schema.texts:
        found.append(Problem(where, f"{method} changes pixels, and the data are texts", "leave it out of methods"))
    if {"images", "inputs"} & set(facts.needs) and schema.mixed:
        says = f"{method} needs pictures of one size, and the data are pictures of different sizes"
        found.append(Problem(where, says, INSTEAD))
    if "activations" in facts.needs and config.activations.cuts == []:
        found.append(Problem(where, f"{method} needs activations at a cut, and activations.cuts is []", "add a cut"))
    if "activations" in facts.needs and schema.mixed and config.model.training != ABOVE:
        found.append(Problem(where, f"{method} needs pictures of one size, and these differ in size", INSTEAD))
    if "unseen rows" in facts.needs and request.kind == "rows" and not config.split.unseen:
        says = f"{method} needs rows that the model never saw, and split.unseen is 0"
        found.append(
            Problem(where, says, "set split.unseen, for example to 0.1; the model is then trained without that share")
        )
    return found + _training(config, where, method)


def _settings(where: str, method: str, line: Method, given: Mapping[str, Any]) -> list[Problem]:
    kind = line.kind
    own = {k: v for k, v in given.items() if k not in ("method", "after", "choose", *OF_ENTRIES)}
    if nested := [key for key in OF_ENTRIES if key in given and where.endswith(".after")]:
        says = f"is for entries that methods names, and this one is the start of {where.split('.')[1]}"
        return [Problem(f"{where}.{nested[0]}", says, "set it there, or leave it out")]
    if method == "exact":
        says = f"exact takes no settings, but it has {shown(own)}"
        return [Problem(where, says, "remove them; the head is trained by the settings of train")] if own else []
    for key in line.by_teacher:
        if isinstance(own.get(key), Mapping):
            own[key] = 1.0
    variants: list[dict[str, Any]] = [{}]
    if choose := given.get("choose"):
        try:
            variants = candidates(choose, where)
        except ConfigError as e:
            return [Problem.from_error(where, e)]
    if names := _names(where, method, kind, {**line.filled, **own}, set().union(*variants)):
        return names
    for variant in variants:
        try:
            kind(**{**line.filled, **own, **variant})
        except (TypeError, ValueError) as e:
            return [Problem(where, str(e), f"see `expunge methods` and the class of {method}")]
    return []


def _names(
    where: str, method: str, kind: type[Estimator], given: Mapping[str, Any], chosen: Collection[str]
) -> list[Problem]:
    """Return a problem for every setting that the method does not have, and for every one that it lacks.

    The settings are those in `given`, and those in `chosen`, which are chosen from in `choose`. The method lacks a
    setting if it needs it and it is in neither.
    """
    parameters = inspect.signature(kind).parameters.values()
    known = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)  # a class of another package may
    found = []
    for key in [str(k) for k in (*given, *chosen) if k not in known and not takes_any]:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
        way_out = f"near it: {', '.join(near)}" if near else f"it has {', '.join(known) or 'none'}"
        key = f"choose.{key}" if key in chosen else key
        found.append(Problem(f"{where}.{key}", f"{method} has no such setting", way_out))
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in given and key not in chosen:
            says = f"is missing, and {method} has no default for it"
            found.append(Problem(f"{where}.{key}", says, f"see `expunge methods` and the class of {method}"))
    return found


def _after(where: str, method: str, line: Method, given: Mapping[str, Any]) -> list[Problem]:
    after = given.get("after")
    if after is None:
        needed = line.after is After.required
        return [Problem(where, f"{method} starts from another method's result", "add after: {method: ...}")] * needed
    if line.after is After.refused:
        return [Problem(f"{where}.after", f"{method} starts from the original and takes no `after`", "remove it")]
    if not isinstance(after, Mapping):
        return []  # config reports it
    first, says = str(after.get("method")), ""
    kind = METHODS[first].kind.facts.changes if first in METHODS else None
    if method == "teacher-map" and first != "relearn" and kind is not None:
        says = f"teacher-map learns from a relearned teacher, not from {first}"
        return [Problem(f"{where}.after", says, "write {method: relearn, ...}")]
    if method == "seal" and kind == "weights":
        return [Problem(f"{where}.after", f"{first} changes the backbone, so there is no map to seal", "name a map")]
    if method == "head-refit" and kind == "weights":
        says = f"{first} changes the backbone, and head-refit would refit the head on the original's features"
        return [Problem(f"{where}.after", says, "name a map, or leave `after` out")]
    if method == "oracle-match" and kind == "map":
        says = f"{first} maps the features, and oracle-match needs a relearned network or a head"
        return [Problem(f"{where}.after", says, "name relearn or head-refit, or leave `after` out")]
    return []


def _training(config: Config, where: str, method: str) -> list[Problem]:
    """Return a conflict if certified-removal does not support the model's training; its fit would end the run."""
    model = config.model
    if method == "certified-removal" and model.training in FROZEN and model.saw_forget_data:
        says = f"{method} needs a backbone that never saw the rows, and model.saw_forget_data is true"
        return [
            Problem(where, says, "use a public backbone and set the key to false, or leave the method out of methods")
        ]
    if method == "certified-removal" and model.training not in FROZEN:
        says = f"certified-removal needs a frozen backbone, and model.training is {model.training}"
        return [Problem(where, says, "set model.training to ridge or head, on public weights")]
    return []


def refusals(config: Config) -> list[str]:
    """Return a note for each entry that the fit stage will record as refused, without ending the run."""
    model, notes = config.model, []
    for name in config.methods:
        if all(method != "exact" for _, method, _ in entries(config, name)):
            continue
        if model.training not in (*FROZEN, ABOVE):
            notes.append(
                f"fit.{name}: exact will be refused: model.training is {model.training}; set it to ridge, head or "
                "above, on public weights"
            )
        elif model.training in FROZEN and model.saw_forget_data:
            notes.append(f"fit.{name}: exact will be refused: model.saw_forget_data is true; use a public backbone")
    return notes
