"""Test `expunge watch --listen` with a real tracking server, whose webhook wakes it."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from expunge.cli import webhook_settings
from expunge.commands.watch import watch
from expunge.ledger.forgotten import ForgottenRows
from expunge.promotion.deliveries import Listener
from expunge.promotion.waking import SECRET, Waker
from expunge.system.errors import TrackingError
from expunge.tracking import CHAMPION
from tests.promotion.conftest import NAME, REQUESTS, ROWS
from tests.servers import end, free_port, tracking_server

ROOT = Path(__file__).parents[2]
KEY = "the-secret-of-this-test-only"


@pytest.fixture
def place(shelf, tmp_path, monkeypatch) -> Path:
    """Return a workspace that knows the forgotten rows, with a copy of the registry's database for a server."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(shelf.database, tmp_path / "mlflow.db")
    shutil.copy(ROOT / "params.demo.yaml", tmp_path / "params.yaml")
    for name, rows in ROWS.items():
        ForgottenRows(tmp_path / "data/forgotten", REQUESTS[name], rows).keep(REQUESTS[name])
    return tmp_path


@contextmanager
def watching(uri: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, SECRET: KEY, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "expunge", "watch", "--model", NAME, *options]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                end(process)


def answered(process: subprocess.Popen[str], client: MlflowClient, version: str) -> tuple[float, str]:
    """Move the alias as a person does, and return the seconds until the watcher answers, and its answer."""
    start = time.monotonic()
    client.set_registered_model_alias(NAME, CHAMPION, version)
    line = process.stdout.readline()
    return time.monotonic() - start, line


@pytest.mark.slow
def test_a_move_is_answered_at_once_with_a_webhook_and_at_the_next_look_without(place, record_property):
    """The webhook is removed at the end, and the database of the server never holds the secret as text.

    Without a delivery the first watcher would look after an hour.
    """
    with tracking_server(place, environment=webhook_settings()) as uri:
        client = MlflowClient(uri)
        with watching(uri, "--listen", "127.0.0.1:0", "--every", "3600") as process:
            assert "a moved alias is checked at once" in process.stdout.readline()
            (webhook,) = client.list_webhooks()
            by_webhook, passed = answered(process, client, "1")
            again, refused = answered(process, client, "5")
            process.send_signal(signal.SIGTERM)
            assert process.wait(300) == 128 + signal.SIGTERM and list(client.list_webhooks()) == []
        assert f"{NAME}: version 1 passes the gates and is the champion" in passed
        assert "version 1 is the champion again" in refused
        assert webhook.url.startswith("http://127.0.0.1:") and KEY.encode() not in (place / "mlflow.db").read_bytes()
        with watching(uri, "--every", "8") as process:
            answered(process, client, "5")  # this includes the start of the process
            by_clock, refused = answered(process, client, "5")
        assert "version 1 is the champion again" in refused
    record_property("seconds", {"webhook": [by_webhook, again], "polling every 8 s": by_clock})
    assert max(by_webhook, again) < 3600


@pytest.mark.long
@pytest.mark.slow
def test_a_server_that_allows_no_such_webhook_is_polled_and_the_line_says_why(place):
    with tracking_server(place) as uri, watching(uri, "--listen", "127.0.0.1:0", "--every", "1") as process:
        said = process.stdout.readline()
        assert "no webhook, so the aliases are checked every 1 seconds" in said and "`expunge ui --webhooks`" in said
        assert "version 1 passes the gates" in answered(process, MlflowClient(uri), "1")[1]


@pytest.mark.long
@pytest.mark.slow
def test_a_watcher_that_is_not_reached_polls_and_outlives_its_server(place, monkeypatch):
    """`--webhook-url` names a port where nobody listens, so that the test delivery does not arrive."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    settings = {**webhook_settings(), "MLFLOW_WEBHOOK_REQUEST_MAX_RETRIES": "0"}
    options = ("--listen", "127.0.0.1:0", "--webhook-url", f"http://127.0.0.1:{free_port()}/", "--every", "1")
    with ExitStack() as both, ExitStack() as server:
        uri = server.enter_context(tracking_server(place, environment=settings))
        process = both.enter_context(watching(uri, *options))
        assert "no webhook, so the aliases are checked every 1 seconds" in process.stdout.readline()
        assert "version 1 passes the gates" in answered(process, MlflowClient(uri), "1")[1]
        server.close()
        assert "not checked, will be tried again" in process.stdout.readline() and process.poll() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"webhook_url": "https://example.org/"}, "--webhook-url: give --listen too"),
        ({"listen": "127.0.0.1:0", "once": True}, "a single check waits for no deliveries"),
        ({"listen": "0.0.0.0:8600"}, "only on a loopback address"),
    ],
)
def test_options_that_do_not_go_together_are_refused(place, options, words):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrackingError, match=words):
        watch(**options)
    signal.signal(signal.SIGTERM, handler)


def test_a_database_sends_no_webhooks(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
    said: list[str] = []
    with Listener("127.0.0.1:0", KEY) as listener:
        Waker(listener, listener.url, KEY, 15, said.append).start()
    assert len(said) == 1 and "a database sends no webhooks; set MLFLOW_TRACKING_URI" in said[0]


def test_a_server_without_webhooks_is_polled(place, monkeypatch):
    """MLflow before 3.3 answers 404 there. Its health is all that this server has besides."""

    class Old(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    old = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Old)
    threading.Thread(target=old.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{old.server_address[1]}")
    said: list[str] = []
    with Listener("127.0.0.1:0", KEY) as listener:
        Waker(listener, listener.url, KEY, 15, said.append).start()
    old.shutdown()
    assert len(said) == 1 and "no webhook" in said[0]
