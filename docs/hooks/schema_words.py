"""A JSON Schema in words, for the pages on params.yaml and on reports/summary.json."""

from __future__ import annotations

from typing import Any

NAMES = {"integer": "int", "number": "float", "string": "text", "boolean": "true or false", "null": "null"}
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def words(schema: dict[str, Any]) -> str:
    """The type of one key with its bounds. A part of its own becomes a link to its heading on the same page."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(words(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {words(schema['items'])}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {words(values)}" if isinstance(values, dict) and values else "mapping"
    bounds = [f"{sign} {schema[key]:,}" for key, sign in SIGNS.items() if key in schema]
    return " ".join([NAMES.get(str(kind), "any value"), ", ".join(bounds)]).strip()


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]
