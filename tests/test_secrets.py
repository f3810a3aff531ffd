"""Test that secrets from the environment and from addresses occur in no file and no message of the package.

Also test that only their owner can read keys and lists.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from expunge.data.tombstones import Tombstones
from expunge.erasure import notify
from expunge.erasure.database import ENV as REQUESTS_URL
from expunge.erasure.requests import Store
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.keys import ENV as SIGNING_KEY
from expunge.ledger.keys import signing_key
from expunge.ledger.ledger import Ledger
from expunge.system.addresses import hidden, shown
from expunge.system.errors import KeyFileError, RequestError, TrackingError
from expunge.tracking import connect, preflight
from tests.erasure.promoted_batch import finish, promoted
from tests.erasure.test_notify import REQUEST
from tests.pipeline import ENVIRONMENT
from tests.sweep import people_workspace

SECRET = "PLANTEDdr0wssaP"  # No encoding of an address changes these characters.
PEM = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
INSIDE = PEM.splitlines()[1]  # The key itself is between the first and the last line.
PLANTED = {
    SIGNING_KEY: PEM,
    notify.ENV: f"http://127.0.0.1:9/hook?token={SECRET}",
    "MLFLOW_TRACKING_USERNAME": "ann",
    "MLFLOW_TRACKING_PASSWORD": SECRET,
    "MLFLOW_TRACKING_TOKEN": SECRET,
    "PREFECT_API_AUTH_STRING": f"ann:{SECRET}",
    "AWS_ACCESS_KEY_ID": "ann",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "HF_TOKEN": SECRET,
    "PGPASSWORD": SECRET,
}


def holding(root: Path, *secrets: str) -> list[str]:
    """Return the files below `root` whose path or content contains one of `secrets`."""
    wanted = [s.encode() for s in secrets]
    files = (p for p in root.rglob("*") if p.is_file())
    return [str(p.relative_to(root)) for p in files if any(s in str(p).encode() + p.read_bytes() for s in wanted)]


def command(*arguments: str, cwd: Path, **environment: str) -> str:
    """Run a Python module in `cwd` and return its exit status, its output and its errors as one text."""
    known = {k: v for k, v in ENVIRONMENT.items() if not k.startswith(("EXPUNGE", "MLFLOW"))}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=known | environment, text=True, capture_output=True
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.mark.slow
def test_nothing_that_a_run_writes_holds_a_secret(copy, tmp_path):
    """Reports, run store, model registry and ledger are written with all secrets in the environment."""
    for stage in ("compare", "report", "register"):
        output = command(f"expunge.stages.{stage}", cwd=copy, **PLANTED)
        assert output.startswith("0 ") and SECRET not in output, output
    for arguments in (["audit"], ["ledger", "show"], ["request", "list", "--all"], ["show"], ["check"]):
        output = command("expunge", *arguments, cwd=copy, **PLANTED)
        assert SECRET not in output and INSIDE not in output and "Traceback" not in output, output
    away = {REQUESTS_URL: f"postgresql://ann:{SECRET}@127.0.0.1:9/requests"}
    output = command("expunge", "request", "list", cwd=tmp_path, **away)
    assert output.startswith("2 ") and SECRET not in output and "Traceback" not in output, output
    assert (copy / "mlflow.db").stat().st_size > 0 and not holding(copy, SECRET, INSIDE)


def test_nothing_that_an_erasure_writes_holds_a_secret(tmp_path, monkeypatch, capsys):
    """Certificates, ledger and request store are written. No recipient answers, so a message names its address."""
    root = people_workspace.workspace(tmp_path / "workspace", [5], rows=96, people=24, shard=24)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(notify, "PAUSES", ())
    url = f"sqlite:///{root / 'records/requests.db'}"
    store = Store.open(url)
    promoted(store, root)
    output: list[str] = []
    with chdir(root):
        from expunge.erasure.lifecycle import Lifecycle
        from tests.erasure.promoted_batch import TODAY, no_pipeline

        runner = Lifecycle(store, Ledger("ledger.jsonl"), who="nightly", pipeline=no_pipeline, log=output.append)
        assert runner.advance(TODAY).state == "completed"
    store.engine.dispose()
    assert finish(root, url) == "nothing to do"
    assert any("127.0.0.1): could not be notified of" in line for line in output)
    assert SECRET not in "".join([*output, *capsys.readouterr()]) and not holding(root, SECRET, INSIDE)


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://ann:{SECRET}@127.0.0.1:9/requests",
        f"postgresql://127.0.0.1:9/requests?user=ann&password={SECRET}",
        f"postgresql://ann:{SECRET}@/requests?host=127.0.0.1&port=9",
        f"nonsense://ann:{SECRET}@127.0.0.1/requests",
        f"postgresql+nodriver://ann:{SECRET}@127.0.0.1/requests",
        f"ann:{SECRET}",
        f"postgresql://ann:{SECRET}@127.0.0.1:port/requests",
    ],
)
def test_the_password_of_the_request_store_is_not_shown(address):
    with pytest.raises(RequestError) as refused:
        Store.open(address)
    output = str(refused.value)
    assert SECRET not in output and ("the request store" in output or REQUESTS_URL in output)


@pytest.mark.parametrize(
    "address",
    [
        f"http://ann:{SECRET}@127.0.0.1:9",
        f"nonsense://ann:{SECRET}@127.0.0.1/runs",
        f"http://127.0.0.1:9/?token={SECRET}",
    ],
)
def test_the_password_of_the_run_store_is_not_shown(address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for ask in (preflight, connect):
        with pytest.raises(TrackingError) as refused:
            ask()
        assert SECRET not in str(refused.value) and "127.0.0.1" in str(refused.value)


def test_what_a_library_says_of_an_address_is_shown_without_its_secrets():
    """MLflow tries to reach a database for minutes, so the test uses the text of its final error."""
    for address in (
        f"postgresql://ann:{SECRET}@db.local/runs",
        f"postgresql://db.local/runs?user=ann&password={SECRET}",
    ):
        report = hidden(f"could not connect to {address} as ann with {SECRET}", address)
        assert report == "could not connect to postgresql://db.local/runs as ann with ***"
    assert shown("sqlite:////home/ann@work/mlflow.db") == "sqlite:////home/ann@work/mlflow.db"
    assert shown(f"http://ann:{SECRET}@host:5000/a#{SECRET}") == "http://host:5000/a" and shown("mlruns") == "mlruns"
    assert hidden("sqlite:///mlflow.db is locked", "sqlite:///mlflow.db") == "sqlite:///mlflow.db is locked"


@pytest.mark.parametrize(
    "address", [f"http://127.0.0.1:9/a b?token={SECRET}", f"http://[::1?token={SECRET}", f"http://127.0.0.1:x{SECRET}/"]
)
def test_the_address_of_recipients_is_not_shown(address, monkeypatch):
    monkeypatch.setenv(notify.ENV, address)
    monkeypatch.setattr(notify, "PAUSES", ())
    output: list[str] = []
    assert not notify.send(REQUEST, output.append)
    assert len(output) == 1 and notify.ENV in output[0] and SECRET not in output[0]


@pytest.mark.parametrize(
    "given",
    [SECRET, INSIDE, PEM.replace("-----", ""), f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"],
    ids=["a word", "without its lines", "without dashes", "no key"],
)
def test_a_key_that_cannot_be_read_is_not_shown(given, tmp_path, monkeypatch):
    monkeypatch.setenv(SIGNING_KEY, given)
    with pytest.raises(KeyFileError) as refused:
        signing_key(tmp_path)
    assert SIGNING_KEY in str(refused.value)
    assert not any(s in str(refused.value) for s in (SECRET, INSIDE))


def test_keys_and_lists_are_their_owners_alone(tmp_path):
    """The umask of the process would let everybody read new files."""
    before = os.umask(0)
    try:
        root = people_workspace.workspace(tmp_path / "workspace", [5], rows=48, people=24, shard=24)
        store = Store.open(f"sqlite:///{root / 'records/requests.db'}")
        store.engine.dispose()
        signing_key(root)
        Tombstones.open(root / "data/tombstones")
        ForgottenRows(root / "data/forgotten", "sha256:" + "0" * 64, ["a"]).register()
    finally:
        os.umask(before)
    for name in ("records/requests.db", "records/keys/signing.pem", "data/tombstones/key", "data/forgotten/key"):
        assert (root / name).stat().st_mode & 0o777 == 0o600, name
    (root / "records/keys/signing.pem").chmod(0o640)
    with pytest.raises(KeyFileError, match="others can read this private key; run `chmod 600"):
        signing_key(root)
