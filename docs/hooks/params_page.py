"""The page on params.yaml: types from the classes of `expunge.config`, values and comments from the file itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter
from schema_words import table, words

from expunge.config import Config

PARAMS = Path(__file__).parents[2] / "params.yaml"
DOCUMENT = re.compile(r"docs/[\w-]+\.md")
HEADER = ["key", "type", "here", "meaning"]
INTRODUCTION = """# params.yaml

Every run reads its settings from `params.yaml`. The file has one section per stage of `dvc.yaml`, and every key below
must be in it: an unknown, missing or impossible key is an error that names the key. `expunge check` reports all such
errors at once. The column *here* holds the value in this repository's `params.yaml`.

Some keys must also fit each other. Those rules are in `expunge.config.rules`, and `expunge check` applies them.
"""
METHODS = """## fit

The section `fit` holds one entry per method: `fit.NAME` are the settings of the entry that `methods` calls `NAME`. An
entry may name another method with `method:`, so that one method can run with several settings. `choose:` lists values
to pick from by held-out training rows. `expunge methods` lists the methods with the requests that each one answers.
The settings are the arguments of the method's estimator.

"""


def params_page() -> str:
    """The page as Markdown: one table per section, then the section `fit` as it is in params.yaml."""
    text = PARAMS.read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    schema = TypeAdapter(Config).json_schema()
    parts, alone = [INTRODUCTION], []
    for name, entry in schema["properties"].items():
        if name == "fit":
            continue
        kind = schema["$defs"][entry["$ref"].rpartition("/")[2]] if "$ref" in entry else None
        if kind is None:
            alone.append(row(name, entry, values[name], comment_of(text, "", name)))
            continue
        rows = [row(k, e, values[name][k], comment_of(text, name, k)) for k, e in kind["properties"].items()]
        parts.append("\n".join([f"## {name}", "", *above(text, name), *table(HEADER, rows), ""]))
    parts.append("\n".join(["## Keys without a section", "", *table(HEADER, alone), ""]))
    fit = text[text.index("\nfit:\n") :].strip()
    return "\n".join([*parts, METHODS + f"```yaml\n{fit}\n```\n"])


def row(key: str, schema: dict[str, Any], value: Any, comment: str) -> list[str]:
    """The cells of one key."""
    return [f"`{key}`", words(schema), f"`{yaml_text(value)}`", comment]


def yaml_text(value: Any) -> str:
    """A value on one line, as YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def comment_of(text: str, section: str, key: str) -> str:
    """The comment beside `section.key` in params.yaml and on the lines that continue it; empty where there is none."""
    start = re.search(rf"^{section}:\n", text, re.M).end() if section else 0
    indent = "  " if section else ""
    found = re.compile(rf"^{indent}{key}:(?:[^\n#]*)(?:# ([^\n]*))?\n((?:{indent} +# [^\n]*\n)*)", re.M).search(
        text, start
    )
    if found is None:
        raise ValueError(f"{PARAMS.name}: no line for {section}.{key}")
    first, more = found.groups()
    lines = [first or "", *(line.strip().removeprefix("# ") for line in more.splitlines())]
    return DOCUMENT.sub(r"`\g<0>`", "<br>".join(line for line in lines if line))


def above(text: str, section: str) -> list[str]:
    """The comment on the lines right above a section, as a paragraph."""
    found = re.search(rf"\n\n((?:# [^\n]*\n)+){section}:\n", text)
    lines = found.group(1).splitlines() if found else []
    return [*(line.removeprefix("# ") for line in lines), ""] if lines else []
