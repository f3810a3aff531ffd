"""Notify the recipients that a request is final, by a POST of JSON to `EXPUNGE_WEBHOOK_URL` if that is set.

Delivery is at least once: the process may die between the response and its record. Recipients recognise a repetition by
its `id`.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from urllib.parse import urlsplit

from expunge.erasure.requests import ErasureRequest
from expunge.system.addresses import hidden, is_http

ENV = "EXPUNGE_WEBHOOK_URL"
SECONDS = 5.0  # timeout of one attempt
PAUSES = (0.5, 2.0)  # seconds between attempts; after the last one, the next run tries again


def message(request: ErasureRequest) -> dict[str, str]:
    """Return the JSON body. It does not say who or what was erased."""
    return {"event": f"request.{request.state}", "id": request.id, "state": request.state, "reason": request.reason}


def send(request: ErasureRequest, log: Callable[[str], None]) -> bool:
    """Return whether the recipients were notified; True as well if no URL is set. Failures are logged, not raised."""
    url = os.environ.get(ENV)
    if not url:
        return True
    if not is_http(url):
        log(f"{ENV}: nobody was notified of {request.id}, because the address must begin with http:// or https://")
        return False
    body, why = json.dumps(message(request)).encode(), ""
    for pause in (*PAUSES, None):
        try:
            post = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
            with urllib.request.urlopen(post, timeout=SECONDS):
                return True
        except urllib.error.HTTPError as e:
            why = f"it answered {e.code}"
        except OSError as e:
            why = hidden(str(getattr(e, "reason", e)), url)
        except (ValueError, HTTPException):  # their messages contain the address
            why = "the address cannot be used"
        if pause is not None:
            time.sleep(pause)
    # Only the host is logged: the rest of the address may contain a secret.
    log(f"{ENV} ({_host(url)}): could not be notified of {request.id} ({why}); the next run tries again")
    return False


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "no host"
    except ValueError:
        return "no address"
