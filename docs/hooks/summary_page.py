"""The page on reports/summary.json: the models of `expunge.report.schema`, one table each."""

from __future__ import annotations

import json
from typing import Any

from schema_words import table, words

from expunge.report.schema import summary_schema

FILE = "summary.schema.json"
INTRODUCTION = f"""# reports/summary.json

The stage `compare` writes the whole result of a run into `reports/summary.json`. Reports, tables and MLflow runs are
made from it, and a program can read it. [{FILE}]({FILE}) is its JSON Schema (draft 2020-12).

Keys may be added without a new schema number, so a reader must ignore keys that it does not know. Accuracies and rates
are fractions from 0 to 1, divergences are in nats, times in seconds. A value is `null` where there is nothing to
measure.

"""


def summary_page() -> str:
    """The page as Markdown: the top of the file first, then its parts in the order in which they are named."""
    schema = summary_schema()
    known = schema["$defs"]
    parts = [section("Top level", schema, known), *(section(name, known[name], known) for name in in_order(schema))]
    return INTRODUCTION + "\n".join(parts)


def section(name: str, part: dict[str, Any], known: dict[str, Any]) -> str:
    """Heading, description and table of keys of one part. A key that is a part of its own has that part's words."""

    def meaning(value: dict[str, Any]) -> str:
        inner = known[value["$ref"].rpartition("/")[2]]["description"] if "$ref" in value else ""
        return str(value.get("description", inner))

    absent = set(part["properties"]) - set(part.get("required", []))
    rows = [
        [f"`{key}`", words(value) + (" or absent" if key in absent else ""), meaning(value)]
        for key, value in part["properties"].items()
    ]
    return "\n".join([f"## {name}", "", part["description"], "", *table(["key", "type", "meaning"], rows), ""])


def in_order(schema: dict[str, Any]) -> list[str]:
    """Names of the parts, breadth first from the top of the file."""
    found: list[str] = []
    queue = [schema]
    while queue:
        text = json.dumps(queue.pop(0)["properties"])
        for piece in text.split('"#/$defs/')[1:]:
            name = piece.partition('"')[0]
            if name not in found:
                found.append(name)
                queue.append(schema["$defs"][name])
    return found


def schema_file() -> str:
    """The JSON Schema as a file beside the page."""
    return json.dumps(summary_schema(), indent=2, ensure_ascii=False) + "\n"
