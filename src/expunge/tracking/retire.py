"""Remove superseded versions from the registry and their models from the artifact store, and check that they are gone.

Runs are kept: they hold metrics, but no weights.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Collection, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
from mlflow import MlflowClient
from mlflow.entities.logged_model import LoggedModel

from expunge.system.addresses import is_http
from expunge.system.errors import TrackingError
from expunge.tracking.registry import Version
from expunge.tracking.store import fluent, refusals, tracking_uri

MODELS = "models"  # MLflow's folder of logged models, in the artifact folder of an experiment
EXAMPLES = ("input_example.json", "serving_input_example.json")


def versions_of(client: MlflowClient, name: str) -> list[Version]:
    """Return all versions of `name`, oldest first."""
    with refusals(f"reading the versions of {name!r}"):
        found = client.search_model_versions(f"name = '{name}'")
    versions = [
        Version(v.name, str(v.version), v.run_id, v.tags.get("content", ""), False, dict(v.tags)) for v in found
    ]
    return sorted(versions, key=lambda v: int(v.version))


def remove_versions(client: MlflowClient, versions: Collection[Version]) -> None:
    """Delete versions from the registry, with every alias that points to them."""
    for version in versions:
        with refusals(f"removing version {version.version} of {version.name!r}"):
            client.delete_model_version(version.name, version.version)


def unregistered(client: MlflowClient, name: str, besides: Collection[Version] = ()) -> list[LoggedModel]:
    """Return the logged models in the experiments of `name` from which no version of any registered model is made.

    `besides`: versions to treat as removed.
    """
    removed = {(v.name, v.version) for v in besides}
    with refusals(f"reading the models of {name!r}"):
        mine = client.search_model_versions(f"name = '{name}'")
        # MLflow's garbage collection removes deleted experiments and runs.
        experiments = sorted({client.get_run(v.run_id).info.experiment_id for v in mine if v.run_id})
        remaining = {
            part
            for v in client.search_model_versions()
            if (v.name, str(v.version)) not in removed
            for part in (getattr(v, "model_id", None), str(v.source).rpartition("/")[2])
        }
        found: list[LoggedModel] = []
        token = None
        while experiments:
            page = client.search_logged_models(experiments, page_token=token)
            found += [m for m in page if m.model_id not in remaining]
            token = page.token
            if not token:
                break
    return found


def remove_models(client: MlflowClient, models: Collection[LoggedModel]) -> None:
    """Mark logged models as deleted; `collect_garbage` removes them."""
    for model in models:
        with refusals("removing a logged model"):
            client.delete_logged_model(model.model_id)


def collect_garbage() -> bool:
    """Remove everything marked as deleted with `mlflow gc`.

    Returns False for a server, where only its administrator can run it. Raises TrackingError if it fails.
    """
    uri = tracking_uri()
    if is_http(uri):
        return False
    from mlflow.cli import cli  # run in this process, because a new one would import MLflow again

    output = io.StringIO()
    with refusals("removing what is marked as deleted"), fluent(), redirect_stdout(output), redirect_stderr(output):
        try:
            cli.main(["gc", "--backend-store-uri", uri], standalone_mode=False)
        except click.ClickException as e:
            raise TrackingError(f"mlflow gc failed: {e.format_message()}") from None
    return True


def folders_of(models: Collection[LoggedModel]) -> list[Path]:
    """Return the artifact folders of logged models, as far as they are on this file system."""
    places = [urlsplit(m.artifact_location) for m in models]
    return [Path(unquote(p.path)) for p in places if p.scheme in ("", "file")]


def remove_folders(folders: Collection[Path]) -> int:
    """Remove the folders that the garbage collection left, and return their number."""
    left = [model for folder in folders if (model := _whole(folder)).exists()]
    for folder in left:
        shutil.rmtree(folder)
    return len(left)


def examples_of(client: MlflowClient, version: Version) -> Iterator[Path]:
    """Yield the files with the input example of a version, as far as they are on this file system."""
    with refusals(f"reading version {version.version} of {version.name!r}"):
        source = client.get_model_version(version.name, version.version).source
        folders = folders_of([client.get_logged_model(str(source).rpartition("/")[2])])
    for folder in folders:
        yield from (folder / name for name in EXAMPLES if (folder / name).is_file())


def _whole(folder: Path) -> Path:
    """Return the folder of a logged model that contains its `artifacts` folder."""
    return folder.parent if folder.name == "artifacts" and folder.parent.parent.name == MODELS else folder
