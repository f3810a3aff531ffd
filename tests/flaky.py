"""An HTTP proxy that forwards requests to a server and makes chosen ones fail."""

from __future__ import annotations

import http.client
import http.server
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

# What can happen to a request. The proxy answers a busy one with 503, as a server with a locked database does. A lost
# one is carried out, but its answer never arrives. A dead one is refused, and so are all later ones until `back` is
# called.
BUSY, LOST, DEAD = "busy", "lost", "dead"
HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "host"}


class Flaky(http.server.ThreadingHTTPServer):
    """A proxy to `target`. `fate(number)` returns what happens to the request of that number, counted from 1."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.counter = itertools.count(1)
        self.back()

    def plan(self, fate: Callable[[int], str | None]) -> None:
        self.fate, self.counter, self.dead, self.seen = fate, itertools.count(1), False, 0

    def back(self) -> None:
        """Forward every request from now on."""
        self.plan(lambda number: None)

    def handle_error(self, *_: object) -> None:
        """Print nothing, because clients are expected to close connections early."""


@contextmanager
def flaky(target: str) -> Iterator[Flaky]:
    with Flaky(target) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Flaky

    def forward(self) -> None:
        asked = self.server
        asked.seen = number = next(asked.counter)
        fate = DEAD if asked.dead else asked.fate(number)
        asked.dead = fate == DEAD
        body = self._body()
        if fate == DEAD:
            self._hang_up()
        elif fate == BUSY:
            self._answer(503, {"Content-Type": "application/json"}, b'{"error_code": "TEMPORARILY_UNAVAILABLE"}')
        else:
            there = http.client.HTTPConnection(asked.target.hostname, asked.target.port, timeout=300)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
            there.request(self.command, self.path, body, headers)
            answer = there.getresponse()
            content = answer.read()
            there.close()
            if fate == LOST:
                self._hang_up()
            else:
                self._answer(answer.status, {k: v for k, v in answer.getheaders() if k.lower() not in HOP}, content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = forward

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self) -> None:
        """Reset the connection, as happens when the process behind it is killed."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
