"""Audit by recomputation: fit the certified head or network again on the retained rows and compare the weights.

The audit runs in the workspace and needs its data, features and registry. Verifying the signature of the certificate
needs none of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.config import load_config
from expunge.core import LinearHead
from expunge.data.dataset import Dataset
from expunge.data.schema import TRAIN
from expunge.erasure.auditable import ABOVE, SHARDS, kind_of, recomputes, trusted
from expunge.erasure.certificate import verify
from expunge.erasure.evidence import manifests
from expunge.features.extract import ExtractionSettings, extract_shards
from expunge.features.store import FeatureStore
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.keys import PublicKey
from expunge.methods.exact import recompute
from expunge.methods.exact_above import recompute as recompute_above
from expunge.methods.exact_heads import recompute as recompute_heads
from expunge.methods.exact_shards import drawn
from expunge.methods.exact_shards import recompute as recompute_shards
from expunge.methods.inputs import FitInputs
from expunge.models.classifier import Classifier
from expunge.system.errors import CertificateError, TrackingError
from expunge.system.paths import ACTIVATIONS, DATASET, FEATURES, FORGOTTEN, ORIGINAL, WORK
from expunge.tracking import Version, connect, servable_of, version_of

FEATURE_TOLERANCE = 1e-4  # relative to |z|; rounding differs between batch sizes and processors


def audit(
    file: Path, key: PublicKey, encode: bool = False, nonce: str | None = None, wanted: int = 1
) -> dict[str, Any]:
    """Recompute what the certificate `file` claims as exact, and compare it with the weights of the registered version.

    Everything is recomputed in the current directory. With `encode`, the features are also extracted again from the
    dataset with the version's own backbone, or the activations with the public layers. `nonce` (hexadecimal, chosen by
    the auditor) selects the `wanted` shards of a sharded model that are trained again; without it all of them are.
    `agrees` in the result is True if the rows, the backbone, the weights and, with `encode`, the features or
    activations are the certified ones.
    Raises CertificateError if the signature is wrong or nothing exact is claimed, TrackingError if the registry no
    longer has the version, and ManifestError or CheckpointError if its files or the data were changed.
    """
    body = verify(file, key)
    unlearning = body["unlearning"] or {}
    claim, model = unlearning.get("exact") or {}, unlearning.get("model", {})
    what = recomputes(claim)
    if what is None:
        raise CertificateError(
            f"{file}: claims nothing as exact (method {model.get('method', 'none')}), so there is nothing to compute "
            "again. To check who signed it, run `expunge certificate verify`"
        )
    chosen = _chosen(file, claim, nonce, wanted)
    version = _version(model)
    servable, _ = servable_of(version)
    if servable.map_ is not None:
        raise CertificateError(
            f"{version.uri}: has a map before its head, so it is not the result of an exact deletion"
        )
    inputs = _inputs(servable.classifier, version)
    if kind_of(claim) in (ABOVE, SHARDS):
        found = _above(inputs, claim, encode, chosen)
        features = None
    else:
        shipped = LinearHead.of(servable.classifier.head)
        found = (recompute_heads if "heads" in claim else recompute)(inputs, shipped, claim)
        features = _features(inputs) if encode else None
    same_data = manifests()[DATASET.as_posix()] == body["manifests"]["after"][DATASET.as_posix()]
    return {
        "certificate": body["request"]["id"],
        "corrects": "corrected" in unlearning,
        "version": version.uri,
        "recomputed": what,
        **found,
        "dataset_as_certified": same_data,
        "features": features,
        "agrees": found["agrees"] and (features is None or features["agrees"]),
        "nonce": nonce,
        "trusted": trusted(encode, (len(found["shards_made_again"]), found["shards"]) if "shards" in found else None),
    }


def _chosen(file: Path, claim: dict[str, Any], nonce: str | None, wanted: int) -> list[int] | None:
    if nonce is None:
        return None
    if kind_of(claim) != SHARDS:
        raise CertificateError(
            f"{file}: its model has no shards above a cut for a nonce to select; leave out --nonce to train all of it "
            "again"
        )
    return drawn(nonce, int(claim["shards"]["count"]), wanted)


def _version(model: dict[str, Any]) -> Version:
    try:
        return version_of(connect(), model["model"], model["version"])
    except TrackingError as e:
        raise TrackingError(
            f"{e}. A version that a later request supersedes is removed from the registry. Audit the certificate of "
            "the version that serves now"
        ) from None


def _inputs(classifier: Classifier, version: Version) -> FitInputs:
    """Return the inputs of the version's fit, with its retained and its forgotten training rows."""
    dataset, store = Dataset(DATASET), FeatureStore(FEATURES / ORIGINAL, verify=True)
    train = dataset.splits() == TRAIN
    forgotten = ForgottenRows(FORGOTTEN).mask(version.tags["request"], dataset.sample_ids())
    return FitInputs(
        store=store,
        activations_dir=ACTIVATIONS,
        dataset=dataset,
        classifier=classifier,
        forget_rows=np.flatnonzero(train & forgotten),
        retain_rows=np.flatnonzero(train & ~forgotten),
        forget_classes=[],
        validation_rows=np.empty(0, np.int64),
        forgotten_dir=FORGOTTEN,
    )


def _above(inputs: FitInputs, claim: dict[str, Any], encode: bool, chosen: list[int] | None) -> dict[str, Any]:
    """Train the network, or its `chosen` shards, again above the cut.

    The training uses the stored activations or, with `encode`, recomputed ones.
    """
    place = WORK / "audit"
    shutil.rmtree(place, ignore_errors=True)
    try:
        if kind_of(claim) == SHARDS:
            return recompute_shards(inputs, inputs.classifier, claim, place if encode else None, chosen)
        return recompute_above(inputs, inputs.classifier, claim, place if encode else None)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _features(inputs: FitInputs) -> dict[str, Any]:
    """Extract the features of the retained rows again and compare them with the stored ones.

    The result holds their largest distance from the stored ones, relative to |z|.
    """
    settings = ExtractionSettings.of(load_config().features)
    place = WORK / "audit"
    shutil.rmtree(place, ignore_errors=True)
    _, shards = extract_shards(inputs.classifier, inputs.dataset, place, settings)
    again, stored = shards.z(inputs.retain_rows), inputs.store.z(inputs.retain_rows)
    shutil.rmtree(place)
    distance = _largest(again, stored)
    return {
        "distance": distance,
        "allowed": FEATURE_TOLERANCE,
        "same_bits": bool(np.array_equal(again, stored)),
        "agrees": distance <= FEATURE_TOLERANCE,
    }


def _largest(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return `max_i |a_i - b_i| / |b_i|` over the rows of `(n, d)` arrays; infinity if the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    size = np.linalg.norm(b.astype(np.float64), axis=1).clip(min=np.finfo(np.float32).tiny)
    return float((np.linalg.norm(a.astype(np.float64) - b, axis=1) / size).max(initial=0.0))
