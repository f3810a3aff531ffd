"""Explain pydantic's validation errors with one line for each key."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import typing
from typing import Any

from pydantic import ValidationError

from expunge.system.errors import ConfigError
from expunge.system.safe_yaml import shown

# pydantic's error type -> what the value must be. Names in braces are filled from the error's context.
_WANTED = {
    "int_type": "int",
    "float_type": "float",
    "bool_type": "true or false",
    "string_type": "str",
    "list_type": "list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "literal_error": "one of {expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_unicode": "valid Unicode text",
}
_UNKNOWN = "unexpected_keyword_argument"


def explain(error: ValidationError, raw: Any, model: type[Any]) -> list[str]:
    """Return one line for each mistake in `raw`, which failed validation as the dataclass `model`.

    A line names the key, the value found and what is allowed. Unknown keys come first. A missing key that an unknown
    one is probably meant for is not reported again.
    """
    found = error.errors(include_url=False)
    unknown = [e for e in found if e["type"] == _UNKNOWN]
    meant = [[*prefix, close] for prefix, _, close in _misspelt(error, raw, model) if close]
    lines = [_unknown(e, raw, model) for e in unknown]
    reported: list[list[str]] = []
    for one in found:
        key = _place(one["loc"], raw, model)[0]
        if one["type"] == _UNKNOWN or key in reported or key in meant:
            continue
        reported.append(key)
        lines.append(_mistake(one, found, raw, model))
    return lines


def without_misspellings(error: ValidationError, raw: Any, model: type[Any]) -> Any:
    """Return a copy of `raw` in which each unknown key is renamed to the closest missing key, or removed."""
    mended = copy.deepcopy(raw)
    for prefix, last, close in _misspelt(error, raw, model):
        inner = mended
        for name in prefix:
            inner = inner[name]
        value = inner.pop(last)
        if close and close not in inner:
            inner[close] = value
    return mended


def _misspelt(error: ValidationError, raw: Any, model: type[Any]) -> list[tuple[list[str], str, str | None]]:
    """Return the parent path and name of each unknown key, and the closest known key (None if none is close)."""
    out = []
    for one in error.errors(include_url=False):
        if one["type"] == _UNKNOWN:
            *prefix, last = _place(one["loc"], raw, model)[0]
            close = difflib.get_close_matches(last, _known(prefix, model), n=1)
            out.append((prefix, last, close[0] if close else None))
    return out


def _known(prefix: list[str], model: type[Any]) -> list[str]:
    return [f.name for f in dataclasses.fields(_section(prefix, model))]


def _unknown(error: Any, raw: Any, model: type[Any]) -> str:
    *prefix, last = _place(error["loc"], raw, model)[0]
    known = _known(prefix, model)
    close = difflib.get_close_matches(last, known, n=1)
    advice = f"did you mean {'.'.join([*prefix, close[0]])}?" if close else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key {_dotted([*prefix, last])}; {advice}"


def _mistake(first: Any, found: list[Any], raw: Any, model: type[Any]) -> str:
    key, hint = _place(first["loc"], raw, model)
    if first["type"] in ("missing", "missing_argument"):
        return f"missing key {_dotted(key)}; add it (see the comments in the repository's params.yaml)"
    if first["type"] == "invalid_key":
        parent = _place(first["loc"][:-1], raw, model)[0]
        return f"{_dotted(parent) or 'the file'} has the key {shown(first['input'])}; it must be str"
    if first["type"] == "dataclass_type":
        return f"{_dotted(key) or 'the file'} must be a mapping, got {shown(first['input'])}"
    same = [e for e in found if _place(e["loc"], raw, model)[0] == key]
    wanted = [_wanted(e) for e in same] + (["null"] if type(None) in typing.get_args(hint) else [])
    if first["loc"][-1] == "[key]":
        return f"{_dotted(key[:-1])} has the key {shown(first['input'])}; it must be {' | '.join(wanted)}"
    return f"{_dotted(key)} is {shown(first['input'])}; it must be {' | '.join(wanted)}"


def _wanted(error: Any) -> str:
    context = dict(error.get("ctx", {}))
    if "expected" in context:
        context["expected"] = context["expected"].replace("'", "").replace(" or ", ", ")
    wanted = _WANTED.get(error["type"])
    return str(error["msg"]) if wanted is None else wanted.format(**context)


def _section(names: list[str], model: type[Any]) -> type[Any]:
    for name in names:
        model = typing.get_type_hints(model)[name]
    return model


def _place(loc: tuple[int | str, ...], raw: Any, model: type[Any]) -> tuple[list[str], Any]:
    """Return the parts of the key at a pydantic location, without names of union members, and its field's type hint."""
    key: list[str] = []
    hint: Any = model
    for part in loc:
        if part in raw if isinstance(raw, dict) else isinstance(raw, list) and part in range(len(raw)):
            raw = raw[part]
        elif not (dataclasses.is_dataclass(hint) and isinstance(part, str)):
            continue  # the name of a union member, or pydantic's [key]
        key.append(f"[{part}]" if isinstance(part, int) else part)
        hint = typing.get_type_hints(hint).get(str(part)) if dataclasses.is_dataclass(hint) else None
    return key, hint


def _dotted(key: list[str]) -> str:
    """Join the parts of a key, as in `split.classes[0]`; a part that would not print on one line is quoted."""
    return ".".join(k if k.isprintable() and len(k) <= 80 else shown(k) for k in key).replace(".[", "[")


def holds(raw: Any, key: str) -> bool:
    """Whether the tree `raw` contains the dotted key."""
    for part in key.split("."):
        if not isinstance(raw, dict) or part not in raw:
            return False
        raw = raw[part]
    return True


def check_plain(value: Any, where: str) -> None:
    """Raise ConfigError unless `value` is plain data: settings of methods are written as JSON and hashed."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where} has the key {shown(key)}; it must be str")
            check_plain(item, f"{where}.{key if key.isprintable() and len(key) <= 80 else shown(key)}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            check_plain(item, f"{where}[{i}]")
    elif isinstance(value, bool) or value is None or isinstance(value, str):
        return
    elif not isinstance(value, int | float) or not -(2**63) <= value < 2**63:  # NaN fails both comparisons
        raise ConfigError(f"{where} is {shown(value)}; it must be a finite number, text, true, false, null or a list")
