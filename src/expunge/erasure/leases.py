"""Leases: whether the process that works on a batch still lives, also where clocks jump or two machines disagree.

The owner of a lease writes until when it holds, and renews that every BEAT_SECONDS. The wall clock decides only where
it can be right: a lease that seems to have expired, or that seems to hold for longer than any lease does, is watched
instead. A living owner renews it meanwhile, whatever any clock says.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from enum import Enum

LEASE_SECONDS = 600.0  # without renewal, a process on another host may take over after this time
BEAT_SECONDS = 60.0  # between renewals
WATCH_SECONDS = 1.5 * BEAT_SECONDS  # a living owner renews its lease within this time
TOLERANCE_SECONDS = 60.0  # by which the clocks of two machines may differ without a doubt


class Standing(Enum):
    """What is known of a lease."""

    held = "held"
    free = "free"
    doubtful = "doubtful"  # only watching tells


def owner_name() -> str:
    """Return `HOST:PID:RANDOM`, which names this process so that others on its host can check whether it is alive."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def expiry() -> float:
    """Return until when a lease holds that is taken or renewed now, in seconds since 1970."""
    return time.time() + LEASE_SECONDS


def standing(owner: str | None, until: float, mine: str) -> Standing:
    """Return what is known of the lease that `owner` holds until `until`, for the process named `mine`."""
    if owner is None or owner == mine or _dead(owner):
        return Standing.free
    left = until - time.time()
    return Standing.held if 0 < left <= LEASE_SECONDS + TOLERANCE_SECONDS else Standing.doubtful


def _dead(owner: str) -> bool:
    """Return whether the process is known to have ended, which can only be known on its own host.

    Called for other owners only: if the PID is our own, it was reused and its earlier process has ended.
    """
    host, pid, _ = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)  # signal 0 only checks whether the process exists
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
