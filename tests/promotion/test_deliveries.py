"""Test which deliveries of a webhook the watcher accepts, over real connections on loopback."""

from __future__ import annotations

import http.client
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow.webhooks import constants
from mlflow.webhooks.delivery import _generate_hmac_signature

from expunge.promotion import deliveries
from expunge.promotion.deliveries import DELIVERY_ID, SIGNATURE, TIMESTAMP, Deliveries, Listener, loopback, signature
from expunge.system.errors import TrackingError

SECRET = "a secret of the test".replace(" ", "-") * 2
BODY = b'{"entity": "model_version_alias", "action": "created"}'


def signed(name: str = "d-1", now: float | None = None, body: bytes = BODY, secret: str = SECRET) -> dict[str, str]:
    sent = str(int(time.time() if now is None else now))
    return {DELIVERY_ID: name, TIMESTAMP: sent, SIGNATURE: signature(secret, name, sent, body)}


def post(listener: Listener, headers: dict[str, str], body: bytes = BODY) -> int:
    connection = http.client.HTTPConnection(listener.url.split("/")[2], timeout=20)
    try:
        connection.request("POST", "/", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture
def listener():
    with Listener("127.0.0.1:0", SECRET) as made:
        yield made


def test_names_and_signature_are_those_of_mlflow():
    assert constants.WEBHOOK_DELIVERY_ID_HEADER == DELIVERY_ID and constants.WEBHOOK_TIMESTAMP_HEADER == TIMESTAMP
    assert constants.WEBHOOK_SIGNATURE_HEADER == SIGNATURE
    assert _generate_hmac_signature(SECRET, "d", "17", BODY.decode()) == signature(SECRET, "d", "17", BODY)


def test_a_signed_delivery_ends_the_pause_and_several_count_as_one(listener):
    assert not listener.wait(0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(listener.wait, 30)
        assert post(listener, signed()) == 204 and waiting.result(30)
    assert [post(listener, signed(f"d-{i}")) for i in range(2, 5)] == [204] * 3
    assert listener.wait(0) and not listener.wait(0) and listener.count == 4


@pytest.mark.parametrize(
    "headers",  # functions, so that a delivery is signed when the test runs, and is refused for nothing but its fault
    [
        lambda: {},
        lambda: {**signed(), SIGNATURE: ""},
        lambda: {**signed(), SIGNATURE: "v1,AAAA"},
        lambda: {**signed(), DELIVERY_ID: "d-2"},
        lambda: {**signed(), TIMESTAMP: "1"},
        lambda: {**signed(), TIMESTAMP: "now"},
        lambda: {**signed(), DELIVERY_ID: "d 1"},
        lambda: signed(secret="another secret"),
        lambda: signed(body=b"{}"),
        lambda: signed(now=time.time() - 900),
        lambda: signed(now=time.time() + 900),
    ],
)
def test_unsigned_changed_and_old_deliveries_are_refused(listener, headers):
    assert post(listener, headers()) == 403
    assert listener.count == 0 and not listener.wait(0)


def test_a_delivery_is_accepted_once(listener):
    headers = signed()
    assert [post(listener, headers) for _ in range(3)] == [204, 403, 403] and listener.count == 1


def test_a_delivery_is_remembered_for_as_long_as_its_timestamp_is_accepted():
    accepts, ahead = Deliveries(SECRET), signed(now=1_300)
    assert accepts.refusal(ahead, BODY, 1_000) is None
    assert accepts.refusal(ahead, BODY, 1_600) == "delivered before"
    assert accepts.refusal(ahead, BODY, 1_601) == "the timestamp is more than five minutes away"
    assert accepts.refusal(signed("d-2", 1_700), BODY, 1_700) is None and list(accepts._seen) == ["d-2"]
    assert SECRET not in repr(accepts)


def test_a_large_body_is_not_read_and_one_without_length_is_refused(listener):
    host, port = listener.url.split("/")[2].split(":")
    for line, status in ((f"Content-Length: {deliveries.MOST_BYTES + 1}", b"413"), ("A: b", b"411")):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())
            assert connection.recv(100).split()[1] == status
    assert post(listener, signed(body=b"x" * deliveries.MOST_BYTES), b"x" * deliveries.MOST_BYTES) == 204


@pytest.mark.slow
def test_silent_connections_keep_no_delivery_out_for_long(listener, monkeypatch):
    monkeypatch.setattr(deliveries._Handler, "timeout", 0.5)
    host, port = listener.url.split("/")[2].split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(deliveries.MOST_CONNECTIONS)]
    time.sleep(2)
    assert post(listener, signed()) == 204
    for connection in silent:
        connection.close()


@pytest.mark.parametrize("place", ["0.0.0.0:8600", "192.168.1.2:8600", "[::]:8600", "127.0.0.1:70000"])
def test_it_listens_on_loopback_only(place):
    with pytest.raises(TrackingError, match="only on a loopback address"):
        Listener(place, SECRET)


@pytest.mark.parametrize("place", ["8600", "localhost", "localhost:8600", "127.0.0.1:", ""])
def test_an_unreadable_place_is_refused(place):
    with pytest.raises(TrackingError, match="expected ADDRESS:PORT"):
        loopback(place)


def test_a_busy_port_is_refused_in_one_line(listener):
    with pytest.raises(TrackingError, match="the port cannot be used"):
        Listener(listener.url.split("/")[2], SECRET)
