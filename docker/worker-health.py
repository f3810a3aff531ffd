"""Ends with status 0 while Prefect's server hears the worker whose name is given."""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.request

request = urllib.request.Request(
    f"{os.environ['PREFECT_API_URL']}/work_pools/expunge/workers/filter",
    data=b"{}",
    headers={
        "Content-Type": "application/json",
        "Authorization": "Basic " + base64.b64encode(os.environ["PREFECT_API_AUTH_STRING"].encode()).decode(),
    },
)
with urllib.request.urlopen(request, timeout=5) as answer:
    workers = json.load(answer)
sys.exit(not any(w["name"] == sys.argv[1] and w["status"] == "ONLINE" for w in workers))
