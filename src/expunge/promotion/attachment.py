"""Attach a certificate to the registered version that it describes."""

from __future__ import annotations

from pathlib import Path

from expunge.system.files import read_json, read_manifest
from expunge.tracking import Version, connect, keep_certificate, version_of


def attach(folder: Path) -> Version | None:
    """Store the certificate in `folder` with the version that it names, and return that version.

    Returns None if the request needed no new version. Raises ManifestError if a file of the certificate was changed,
    and TrackingError if the version is not in the registry in use.
    """
    read_manifest(folder)
    body = read_json(folder / "certificate.json")["certificate"]
    if body["unlearning"] is None:
        return None
    model, client = body["unlearning"]["model"], connect()
    version = version_of(client, model["model"], model["version"])
    keep_certificate(client, version, folder, body["request"]["id"])
    return version
