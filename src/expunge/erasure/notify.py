"""Tell the recipients that a request is final: a POST of JSON to `EXPUNGE_WEBHOOK_URL`, where that is set.

Delivered at least once: a process may die between the answer and writing it down. `id` tells repetitions apart.
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
from expunge.system.addresses import hidden

ENV = "EXPUNGE_WEBHOOK_URL"
SECONDS = 5.0
PAUSES = (0.5, 2.0)  # between tries; the next run tries again


def message(request: ErasureRequest) -> dict[str, str]:
    """What a recipient is told: nothing of who or what was erased."""
    return {"event": f"request.{request.state}", "id": request.id, "state": request.state, "reason": request.reason}


def send(request: ErasureRequest, log: Callable[[str], None]) -> bool:
    """Whether the recipients know now; true as well where none are named. A recipient that is away stops nothing."""
    url = os.environ.get(ENV)
    if not url:
        return True
    if not url.startswith(("http://", "https://")):
        log(f"{ENV}: not an address that begins with http:// or https://; nobody was told of {request.id}")
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
        except (ValueError, HTTPException):  # what they say holds the address
            why = "the address cannot be used"
        if pause is not None:
            time.sleep(pause)
    # The address may hold a secret.
    log(f"{ENV} ({_host(url)}): not told of {request.id}, {why}; the next run tries again")
    return False


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "no host"
    except ValueError:
        return "no address"
