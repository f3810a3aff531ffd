"""What lies behind a registered version: the classifier it serves, and the evaluation it was registered with."""

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
TAG_LENGTH = 5000  # of a version's tag, on every database
LEDGER_TAG = "ledger"
CORRECTS = "corrects"  # tag of a version: of how many training rows its request replaces the labels
FORGETS = "forgets"  # tag of a version: what its request forgets, in words without ids
RETRAINED = "retrained"  # the method of a version that is the retrained model itself

Block = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Blocks of the summary that a version was registered with: its own, the original's, the retrained models' mean."""

    own: Block | None
    original: Block | None
    retrained: Block | None


def servable_of(version: Version) -> tuple[Servable, str]:
    """The classifier that `version` serves and the digest of its files, as they lie in the artifact store now.

    Raises TrackingError if it is no servable of ours, ManifestError or CheckpointError if a file was changed.
    """
    with TemporaryDirectory() as place:  # MLflow would leave what it fetched from a server
        with refusals(f"reading version {version.version} of {version.name!r}"), fluent():
            directory = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=place)) / SERVABLE
        if not directory.is_dir():
            raise TrackingError(
                f"{version.uri}: holds no {SERVABLE.as_posix()}; it was not registered by this pipeline"
            )
        return Servable.load(directory), servable_digest(directory)


def evaluation_of(client: MlflowClient, version: Version) -> Evaluation:
    """What the pipeline run of `version` logged of it and of its references; all None where the run has none."""
    nothing = Evaluation(None, None, None)
    try:
        with refusals(f"reading the evaluation of version {version.version} of {version.name!r}"), fluent():
            parent = client.get_run(version.run_id).data.tags.get("mlflow.parentRunId")
            if parent is None or SUMMARY not in {f.path for f in client.list_artifacts(parent)}:
                return nothing
            summary = mlflow.artifacts.load_dict(f"runs:/{parent}/{SUMMARY}")
    except TrackingError as e:
        # A run that was deleted leaves its versions behind; any other refusal is not ours to swallow.
        if isinstance(e.__cause__, MlflowException) and e.__cause__.error_code == "RESOURCE_DOES_NOT_EXIST":
            return nothing
        raise
    references, method = summary["references"], version.tags.get("method")
    own = summary["methods"].get(method)
    if method == RETRAINED and references["retrained"] is not None:
        own = references["retrained"]
    return Evaluation(own, references["original"], references["retrained"])


def run_of_retrained(client: MlflowClient, request: str, dvc_lock: str) -> str:
    """The newest run of the retrained models beside `request`. Raises TrackingError where none was logged."""
    wanted = f"tags.method = '{RETRAINED}' and tags.request = '{request}' and tags.dvc_lock = '{dvc_lock}'"
    with refusals("looking for the run of the retrained models"):
        experiments = [e.experiment_id for e in client.search_experiments()]
        found = client.search_runs(experiments, wanted, max_results=1, order_by=["attributes.start_time DESC"])
    if not found:
        raise TrackingError("no run of the retrained models is logged for this request; run the register stage again")
    run_id: str = found[0].info.run_id
    return run_id


def ledger_entries(client: MlflowClient, name: str) -> list[str]:
    """Hashes of ledger entries that the registry keeps, one on each version that was ever made champion here."""
    with refusals(f"reading the versions of {name!r}"):
        found = client.search_model_versions(f"name = '{name}'")
    return [v.tags[LEDGER_TAG] for v in found if LEDGER_TAG in v.tags]


def keep_entry(client: MlflowClient, version: Version, hash_: str) -> None:
    """Keep the hash of the ledger entry that made `version` the champion, so that a cut ledger is noticed."""
    with refusals(f"tagging version {version.version} of {version.name!r}"):
        client.set_model_version_tag(version.name, version.version, LEDGER_TAG, hash_)


def keep_certificate(client: MlflowClient, version: Version, folder: Path, request: str) -> None:
    """Store a certificate with the model of `version` and with its run, below `certificates/REQUEST`, and say so
    in the version's tag `certificate`. Storing it again changes nothing."""
    with refusals(f"storing the certificate of {request} with version {version.version} of {version.name!r}"):
        client.log_artifacts(version.run_id, str(folder), f"certificates/{request}")
        source = client.get_model_version(version.name, version.version).source  # models:/m-...
        client.log_model_artifacts(source.rpartition("/")[2], str(folder), f"certificates/{request}")
        client.set_model_version_tag(version.name, version.version, "certificate", request)


def keep_page(client: MlflowClient, version: Version, path: Path) -> None:
    """Store the page that a reviewer saw with the run of `version`, where MLflow shows it."""
    with refusals(f"storing {path} with version {version.version} of {version.name!r}"):
        client.log_artifact(version.run_id, str(path))


def models_of_ours(client: MlflowClient) -> list[str]:
    """Names of registered models with a version that this pipeline made; a copy of one keeps the tag that says so."""
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
    """The description of a version as it reads now, which people edit on its page."""
    with refusals(f"reading version {version.version} of {version.name!r}"):
        return client.get_model_version(version.name, version.version).description or ""


def set_tag(client: MlflowClient, version: Version, key: str, value: str) -> None:
    """Write a tag of a version; a longer value than a tag may hold is cut."""
    with refusals(f"tagging version {version.version} of {version.name!r}"):
        client.set_model_version_tag(version.name, version.version, key, value[:TAG_LENGTH])


def drop_tag(client: MlflowClient, version: Version, key: str) -> None:
    """Take a tag of a version away; nothing where it has none."""
    if key in version.tags:
        with refusals(f"tagging version {version.version} of {version.name!r}"):
            client.delete_model_version_tag(version.name, version.version, key)
