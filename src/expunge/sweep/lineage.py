"""Sweep models that were trained on erased rows: the original, registered versions, and products of the workspace.

A version has forgotten the rows if the request that it was fitted to contains all of them. Any other version is
superseded, and so is a logged model without a version. The original is the starting point of every later request.
The champion, whose head includes the forgetting, replaces it; otherwise the next version would be derived from the
erased rows again. Models that the workspace made for a request without the rows are removed as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from expunge.config import Config
from expunge.core.head import LinearHead
from expunge.data.schema import FORGET, row_digest
from expunge.data.split import REQUEST, Split
from expunge.finetune.head_shards import DESCRIPTION as SHARDED
from expunge.finetune.shards import STEPS
from expunge.ledger.forgotten import ForgottenRows
from expunge.methods.exact import DESCRIPTIONS
from expunge.methods.unlearned import SHIPPED_HEAD
from expunge.models.checkpoint import DESCRIPTION, save_classifier
from expunge.models.classifier import ModelCard
from expunge.sweep.journal import Journal
from expunge.sweep.report import NotPurgeable, Residue
from expunge.sweep.targets import Targets
from expunge.system.errors import ExpungeError
from expunge.system.files import MANIFEST, read_json, read_manifest, write_manifest
from expunge.system.paths import FORGOTTEN, MODELS, ORIGINAL, RETRAINED, SPLIT, UNLEARNED

if TYPE_CHECKING:
    from expunge.tracking import MlflowClient, Version

Found = Residue | NotPurgeable
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"  # as in expunge.tracking.store, which would import MLflow here


@dataclass(frozen=True)
class Registry:
    """The registered model `name` in the store in use."""

    client: MlflowClient
    name: str


class SweepTarget(Protocol):
    """What a sweep removes."""

    @property
    def root(self) -> Path:
        """The workspace."""
        ...

    @property
    def taught(self) -> str:
        """What models learned from it, as findings name it."""
        ...

    @property
    def trained(self) -> bool:
        """Whether models were trained on it."""
        ...


@contextmanager
def opened(root: Path, config: Config) -> Iterator[Registry | None]:
    """Yield the registry of the workspace; None if it has none, because a sweep must not create one."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given and not (root / DATABASE).is_file():
        yield None
        return
    from expunge.tracking import connect, model_name

    if not given:  # the default is relative to the working directory
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{(root / DATABASE).resolve()}"
    try:
        yield Registry(connect(), config.register.name or model_name(config.data.source, config.model.name))
    finally:
        if not given:
            os.environ.pop("MLFLOW_TRACKING_URI", None)


def covering(targets: Targets) -> list[str]:
    """Return the digests of the requests that provably contain every erased training row."""
    ids = targets.dataset.sample_ids()
    needed = [ids[i] for i in np.flatnonzero(targets.erased & targets.train).tolist()]
    if not needed:
        return []
    requests = ForgottenRows(targets.root / FORGOTTEN).requests()
    at_hand: tuple[str, list[str]] | None = None
    if (targets.root / SPLIT / MANIFEST).is_file() and _whole_split(targets):
        split = _split(targets)
        digest = str(split.request["digest"])
        parts = split.parts
        # After a label correction all rows are in training, so such a split forgets none.
        if len(parts) == len(ids) and split.corrections is None:
            at_hand = digest, [ids[i] for i in np.flatnonzero(parts == FORGET).tolist()]
            requests.add(digest)
    forgotten = ForgottenRows(targets.root / FORGOTTEN, *(at_hand or ()))
    return sorted(request for request in requests if forgotten.mask(request, needed).all())


