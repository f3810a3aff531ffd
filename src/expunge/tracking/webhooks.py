"""Registry webhooks of MLflow 3: a tracking server sends a signed POST when an alias is set or removed.

A server sends them, not its database: moves by a client that writes to the database itself are not reported. Only
accounts with administrator's rights may register one where the server has accounts.
"""

from __future__ import annotations

import hashlib

from mlflow import MlflowClient
from mlflow.entities.webhook import Webhook, WebhookStatus

from expunge.system.addresses import is_http
from expunge.system.errors import TrackingError
from expunge.tracking.store import refusals, tracking_uri

EVENTS = ("model_version_alias.created", "model_version_alias.deleted")
DESCRIPTION = "expunge watch: checks every move of the alias champion"
PAGE = 100
LONGEST = 200  # characters of an error, which holds those that caused it


def register_webhook(client: MlflowClient, url: str, secret: str) -> str:
    """Register the webhook that delivers to `url`, or take over the one that is registered; return its id.

    Raises TrackingError if the store is a database, or if the server has no webhooks or refuses this one.
    """
    if not is_http(tracking_uri()):
        raise TrackingError("a database sends no webhooks; set MLFLOW_TRACKING_URI to the server that people use")
    with refusals("registering a webhook"):
        known = _at(client, url)
        if known is None:
            made = client.create_webhook(_name(url), url, list(EVENTS), DESCRIPTION, secret)
        else:
            # Its secret cannot be read back, and it may be of another workspace or a former secret.
            made = client.update_webhook(
                known.webhook_id, events=list(EVENTS), secret=secret, status=WebhookStatus.ACTIVE
            )
    return str(made.webhook_id)


def deliver_for_test(client: MlflowClient, webhook: str) -> str | None:
    """Have the server send a delivery to the webhook now. Return what went wrong, or None."""
    with refusals("testing the webhook"):
        result = client.test_webhook(webhook, EVENTS[0])
    if result.success:
        return None
    why = (result.error_message or f"it was answered with status {result.response_status}").split("\n", 1)[0]
    return f"the server's test delivery failed: {why[:LONGEST]}"


def drop_webhook(client: MlflowClient, webhook: str) -> None:
    """Remove the webhook, so that the server does not go on sending to nobody."""
    with refusals("removing the webhook"):
        client.delete_webhook(webhook)


def _at(client: MlflowClient, url: str) -> Webhook | None:
    token: str | None = None
    while True:
        page = client.list_webhooks(max_results=PAGE, page_token=token)
        for webhook in page:
            if webhook.url == url:
                return webhook
        if not (token := page.token):
            return None


def _name(url: str) -> str:
    return f"expunge-watch-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
