"""HMACs of what a request asks for. Once its key is destroyed, no guess can be tested against them."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable


def hmac_of(value: str, key: bytes) -> str:
    """Return the HMAC-SHA256 of `value` in hexadecimal."""
    return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()


def text_of_values(values: Iterable[str]) -> str:
    """Return ids, subjects or classes as one text, which is independent of their order."""
    return json.dumps(sorted(values), ensure_ascii=False, separators=(",", ":"))


def digest_of_values(values: Iterable[str], key: bytes) -> str:
    """Return `hmac-sha256:...` of ids, subjects or classes, independent of their order."""
    return "hmac-sha256:" + hmac_of(text_of_values(values), key)
