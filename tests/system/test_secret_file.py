"""Test that a secret is made once, is readable by its owner only, and never appears in a message."""

from __future__ import annotations

import base64
import stat

import pytest

from expunge.system.errors import KeyFileError
from expunge.system.secret_file import secret_of

VARIABLE = "EXPUNGE_TEST_SECRET"


def test_a_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    path = tmp_path / "keys" / "own.secret"
    first = secret_of(path, VARIABLE)
    assert secret_of(path, VARIABLE) == first and len(base64.urlsafe_b64decode(first)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret_of(tmp_path / "other", VARIABLE) != first


def test_the_environment_goes_before_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "a" * 24)
    assert secret_of(tmp_path / "own.secret", VARIABLE) == "a" * 24 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["", "hunter2", "x" * 257, "with a space, which is not allowed", "ünprintable" * 5])
def test_an_unfit_secret_is_refused_and_not_quoted(tmp_path, monkeypatch, given):
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(KeyFileError, match=f"{VARIABLE} in the environment: a secret has 24") as refused:
        secret_of(tmp_path / "own.secret", VARIABLE)
    assert not given or given not in str(refused.value)


def test_a_secret_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "own.secret"
    secret = secret_of(path, VARIABLE)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="others can read") as refused:
        secret_of(path, VARIABLE)
    assert secret not in str(refused.value)
