"""Ray: a cluster that is there, or one on this machine for the length of a run. Ray is imported here alone, and only
when it is asked for.

All machines see the same files under the same paths, and have the same version of this package.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from expunge.system.errors import ConfigError, ExpungeError
from expunge.system.processors import cores
from expunge.system.progress import log_message

STARTS = 3


def ray_module() -> Any:
    """Raises ConfigError where Ray is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError("extract.engine is ray, and Ray is not installed; pip install 'expunge[ray]'") from None
    return ray


@contextmanager
def cluster(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    """The cluster at `address`; without one a cluster of this machine, with at least as many processors as `workers`.

    Raises ConfigError where nobody answers.
    """
    if address is None:
        _start_here(ray, max(cores(), workers or 1))
    else:
        check_address(address)
        ray.init(address=address, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def get(ray: Any, reference: Any) -> Any:
    """The answer of a worker; its own errors as they were raised there."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, ExpungeError):
            raise e.cause from None
        raise


def check_address(address: str) -> None:
    """Ray itself would try for minutes. Raises ConfigError where nobody listens."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=10):
            pass
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"extract.address: no Ray cluster answers at {address!r} ({e}); give host:port as 'ray start' says it"
        ) from None


def _start_here(ray: Any, cpus: int) -> None:
    """A cluster on this machine. Ray gives its own processes 30 seconds, too few where the machine is busy."""
    for attempt in range(STARTS):
        try:
            # "local": a cluster of another run on this machine is not joined.
            ray.init("local", num_cpus=cpus, include_dashboard=False, logging_level=logging.WARNING)
            return
        except Exception as e:  # Ray raises nothing narrower
            ray.shutdown()
            if "timed out" not in str(e) or attempt == STARTS - 1:
                raise
            log_message("Ray took too long to start; once more")
