"""Addresses of servers: whether one is a server's, and a form that may be shown, without user, password and query."""

from __future__ import annotations

import re
from urllib.parse import unquote


def is_http(address: str) -> bool:
    """Return whether `address` is one of a server, and not of a database or folder."""
    return address.startswith(("http://", "https://"))


def shown(address: str) -> str:
    """Return `scheme://host/path` of `address`. Text without a scheme, such as a folder, is returned unchanged."""
    scheme, found, rest = address.partition("://")
    if not found:
        return address
    rest = re.split("[?#]", rest, maxsplit=1)[0]
    # A SQLite path may contain an @. In other addresses, everything before the last @ is user and password.
    return f"{scheme}://{rest if rest.startswith('/') else rest.rpartition('@')[2]}"


def hidden(text: str, address: str) -> str:
    """Return `text`, such as a library's error message, with the secrets of `address` masked."""
    text = text.replace(address, shown(address))
    for secret in sorted(_secrets(address), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(address: str) -> set[str]:
    place, *after = re.split("[?#]", address.partition("://")[2], maxsplit=1)
    credentials = "" if place.startswith("/") else place.rpartition("@")[0].partition(":")[2]
    values = [pair.partition("=")[2] for pair in re.split("[&#]", "".join(after))]
    # Shorter values are often common words or numbers, which the text may contain for other reasons.
    return {s for secret in (credentials, *values) if len(secret) > 3 for s in (secret, unquote(secret))}
