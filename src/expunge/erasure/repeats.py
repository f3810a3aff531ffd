"""Find the open request that asks for the same as a new one, at a cost that does not grow with their number.

Every request has a key of its own, so digests of two requests cannot be compared. The mark of an open request is an
HMAC under one key of the store. It is deleted together with the request's key, when the request is final.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from expunge.erasure.database import MARKS, REQUESTS, STORE_KEY
from expunge.erasure.digests import hmac_of, text_of_values
from expunge.system.errors import RequestError


def mark_of(c: Connection, kind: str, values: Sequence[str]) -> str:
    """Return the mark of a request of this kind for `values`, which is independent of their order."""
    key = bytes(c.execute(select(STORE_KEY.c.key)).scalar_one())
    return hmac_of(f"{kind}\n{text_of_values(values)}", key)


def refuse_repeated(c: Connection, mark: str) -> None:
    """Raise RequestError if an open request has this mark."""
    wanted = select(REQUESTS.c.id, REQUESTS.c.received, REQUESTS.c.state).join(MARKS).where(MARKS.c.mark == mark)
    if other := c.execute(wanted).first():
        raise RequestError(
            f"request {other.id}, received {other.received}, asks for the same and is {other.state}; nothing was added"
        )


def keep_mark(c: Connection, request: str, mark: str) -> None:
    """Store the mark of a new request. Raises RequestError if somebody else stored it since `refuse_repeated`."""
    try:
        c.execute(insert(MARKS).values(request=request, mark=mark))
    except IntegrityError:
        raise RequestError("somebody else added a request for the same at this moment; nothing was added") from None