def versions(registry: Registry, covered: list[str], policy: str) -> Iterator[Found]:
    """Yield the versions that have not forgotten the rows.

    `policy`: "remove" deletes all but the serving one, "keep" reports them as not purgeable, "look" changes nothing.
    """
    from expunge.tracking import CHAMPION, aliased
    from expunge.tracking.retire import remove_versions, versions_of

    champion = aliased(registry.client, registry.name, CHAMPION)
    superseded = [v for v in versions_of(registry.client, registry.name) if v.tags.get("request") not in covered]
    serving = [v for v in superseded if champion is not None and v.version == champion.version]
    for version in serving:
        yield NotPurgeable(
            f"MLflow {registry.name} version {version.version}",
            "the version that serves; it is not known to have forgotten the rows",
            "the person who promotes: promote a version that forgot them with `expunge promote`, then sweep again",
        )
    others = [v for v in superseded if v not in serving]
    if not others:
        return
    if policy == "keep":
        yield NotPurgeable(
            f"MLflow {registry.name}",
            f"{len(others)} versions that have not forgotten the rows, kept because sweep.versions is keep",
            "the owner of params.yaml: set sweep.versions: remove",
        )
        return
    yield Residue(f"MLflow {registry.name}", "superseded versions", len(others))
    if policy == "remove":
        remove_versions(registry.client, others)


def garbage(registry: Registry, besides: list[Version], apply: bool) -> Iterator[Found]:
    """Yield the logged models without a version.

    With `apply`, also run MLflow's garbage collection and remove the folders that it leaves.
    """
    from expunge.tracking import retire

    models = retire.unregistered(registry.client, registry.name, besides)
    folders = retire.folders_of(models)
    if models:
        yield Residue(f"MLflow {registry.name}", "models that belong to no version", len(models))
    if not apply:
        return
    retire.remove_models(registry.client, models)
    if not retire.collect_garbage():
        yield NotPurgeable(
            "MLflow server",
            "models and runs that are marked as deleted",
            "the administrator of the server: run `mlflow gc`",
        )
    elif missed := retire.remove_folders(folders):
        yield Residue(ARTIFACTS, "model folders that `mlflow gc` did not remove", missed)


def examples(targets: Targets, registry: Registry, apply: bool) -> Iterator[Found]:
    """Yield the versions whose stored input example contains an erased row by its content; with `apply`, delete it."""
    from expunge.tracking.retire import examples_of, versions_of

    for version in versions_of(registry.client, registry.name):
        for file in examples_of(registry.client, version):
            if _pictures_hit(targets, read_json(file)):
                yield Residue(f"MLflow {registry.name} version {version.version}", "input examples with erased rows")
                if apply:
                    file.unlink()


def original(targets: SweepTarget, registry: Registry | None, covered: list[str], policy: str) -> Found | None:
    """Report that the original was trained on what is swept; None without an original or if no model was.

    It is a Residue if the champion can replace it, else NotPurgeable.
    """
    directory = targets.root / MODELS / ORIGINAL
    if not (directory / MANIFEST).is_file() or not targets.trained:
        return None
    if policy == "keep":
        return NotPurgeable(
            str(MODELS / ORIGINAL),
            f"the model that was trained on {targets.taught}, kept because sweep.original is keep; no later version "
            "can be promoted",
            "the owner of params.yaml: set sweep.original: champion, or run `dvc repro --force train`",
        )
    if _successor(registry, covered) is None:
        return NotPurgeable(
            str(MODELS / ORIGINAL),
            f"the model that was trained on {targets.taught}, because no champion can replace it",
            "the owner of the pipeline: run `dvc repro --force train` to train it again without them",
        )
    return Residue(str(MODELS / ORIGINAL), f"model trained on {targets.taught}")


def replace_original(targets: SweepTarget, registry: Registry | None, covered: list[str], journal: Journal) -> bool:
    """Stage the champion as the original, and return whether features must be extracted again.

    They must if the champion's backbone differs from that of the original.
    """
    classifier = _successor(registry, covered)
    assert classifier is not None, "original() said so"
    directory = targets.root / MODELS / ORIGINAL
    old = read_manifest(directory, verify=False)
    place = journal.swap(directory)
    place.mkdir()
    description = save_classifier(place, classifier)
    if classifier.card.above and "shards" in classifier.card.above:
        _keep_steps(targets.root / UNLEARNED, classifier.card, place)
    else:
        _keep_head(targets.root / UNLEARNED, LinearHead.of(classifier.head), place)
    fields = {k: v for k, v in old.items() if k not in ("schema", "producer", "files", "backbone_digest")}
    write_manifest(place, "expunge.sweep", **{**fields, "backbone_digest": description["backbone_digest"]})
    return bool(description["backbone_digest"] != old.get("backbone_digest"))


