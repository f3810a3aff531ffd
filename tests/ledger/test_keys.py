"""Tests of the signing key: how it is made, kept, read and refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from expunge.ledger.keys import ENV, PublicKey, public_key, signing_key
from expunge.system.errors import KeyFileError


def test_a_key_is_made_once_and_is_private(tmp_path):
    key = signing_key(tmp_path)
    files = sorted(p.name for p in (tmp_path / "records/keys").iterdir())
    assert files == ["signing.pem", "signing.pub.pem"]
    assert (tmp_path / "records/keys/signing.pem").stat().st_mode & 0o777 == 0o600
    assert signing_key(tmp_path).sign(b"x") == key.sign(b"x")
    assert public_key(tmp_path).fingerprint == key.public.fingerprint


def test_the_public_half_checks_and_cannot_sign(tmp_path):
    signature = signing_key(tmp_path).sign(b"content")
    public = PublicKey.read(tmp_path / "records/keys/signing.pub.pem")
    assert public.signed(b"content", signature)
    assert not public.signed(b"Content", signature) and not public.signed(b"content", "AAAA")
    assert not public.signed(b"content", "no base64") and not signing_key(tmp_path / "o").public.signed(
        b"content", signature
    )
    with pytest.raises(KeyFileError, match="not a public key"):
        PublicKey.read(tmp_path / "records/keys/signing.pem")
    with pytest.raises(KeyFileError, match="cannot be read"):
        PublicKey.read(tmp_path / "none.pem")


def test_no_key_is_made_to_check_with(tmp_path):
    with pytest.raises(KeyFileError, match="so there is no key to verify with"):
        public_key(tmp_path)
    assert not (tmp_path / "records").exists()
    key = signing_key(tmp_path)
    (tmp_path / "records/keys/signing.pem").unlink()  # the public key is enough to verify
    assert public_key(tmp_path).fingerprint == key.public.fingerprint


def test_the_environment_names_a_file_or_holds_the_key(tmp_path, monkeypatch):
    key = signing_key(tmp_path / "a")
    path = tmp_path / "a/records/keys/signing.pem"
    for value in (str(path), path.read_text()):
        monkeypatch.setenv(ENV, value)
        assert signing_key(tmp_path / "b").public.fingerprint == key.public.fingerprint
        assert public_key(tmp_path / "b").fingerprint == key.public.fingerprint
    assert not (tmp_path / "b").exists()
    monkeypatch.setenv(ENV, str(tmp_path / "gone.pem"))
    with pytest.raises(KeyFileError, match="no such file"):
        signing_key(tmp_path / "b")


def test_a_key_that_others_can_read_or_that_is_none_is_refused(tmp_path):
    signing_key(tmp_path)
    path = tmp_path / "records/keys/signing.pem"
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        signing_key(tmp_path)
    path.chmod(0o600)
    path.write_text("nothing")
    with pytest.raises(KeyFileError, match="not a private key"):
        signing_key(tmp_path)


def test_processes_that_start_at_once_agree_on_one_key(tmp_path):
    code = "import sys; from expunge.ledger.keys import signing_key; print(signing_key(sys.argv[1]).public.fingerprint)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != ENV}
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    assert len({p.communicate(timeout=300)[0] for p in started}) == 1
