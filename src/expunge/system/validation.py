"""What pydantic finds wrong, as one line that names the key."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

from pydantic import ValidationError

from expunge.system.safe_yaml import shown

# What pydantic calls an error -> what the value must be; {} is filled from the error's context.
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


def explain(error: ValidationError, raw: Any, model: type[Any]) -> str:
    """One line for the first mistake in `raw`, which pydantic refused as the dataclass `model`.

    It names the key, what was found and what is allowed. An unknown key goes first, since the missing one is often the
    same, misspelt.
    """
    found = error.errors(include_url=False)
    unknown = [e for e in found if e["type"] == "unexpected_keyword_argument"]
    first = (unknown or found)[0]
    key, hint = _place(first["loc"], raw, model)
    if unknown:
        prefix, last = key[:-1], key[-1]
        known = [f.name for f in dataclasses.fields(_section(prefix, model))]
        close = difflib.get_close_matches(last, known, n=1)
        advice = (
            f"did you mean {'.'.join([*prefix, close[0]])}?" if close else f"known keys: {', '.join(sorted(known))}"
        )
        return f"unknown key {_dotted(key)}; {advice}"
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
    """The key of a pydantic location, whose names of union members are left out, and the type hint of its field."""
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
    """`split.classes[0]`; a key that would not print on one line is quoted."""
    return ".".join(k if k.isprintable() and len(k) <= 80 else shown(k) for k in key).replace(".[", "[")
