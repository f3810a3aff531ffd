"""Wake the watcher when the alias moves: by a webhook of the tracking server, or by the clock where it has none.

Whether deliveries arrive is not assumed but tested: at the start, and after each minute without one, the server is
asked to send one, which has to arrive here. While they do not arrive, the watcher looks at its usual interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from expunge.promotion.deliveries import Listener
from expunge.system.addresses import hidden, shown
from expunge.system.errors import TrackingError
from expunge.system.paths import KEYS
from expunge.system.secret_file import secret_of
from expunge.tracking import MlflowClient, connect, preflight
from expunge.tracking.webhooks import deliver_for_test, drop_webhook, register_webhook

SECRET, SECRET_FILE = "EXPUNGE_WATCH_SECRET", KEYS / "watch.secret"
# The longest pause while deliveries arrive. A worker of MLflow's server remembers for as long which webhooks there are
# (MLFLOW_WEBHOOK_CACHE_TTL), so that a new one may miss the moves of its first minute.
SAFETY_NET = 60.0
RETRY = 600.0  # seconds until a webhook that did not work is tried again; an attempt can take a minute


class Waker:
    """Pauses between two checks until an alias is moved, or for `every` seconds while no webhook works."""

    def __init__(
        self, listener: Listener, url: str, secret: str, every: float, say: Callable[[str], object] = print
    ) -> None:
        """`url`: where the server reaches the listener. `say` is told when deliveries begin and cease to arrive."""
        self._listener, self._url, self._secret, self._every, self._say = listener, url, secret, every, say
        self._registered: tuple[MlflowClient, str] | None = None  # the server and the id of the webhook there
        self._works: bool | None = None  # None until it was tried
        self._tried = 0.0

    def start(self) -> None:
        """Register the webhook and have it tested. A failure is said, not raised."""
        self._tried = time.monotonic()
        try:
            preflight()
            client = connect()
            self._registered = client, register_webhook(client, self._url, self._secret)
            self._test(*self._registered)
        except TrackingError as e:
            self._now(False, str(e))

    def pause(self) -> None:
        """Return when it is time to check the aliases again."""
        if self._works and self._registered is not None:
            if not self._listener.wait(max(self._every, SAFETY_NET)):
                try:
                    self._test(*self._registered)
                except TrackingError as e:
                    self._now(False, str(e))
            return
        self._listener.wait(self._every)
        if time.monotonic() - self._tried >= RETRY:
            self.start()

    def stop(self) -> None:
        """Remove the webhook from the server, if the server answers."""
        if self._registered is not None:
            with suppress(TrackingError):
                preflight()
                drop_webhook(*self._registered)

    def _test(self, client: MlflowClient, webhook: str) -> None:
        before = self._listener.count
        wrong = deliver_for_test(client, webhook)
        if wrong is None and self._listener.count == before:
            wrong = "the test delivery was answered, but not by this watcher"
        self._listener.wait(0)  # that delivery is no move; the check that follows would see one that came with it
        self._now(wrong is None, wrong or "")

    def _now(self, works: bool, why: str) -> None:
        if works is not self._works:
            if works:
                self._say(f"deliveries of the server arrive at {shown(self._url)}: a moved alias is checked at once")
            else:
                why = hidden(why, self._url) + _hint(why)
                self._say(f"no webhook, so the aliases are checked every {self._every:g} seconds: {why}")
        self._works = works


def _hint(why: str) -> str:
    if "webhook url" in why.lower() or "public IP" in why:  # MLflow's words for HTTP and for a loopback address
        return " `expunge ui --webhooks` allows it; docs/review.md has the settings of other servers"
    if "PERMISSION_DENIED" in why or "403" in why:
        return " Only administrators of the server may register webhooks."
    return ""


@contextmanager
def waker(place: str, url: str | None, every: float, say: Callable[[str], object]) -> Iterator[Waker]:
    """Listen on `place`, register the webhook, and remove it at the end.

    `url`: where the server reaches `place`, by default the address itself. Raises TrackingError if `place` cannot be
    listened on, and KeyFileError if the secret is unfit.
    """
    secret = secret_of(SECRET_FILE, SECRET)
    with Listener(place, secret) as listener:
        made = Waker(listener, url or listener.url, secret, every, say)
        try:
            made.start()
            yield made
        finally:
            made.stop()
