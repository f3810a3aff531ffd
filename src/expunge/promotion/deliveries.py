"""Receive the deliveries of a registry webhook of MLflow on a loopback address.

A delivery only says that it is time to look at the aliases. Its content is never read: the check asks the registry
itself. So the worst that a forged or repeated delivery could cause is a check too many, and both are refused.

The signature follows Standard Webhooks (https://www.standardwebhooks.com): HMAC-SHA256 over `id.timestamp.body`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from expunge.system.errors import TrackingError

# As in mlflow.webhooks.constants, which would import all of MLflow; a test compares them.
DELIVERY_ID, TIMESTAMP, SIGNATURE = "X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature"
SCHEME = "v1"
TOLERANCE = 300  # seconds between the timestamp of a delivery and our clock, as Standard Webhooks recommends
MOST_BYTES = 64 * 1024  # a delivery of MLflow has a few hundred bytes
MOST_CONNECTIONS = 16
READ_SECONDS = 5.0
_ID, _SECONDS = re.compile(r"[\w-]{1,64}", re.ASCII), re.compile(r"[0-9]{1,12}")


@dataclass
class Deliveries:
    """Accepts a delivery once, if it was signed with `secret` within the last five minutes."""

    secret: str = field(repr=False)
    _seen: dict[str, float] = field(default_factory=dict, repr=False)  # id of a delivery -> when it can be forgotten
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def refusal(self, headers: Mapping[str, str], body: bytes, now: float) -> str | None:
        """Return why a delivery is refused, or None and remember it. `now`: seconds since the epoch."""
        name, sent = headers.get(DELIVERY_ID, ""), headers.get(TIMESTAMP, "")
        if not _ID.fullmatch(name) or not _SECONDS.fullmatch(sent):
            return "no delivery id or no timestamp"
        expected = signature(self.secret, name, sent, body)
        if not hmac.compare_digest(expected.encode(), headers.get(SIGNATURE, "").encode("utf-8", "replace")):
            return "the signature does not fit"
        if abs(now - int(sent)) > TOLERANCE:
            return "the timestamp is more than five minutes away"
        with self._lock:
            self._seen = {known: until for known, until in self._seen.items() if until >= now}
            if name in self._seen:
                return "delivered before"
            self._seen[name] = int(sent) + TOLERANCE
        return None


def signature(secret: str, name: str, sent: str, body: bytes) -> str:
    """Return the signature of a delivery, as MLflow writes it in its header."""
    digest = hmac.new(secret.encode(), f"{name}.{sent}.".encode() + body, hashlib.sha256).digest()
    return f"{SCHEME},{base64.b64encode(digest).decode()}"


class Listener:
    """Listens on `place` and notes accepted deliveries; a context manager.

    Attributes:
        url: address of the listener, with the port that the system chose if port 0 was given.
        count: number of deliveries accepted so far.
    """

    def __init__(self, place: str, secret: str) -> None:
        """`place`: `ADDRESS:PORT`, of a loopback address. Raises TrackingError if it cannot be listened on."""
        address = loopback(place)
        self.count = 0
        self._deliveries = Deliveries(secret)
        self._woken = threading.Event()
        try:
            self._server = _Server(address, _Handler)
        except OSError as e:
            raise TrackingError(f"--listen {place}: the port cannot be used ({e.strerror}); choose another") from None
        self._server.listener = self
        host, port = self._server.server_address[:2]
        self.url = f"http://[{host!s}]:{port}/" if ":" in str(host) else f"http://{host!s}:{port}/"
        serve = partial(self._server.serve_forever, poll_interval=0.05)  # It also is how long the end may take.
        self._thread = threading.Thread(target=serve, name="deliveries", daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def receive(self, headers: Mapping[str, str], body: bytes) -> str | None:
        """Return why a delivery is refused, or None and end the `wait` of the watcher."""
        refused = self._deliveries.refusal(headers, body, time.time())
        if refused is None:
            self.count += 1
            self._woken.set()
        return refused

    def wait(self, seconds: float) -> bool:
        """Wait for a delivery, and return whether one came. Deliveries since the last call count as one."""
        woken = self._woken.wait(seconds)
        self._woken.clear()
        return woken


def loopback(place: str) -> tuple[str, int]:
    """Split `ADDRESS:PORT`. Raises TrackingError if it is not a loopback address with a port."""
    host, _, port = place.rpartition(":")
    try:
        address, number = ipaddress.ip_address(host.strip("[]")), int(port)
    except ValueError:
        raise TrackingError(f"--listen {place}: expected ADDRESS:PORT, as in 127.0.0.1:8600") from None
    if not address.is_loopback or not 0 <= number < 2**16:
        raise TrackingError(
            f"--listen {place}: the watcher listens without encryption, so only on a loopback address, as in "
            "127.0.0.1:8600; for a server elsewhere, put a proxy with TLS before it and name that with --webhook-url"
        )
    return str(address), number


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    listener: Listener

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no traceback: a connection that breaks off is the sender's matter, and MLflow sends again."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = READ_SECONDS
    server_version, sys_version = "expunge", ""

    def do_POST(self) -> None:
        """Answer 204 to an accepted delivery, 4xx to any other."""
        length = self.headers.get("Content-Length", "")
        if not _SECONDS.fullmatch(length):
            self.send_error(411)
        elif int(length) > MOST_BYTES:
            self.send_error(413)
        else:
            signed = {name: self.headers.get(name, "") for name in (DELIVERY_ID, TIMESTAMP, SIGNATURE)}
            refused = self.server.listener.receive(signed, self.rfile.read(int(length)))
            self.send_response(204 if refused is None else 403, refused)
            self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a scanner must not fill the watcher's output."""
