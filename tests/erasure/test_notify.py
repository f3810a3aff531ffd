"""Tests of the notices about closed requests, against a recipient on loopback that may fail or stay silent."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from expunge.erasure import notify
from expunge.erasure.requests import ErasureRequest
from expunge.erasure.states import State

REQUEST = ErasureRequest(
    "R-20260220-0a1b2c", "subjects", State.completed, 7, date(2026, 2, 20), 1, date(2026, 3, 20), True, "GDPR", 2, (),
    "data/requests/R-20260220-0a1b2c.csv", "hmac-sha256:d1", "B-1", "", False,
)  # fmt: skip


@pytest.fixture
def recipient(monkeypatch):
    """Run a server on loopback, and yield the lists of what it was sent and of the statuses it answers with.

    When the second list is empty, the server answers 204.
    """
    got, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.headers["Content-Type"], self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answers.pop(0) if answers else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(notify.ENV, f"http://127.0.0.1:{server.server_port}/hook?token=geheim")
    monkeypatch.setattr(notify, "PAUSES", (0.0, 0.0))
    yield got, answers
    server.shutdown()
    server.server_close()


def test_a_recipient_is_sent_each_request_and_its_outcome(recipient):
    got, _ = recipient
    assert notify.send(REQUEST, print)
    assert notify.send(replace(REQUEST, state=State.refused, reason="a duty to keep them"), print)
    assert [kind for kind, _ in got] == ["application/json"] * 2
    assert [json.loads(body) for _, body in got] == [
        {"event": "request.completed", "id": REQUEST.id, "state": "completed", "reason": ""},
        {"event": "request.refused", "id": REQUEST.id, "state": "refused", "reason": "a duty to keep them"},
    ]


def test_a_notice_is_sent_three_times_and_again_by_the_next_run(recipient):
    got, answers = recipient
    answers += [500, 503]
    assert notify.send(REQUEST, print) and len(got) == 3
    answers += [500] * 3
    messages: list[str] = []
    assert not notify.send(REQUEST, messages.append) and len(got) == 6
    assert "(it answered 500); the next run tries again" in messages[0] and "geheim" not in messages[0]


def test_a_recipient_that_is_away_or_slow_stops_nothing(monkeypatch):
    monkeypatch.setattr(notify, "PAUSES", ())
    monkeypatch.setattr(notify, "SECONDS", 0.2)
    with socket.socket() as deaf:  # the kernel accepts connections, but nothing answers them
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv(notify.ENV, f"http://127.0.0.1:{deaf.getsockname()[1]}/")
        assert not notify.send(REQUEST, print)
    assert not notify.send(REQUEST, print)  # the socket is closed, so the connection is refused
    monkeypatch.setenv(notify.ENV, "file:///etc/passwd")
    assert not notify.send(REQUEST, print)


def test_without_recipients_sending_succeeds(monkeypatch):
    monkeypatch.delenv(notify.ENV, raising=False)
    assert notify.send(REQUEST, print)
