"""Exact deletion from a model trained above a cut: retrain these layers without the rows on stored activations.

`training/recipe.py` trains by `finetune.above.train_above` on the same activations, so the weights are bit-identical to
those of training on a dataset without the rows, on the same machine. No image is decoded and no lower layer is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.finetune.above import activations_alone, train_above
from expunge.finetune.cut import Activations
from expunge.methods.exact import grounds, rows_root
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier
from expunge.models.cuts import split_at_cut
from expunge.models.lower import lower_digest, public_lower_digest
from expunge.models.sharded import unsharded
from expunge.models.zoo import public_start
from expunge.system.errors import CheckpointError, QualityError
from expunge.system.files import read_manifest, sha256


def why_not(request: FitInputs) -> str | None:
    """Return why rows cannot be deleted exactly from this model, or None if they can."""
    card = request.classifier.card
    if card.above is None or card.weights is None:
        return "the model's description does not name its public weights and its recipe; run the train stage again"
    if card.saw_forget_data:
        return "the layers up to the cut were trained on rows that a request may name (model.saw_forget_data: true)"
    cut, recorded = card.above["recipe"]["cut"], card.above["lower_digest"]
    if lower_digest(split_at_cut(unsharded(request.classifier), cut)) != recorded:
        return (
            f"the layers up to {cut!r} are not those that training kept, so they may have been trained on rows that "
            "a request may name; run the train stage again"
        )
    try:
        public = public_lower_digest(request.classifier, cut)
    except CheckpointError as e:
        return f"the layers up to {cut!r} cannot be shown to be public: {e}"
    if public != recorded:
        return f"the layers up to {cut!r} are not those of the public weights {card.weights['source']}"
    return None


def delete_above(request: FitInputs) -> UnlearnedModel:
    """Train the layers above the cut on the retained rows with the original's recipe and seed; add the provenance.

    Raises QualityError with the reason if exact deletion from the model is not possible.
    """
    reason = why_not(request)
    if reason is not None:
        raise QualityError(f"exact: {reason}")
    claim = dict(request.classifier.card.above or {})
    recipe, labels = claim["recipe"], request.labels[request.train_rows]
    activations = retained_activations(request, recipe["cut"], claim["lower_digest"])
    fitted = train_above(request.classifier, activations, labels, request.among_train(request.retain_rows), recipe)
    classifier = fitted.classifier_
    exact = {
        "holds": classifier.card.above == request.classifier.card.above,
        "procedure": "above: trained again from public weights on kept activations, "
        + ("on the corrected labels" if request.corrects else "without the rows"),
        "accuracy": {"relative_tolerance": 0.0},
        "weights_digest": digest_of_tensors(classifier.state_dict()),
        **provenance(request),
    }
    return UnlearnedModel.of_classifier(classifier, {"exact": exact, "history": fitted.history_})


def retained_activations(request: FitInputs, cut: str, lower: str) -> Activations:
    """Load the activations of the training rows, and verify their digest, rows and lower layers.

    Raises QualityError if they belong to other rows or lower layers or differ from the manifest, and ConfigError if
    none are stored.
    """
    found = request.activations(cut)
    manifest = read_manifest(request.activations_dir, verify=False)
    entry = manifest["files"][f"{cut}.npy"]
    ours = (request.dataset.digest, lower, len(request.train_rows))
    if (manifest.get("dataset_digest"), manifest.get("lower", {}).get(cut), len(found)) != ours:
        raise QualityError(
            f"exact: {request.activations_dir}/{cut}.npy was computed from other rows or other lower layers than "
            "those of the model; run the activations stage again"
        )
    if sha256(request.activations_dir / f"{cut}.npy") != entry["sha256"]:
        raise QualityError(
            f"exact: {request.activations_dir}/{cut}.npy differs from its manifest; run the activations stage again"
        )
    return found


def provenance(request: FitInputs) -> dict[str, Any]:
    """Provenance of the claim: public layers, rows, recipe, seed and versions. It contains no ids of rows."""
    card = request.classifier.card
    assert card.above is not None and card.weights is not None
    recipe = dict(card.above["recipe"])
    return {
        **grounds(request),
        "public": {
            "name": card.name,
            "cut": recipe["cut"],
            "lower_digest": card.above["lower_digest"],
            "weights": dict(card.weights),
        },
        "recipe": recipe,
        "seed": recipe["seed"],
        "threads": torch.get_num_threads(),
    }


def recompute(
    request: FitInputs, shipped: Classifier, claim: dict[str, Any], from_inputs: Path | None = None
) -> dict[str, Any]:
    """Audit the claim by recomputation: train the layers above the cut again and compare with the `shipped` network.

    Training starts from the public weights and uses the retained rows and the recipe in `claim` (`info["exact"]`).
    `from_inputs`: a work directory. If it is given, the public layers compute the activations again from images or
    texts, and these must equal the stored ones. Otherwise the auditor must trust the stored activations. In either case
    the auditor must trust that the public weights never saw the rows. `agrees` is True if rows, lower layers and every
    bit of the weights are those claimed. On another type of machine or with another number of threads the bits differ;
    `distance` then gives the largest absolute difference of a weight.
    """
    same_rows = rows_root(request) == claim["rows"]["merkle_root"]
    recipe, lower = claim["recipe"], claim["public"]["lower_digest"]
    public = public_start(request.classifier.card, request.classifier.preprocess).eval()
    cut = recipe["cut"]
    same_lower = all(lower_digest(split_at_cut(model, cut)) == lower for model in (public, shipped))
    activations = retained_activations(request, cut, lower)
    same_activations = None
    if from_inputs is not None:
        again = activations_alone(public, request.dataset, cut, from_inputs)
        same_activations = bool(np.array_equal(again, activations, equal_nan=True))
        activations = again
    labels, rows = request.labels[request.train_rows], request.among_train(request.retain_rows)
    classifier = train_above(public, activations, labels, rows, recipe).classifier_
    ours, theirs = classifier.state_dict(), shipped.state_dict()
    same_bits = digest_of_tensors(ours) == digest_of_tensors(theirs) == claim["weights_digest"]
    distance = max(float((v.double() - theirs[k].double()).abs().max()) for k, v in ours.items())
    return {
        "agrees": same_rows and same_lower and same_bits and same_activations is not False,
        "rows": same_rows,
        "backbone": same_lower,
        "activations": same_activations,  # None: not computed again
        "distance": distance,
        "allowed": 0.0,
        "same_bits": same_bits,
    }
