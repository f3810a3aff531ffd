"""The data behind a registered version: its served classifier, its evaluation, its tags and stored documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from expunge.serving.servable import Servable, servable_digest
from expunge.system.errors import TrackingError
from expunge.tracking.registry import Version
from expunge.tracking.store import fluent, refusals

SERVABLE = Path("artifacts") / "servable"
SUMMARY = "summary.json"
TAG_LENGTH = 5000  # MLflow's limit for a version's tag on every database
LEDGER_TAG = "ledger"
CORRECTS = "corrects"  # tag of a version: number of training rows whose labels its request corrects
FORGETS = "forgets"  # tag of a version: a description, without ids, of what its request forgets
RETRAINED = "retrained"  # method name of a version that is the retrained model itself

Block = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Blocks of the summary at the registration of a version: its own, the original's, the retrained models' mean."""

    own: Block | None
    original: Block | None
    retrained: Block | None


def servable_of(version: Version) -> tuple[Servable, str]:
    """Return the classifier that `version` serves and the digest of its files, as they are in the artifact store now.

    Raises TrackingError if the version was not registered by this pipeline, and ManifestError or CheckpointError if a
    file was changed.
    """
    with TemporaryDirectory() as place:  # MLflow does not delete files that it downloads from a server
        with refusals(f"reading version {version.version} of {version.name!r}"), fluent():
            directory = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=place)) / SERVABLE
        if not directory.is_dir():
            raise TrackingError(
                f"{version.uri}: holds no {SERVABLE.as_posix()}; it was not registered by this pipeline"
            )
        return Servable.load(directory), servable_digest(directory)


def evaluation_of(client: MlflowClient, version: Version) -> Evaluation:
    """Return the evaluation that the pipeline run of `version` logged for it and its references.

    If there is none, all its fields are None.
    """
    nothing = Evaluation(None, None, None)
    try:
        with refusals(f"reading the evaluation of version {version.version} of {version.name!r}"), fluent():
            parent = client.get_run(version.run_id).data.tags.get("mlflow.parentRunId")
            if parent is None or SUMMARY not in {f.path for f in client.list_artifacts(parent)}:
                return nothing
            summary = mlflow.artifacts.load_dict(f"runs:/{parent}/{SUMMARY}")
    except TrackingError as e:
        # The run may have been deleted while its versions remain. Other errors are raised.
        if isinstance(e.__cause__, MlflowException) and e.__cause__.error_code == "RESOURCE_DOES_NOT_EXIST":
            return nothing
        raise
    references, method = summary["references"], version.tags.get("method")
    own = summary["methods"].get(method)
    if method == RETRAINED and references["retrained"] is not None:
        own = references["retrained"]
    return Evaluation(own, references["original"], references["retrained"])


def run_of_retrained(client: MlflowClient, request: str, dvc_lock: str) -> str:
    """Return the id of the newest run of the retrained models for `request` and `dvc_lock`.

    Raises TrackingError if none was logged.
    """
    wanted = f"tags.method = '{RETRAINED}' and tags.request = '{request}' and tags.dvc_lock = '{dvc_lock}'"
    with refusals("looking for the run of the retrained models"):
        experiments = [e.experiment_id for e in client.search_experiments()]
        found = client.search_runs(experiments, wanted, max_results=1, order_by=["attributes.start_time DESC"])
    if not found:
        raise TrackingError("no run of the retrained models is logged for this request; run the register stage again")
    run_id: str = found[0].info.run_id
    return run_id


def ledger_entries(client: MlflowClient, name: str) -> list[str]:
    """Return the hashes of ledger entries that the registry stores, one on each version that was ever champion."""
    with refusals(f"reading the versions of {name!r}"):
        found = client.search_model_versions(f"name = '{name}'")
    return [v.tags[LEDGER_TAG] for v in found if LEDGER_TAG in v.tags]


def keep_entry(client: MlflowClient, version: Version, hash_: str) -> None:
    """Store the hash of a decision's ledger entry in a tag of `version`, so that a truncated ledger is noticed."""
    with refusals(f"tagging version {version.version} of {version.name!r}"):
        client.set_model_version_tag(version.name, version.version, LEDGER_TAG, hash_)


def keep_certificate(client: MlflowClient, version: Version, folder: Path, request: str) -> None:
    """Store a certificate with the model of `version` and with its run, in `certificates/REQUEST`.

    Sets the tag `certificate` of the version to the request. Storing the certificate again changes nothing.
    """
    with refusals(f"storing the certificate of {request} with version {version.version} of {version.name!r}"):
        client.log_artifacts(version.run_id, str(folder), f"certificates/{request}")
        source = client.get_model_version(version.name, version.version).source  # of the form models:/m-...
        client.log_model_artifacts(source.rpartition("/")[2], str(folder), f"certificates/{request}")
        client.set_model_version_tag(version.name, version.version, "certificate", request)


def keep_page(client: MlflowClient, version: Version, path: Path) -> None:
    """Store the page that a reviewer saw as an artifact of the run of `version`, where MLflow shows it."""
    with refusals(f"storing {path} with version {version.version} of {version.name!r}"):
        client.log_artifact(version.run_id, str(path))


def models_of_ours(client: MlflowClient) -> list[str]:
    """Return the names of registered models with a version made by this pipeline.

    Such a version is known by its tag `content`. Copies of a version keep the tag.
    """
    found: set[str] = set()
    token = None
    with refusals("reading the registered models"):
        while True:
            page = client.search_model_versions(page_token=token)
            found |= {v.name for v in page if "content" in v.tags}
            token = page.token
            if not token:
                return sorted(found)


def description_of(client: MlflowClient, version: Version) -> str:
    """Return the present description of a version, which users can edit in MLflow."""
    with refusals(f"reading version {version.version} of {version.name!r}"):
        return client.get_model_version(version.name, version.version).description or ""


def set_tag(client: MlflowClient, version: Version, key: str, value: str) -> None:
    """Set a tag of a version; the value is cut to TAG_LENGTH characters."""
    with refusals(f"tagging version {version.version} of {version.name!r}"):
        client.set_model_version_tag(version.name, version.version, key, value[:TAG_LENGTH])


def drop_tag(client: MlflowClient, version: Version, key: str) -> None:
    """Delete a tag of a version if it is set."""
    if key in version.tags:
        with refusals(f"tagging version {version.version} of {version.name!r}"):
            client.delete_model_version_tag(version.name, version.version, key)
