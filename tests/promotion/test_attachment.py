"""Test `attach`, which stores a certificate with the model version that it names and with the run of that version."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from expunge.promotion.attachment import attach
from expunge.system.errors import ManifestError, TrackingError
from expunge.system.files import staged_dir, write_json, write_manifest
from tests.promotion.conftest import NAME


def folder(home: Path, unlearning: dict | None) -> Path:
    """Write a certificate folder as an erasure does, with only the fields that `attach` reads, and return it."""
    out = home / "records/certificates/r1"
    with staged_dir(out) as tmp:
        write_json(tmp / "certificate.json", {"certificate": {"request": {"id": "r1"}, "unlearning": unlearning}})
        (tmp / "certificate.html").write_text("<p>done</p>")
        write_manifest(tmp, "test")
    return out


def test_a_certificate_is_stored_with_the_model_and_with_its_run(promoter, tmp_path):
    certificate = folder(tmp_path, {"model": {"model": NAME, "version": "2"}})
    for _ in range(2):  # Attaching again must change nothing.
        assert attach(certificate).version == "2"
    version = promoter.version("2")
    assert version.tags["certificate"] == "r1" and "certificate" not in promoter.version("1").tags
    stored = Path(mlflow.artifacts.download_artifacts(version.uri))
    assert (stored / "certificates/r1/certificate.html").read_text() == "<p>done</p>"
    found = promoter.client.list_artifacts(version.run_id, "certificates/r1")
    assert {f.path for f in found} >= {f"certificates/r1/certificate.{kind}" for kind in ("json", "html")}
    assert promoter.check(version) == []  # The served model is still the registered one.


def test_without_a_version_there_is_nothing_to_attach_to(promoter, tmp_path):
    assert attach(folder(tmp_path, None)) is None
    with pytest.raises(TrackingError, match="version 99"):
        attach(folder(tmp_path, {"model": {"model": NAME, "version": "99"}}))


def test_a_changed_certificate_is_not_stored(promoter, tmp_path):
    certificate = folder(tmp_path, {"model": {"model": NAME, "version": "1"}})
    (certificate / "certificate.html").write_text("<p>more</p>")
    with pytest.raises(ManifestError, match=r"certificate\.html"):
        attach(certificate)
