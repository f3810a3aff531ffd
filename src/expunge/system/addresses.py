"""Addresses of servers, as they may be shown: without users, passwords and what stands behind a question mark."""

from __future__ import annotations

import re
from urllib.parse import unquote


def shown(address: str) -> str:
    """`scheme://host/path` of `address`; what is no such address, a folder say, as it is."""
    scheme, found, rest = address.partition("://")
    if not found:
        return address
    rest = re.split("[?#]", rest, maxsplit=1)[0]
    # A path of SQLite may hold an @; of other addresses everything before the last one is user and password.
    return f"{scheme}://{rest if rest.startswith('/') else rest.rpartition('@')[2]}"


def hidden(text: str, address: str) -> str:
    """`text`, say what a library says, without what is secret in `address`."""
    text = text.replace(address, shown(address))
    for secret in sorted(_secrets(address), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(address: str) -> set[str]:
    place, *after = re.split("[?#]", address.partition("://")[2], maxsplit=1)
    credentials = "" if place.startswith("/") else place.rpartition("@")[0].partition(":")[2]
    values = [pair.partition("=")[2] for pair in re.split("[&#]", "".join(after))]
    # Shorter ones are words such as a port, which the text may hold for other reasons.
    return {s for secret in (credentials, *values) if len(secret) > 3 for s in (secret, unquote(secret))}