def _keep_head(products: Path, served: LinearHead, place: Path) -> None:
    """Copy the state for the next exact deletion from the product whose weights equal `served`.

    The state covers the retained rows only. Without it no further exact deletion from the original would be possible.
    """
    for directory in sorted(path.parent for path in products.glob(f"*/{MANIFEST}")):
        files = read_manifest(directory)["files"]
        kinds = {Path(d).stem for d in (*DESCRIPTIONS.values(), SHARDED)}
        state = [name for name in files if Path(name).stem in kinds]
        if state and _same(LinearHead.load(directory / SHIPPED_HEAD), served):
            for name in state:
                (place / name).parent.mkdir(parents=True, exist_ok=True)  # each head in shards has its own folder
                shutil.copyfile(directory / name, place / name)
            return


def _keep_steps(products: Path, served: ModelCard, place: Path) -> None:
    """Copy the checkpoints of the training steps of shards from the product whose shards equal those `served`.

    Its description names the weights of every step and the retained rows. Without the checkpoints a later request
    would have to train whole shards again.
    """
    for directory in sorted(path.parent for path in products.glob(f"*/{DESCRIPTION}")):
        files = [name for name in read_manifest(directory)["files"] if name.startswith(f"{STEPS}/")]
        if files and ModelCard.from_json(read_json(directory / DESCRIPTION)["card"]).above == served.above:
            (place / STEPS).mkdir()
            for name in files:
                shutil.copyfile(directory / name, place / name)
            return


def _same(one: LinearHead, other: LinearHead) -> bool:
    return bool((one.weight == other.weight).all()) and bool((one.bias == other.bias).all())


def products(targets: Targets, covered: list[str], journal: Journal | None) -> Iterator[Residue]:
    """Yield the models that the workspace made for the current request, if that does not contain the rows.

    These are unlearned models with their stored state, and retrained models; with a journal their removal is staged.
    The pipeline makes them again, without the rows.
    """
    request = targets.root / SPLIT / REQUEST
    if not targets.trained or not request.is_file():
        return
    if read_json(request)["digest"] in covered:
        return
    tops = (targets.root / UNLEARNED, targets.root / MODELS / RETRAINED)
    for directory in sorted(path.parent for top in tops for path in top.glob(f"*/{MANIFEST}")):
        if len(read_manifest(directory, verify=False)["files"]):  # a method that refused has no files
            yield Residue(str(directory.relative_to(targets.root)), "model that has not forgotten the rows")
            if journal is not None:
                journal.drop(directory)


def _successor(registry: Registry | None, covered: list[str]):  # type: ignore[no-untyped-def]
    """Return the champion as a classifier; None if no champion forgot the rows, or if it has a map before its head."""
    if registry is None:
        return None
    from expunge.tracking import CHAMPION, aliased, servable_of

    champion = aliased(registry.client, registry.name, CHAMPION)
    if champion is None or champion.tags.get("request") not in covered:
        return None
    servable = servable_of(champion)[0]
    return servable.classifier if servable.map_ is None else None


def _split(targets: Targets) -> Split:
    return Split(targets.root / SPLIT)


def _whole_split(targets: Targets) -> bool:
    """Return False for a split that contains erased rows again. Such a split is swept, but not used as evidence."""
    try:
        _split(targets)
    except ExpungeError:
        return False
    return True


def _pictures_hit(targets: Targets, example: object) -> bool:
    """Return whether an example holds the pixels of an erased row.

    The pixels are in lists, as MLflow writes them. Other content, such as texts, gives False.
    """
    values = example.get("inputs") if isinstance(example, dict) else example
    try:
        pixels = np.asarray(values, np.uint8)
    except (ValueError, TypeError, OverflowError):
        return False
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4:
        return False
    digests = [row_digest(image) for image in pixels]
    return bool(targets.tombstones.hits([""] * len(digests), digests).contents.any())
