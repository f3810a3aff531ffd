"""Check a summary of a run against the published JSON Schema."""

import copy
from typing import Any

from jsonschema import Draft202012Validator

from expunge.report.schema import summary_schema


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with all keys forbidden that it does not name, so that no key stays undocumented.

    Only a record of exact deletion may hold further keys, because they depend on the procedure.
    """
    shut = copy.deepcopy(schema)
    for name, part in [("Summary", shut), *shut["$defs"].items()]:
        if "properties" in part and name != "Exact":
            part["additionalProperties"] = False
    return shut


def problems(summary: dict[str, Any], part: str | None = None) -> list[str]:
    """Return the violations of the schema in a summary, or in one `part` of it, and the keys that it does not name."""
    schema, found = closed(summary_schema()), []
    if part is not None:
        schema = {"$ref": f"#/$defs/{part}", "$defs": schema["$defs"]}
    for error in Draft202012Validator(schema).iter_errors(summary):
        # If a part may be null, only the error of the part itself is useful.
        inner = [e for e in error.context or [error] if e.validator != "type"] or [error]
        found += [f"{'.'.join(str(p) for p in e.absolute_path)}: {e.message[:200]}" for e in inner]
    return found
