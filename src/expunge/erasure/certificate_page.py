"""The certificate as an HTML page that opens offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader


def page(document: Mapping[str, Any]) -> str:
    """Return the HTML page of a signed certificate."""
    environment = Environment(
        loader=PackageLoader("expunge.erasure", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    body = document["certificate"]
    template = environment.get_template("certificate.html.jinja")
    return template.render(document=document, c=body, u=body["unlearning"], number=_number)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
