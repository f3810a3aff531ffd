"""Secrets of random bytes in files that only their owner can read, made on first use."""

from __future__ import annotations

import base64
import os
import re
import secrets
from pathlib import Path

from expunge.system.errors import KeyFileError
from expunge.system.files import create_durable, others_can_read

BYTES = 32
SECRET = re.compile(r"[!-~]{24,256}")  # printable ASCII without spaces, of the strength that Standard Webhooks asks for


def secret_of(path: Path, variable: str) -> str:
    """Return the secret of the environment variable `variable`, else that of the file `path`, made on first use.

    A new secret is 32 random bytes in URL-safe base64, which is also the form of a Fernet key. Raises KeyFileError if
    the secret has an unfit form or if other users can read its file. No message quotes the secret.
    """
    if (given := os.environ.get(variable)) is not None:
        return _checked(given, f"{variable} in the environment")
    if not path.is_file():
        create_durable(path, base64.urlsafe_b64encode(secrets.token_bytes(BYTES)) + b"\n")
    if others_can_read(path):
        raise KeyFileError(f"{path}: others can read this secret; remove the file, and a new secret is made")
    return _checked(path.read_text("utf-8", errors="replace").strip(), str(path))


def _checked(secret: str, where: str) -> str:
    if not SECRET.fullmatch(secret):
        raise KeyFileError(f"{where}: a secret has 24 to 256 printable ASCII characters and no spaces")
    return secret
