"""A certificate beside the version it speaks of, where whoever looks at the model finds it."""

from __future__ import annotations

from pathlib import Path

from expunge.system.files import read_json, read_manifest
from expunge.tracking import Version, connect, keep_certificate, version_of


def attach(folder: Path) -> Version | None:
    """Store the certificate in `folder` with the version that answers its request; None where none had to be made.

    Raises ManifestError if a file of it was changed, TrackingError if the version is not in the registry in use.
    """
    read_manifest(folder)
    body = read_json(folder / "certificate.json")["certificate"]
    if body["unlearning"] is None:
        return None
    made, client = body["unlearning"]["model"], connect()
    version = version_of(client, made["model"], made["version"])
    keep_certificate(client, version, folder, body["request"]["id"])
    return version
