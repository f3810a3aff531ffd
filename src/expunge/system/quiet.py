"""Keep the tools that Expunge uses from sending usage statistics."""

from __future__ import annotations

import os

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
}


def keep_quiet() -> None:
    """Set the environment variables that turn statistics off, where the user has not set them."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
