"""Basic authentication of MLflow that also records who moves the alias `champion`.

`mlflow-auth.ini` names `authenticate` as its `authorization_function`. MLflow itself keeps no record of who moved an
alias. This writes the account into the version's tag `moved_by`, which nobody can set by hand. `expunge watch` copies
it into the ledger. The file needs only MLflow, because the server's image has nothing else.
"""

from __future__ import annotations

from typing import Any

from flask import Response, after_this_request, make_response, request
from mlflow.entities.model_registry import ModelVersionTag
from mlflow.server.auth import authenticate_request_basic_auth
from mlflow.server.handlers import _get_model_registry_store

ALIAS, TAG = "champion", "moved_by"


def authenticate() -> Any:
    """Return the account of the request, or the answer that refuses it."""
    account = authenticate_request_basic_auth()
    if isinstance(account, Response):
        return account
    sent = request.get_json(force=True, silent=True) if request.method in ("POST", "DELETE") else None
    given = sent if isinstance(sent, dict) else request.args
    if request.path.endswith(("/model-versions/set-tag", "/model-versions/delete-tag")) and given.get("key") == TAG:
        return make_response(f"The tag {TAG!r} is written by the server alone.", 403)
    if request.path.endswith("/registered-models/alias") and request.method == "POST" and given.get("alias") == ALIAS:
        name, version = str(given.get("name")), str(given.get("version"))

        @after_this_request
        def note(response: Response) -> Response:
            if response.status_code == 200:
                tag = ModelVersionTag(TAG, str(account.username))
                _get_model_registry_store().set_model_version_tag(name, version, tag)
            return response

    return account
