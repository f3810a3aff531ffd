"""Exact deletion of rows from a head on a public backbone, and exact correction of labels.

The result is the head that training without the rows, or on the corrected labels, gives.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import scipy
import torch

from expunge.core import LinearHead, RidgeHead, SoftmaxHead, identity
from expunge.core.ridge_head import DESCRIPTION as RIDGE_DESCRIPTION
from expunge.core.softmax_head import DESCRIPTION as SOFTMAX_DESCRIPTION
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.merkle import merkle_root, row_leaves
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import backbone_digest
from expunge.models.classifier import FROZEN
from expunge.system.errors import ConfigError, QualityError
from expunge.system.files import read_manifest

Head = RidgeHead | SoftmaxHead
DESCRIPTIONS = {"ridge": RIDGE_DESCRIPTION, "head": SOFTMAX_DESCRIPTION}
TOLERANCE = 1e-9  # relative, between a downdated ridge head and one computed from rows


def why_not(request: FitInputs) -> str | None:
    """Return why rows cannot be deleted exactly from this model, or None if they can."""
    card = request.classifier.card
    if card.training not in FROZEN:
        return (
            f"model.training is {card.training}, so nothing but training again without the rows is exact; train with "
            "model.training ridge, head or above on public weights"
        )
    if card.saw_forget_data:
        return (
            "the backbone was trained on rows that a request may name (model.saw_forget_data: true), and a new head "
            "alone cannot undo that; use a backbone that never saw them"
        )
    return None


def delete_exactly(request: FitInputs) -> UnlearnedModel:
    """Compute the head without the forgotten rows, or with the corrected labels, and the provenance of the result.

    The procedure depends on how the model was trained. Raises QualityError with the reason if exact deletion from the
    model is not possible.
    """
    reason = why_not(request)
    if reason is not None:
        raise QualityError(f"exact: {reason}")
    head, manifest = load_head(request)
    labels, old = torch.from_numpy(request.labels), torch.from_numpy(request.old_labels)
    if isinstance(head, RidgeHead):
        retained = (request.z_retain, labels[request.retain_rows]) if head.needs_rows else None
        if request.corrects:
            head.correct(request.z_forget, old[request.forget_rows], labels[request.forget_rows], retained)
            procedure = "ridge: sums of the corrected rows moved to their new classes"
        else:
            removed = np.union1d(request.forget_rows, request.left_out)
            head.remove(torch.from_numpy(request.store.z(removed)), labels[removed], retained)
            procedure = "ridge: sums less those of the rows, Cholesky factor updated"
        # With a quantum the sums are exact. Solving from a new factor then gives the same bits as training without the
        # rows, which an updated factor would not.
        if head.quantum is not None:
            head.solve(retained)
        holds = head.drift_ <= head.drift
        accuracy = {"residual": head.drift_, "relative_tolerance": 0.0 if head.quantum is not None else TOLERANCE}
    else:
        head.refit(request.z_retain, labels[request.retain_rows])
        procedure = "softmax: Newton-CG from the present optimum"
        holds = head.converged_
        accuracy = {"gradient_norm": head.gradient_norm_, "bound": head.bound_}
    exact = {
        "holds": bool(holds) and head.n_ == len(request.retain_rows),
        "procedure": procedure,
        "accuracy": accuracy,
        **provenance(request, head, manifest),
    }
    return UnlearnedModel(identity(request.store.dim), head.head_, {"exact": exact}, exact_head=head)


def load_head(request: FitInputs) -> tuple[Head, dict[str, Any]]:
    """Load the head that training kept, and the manifest of its model.

    Raises ConfigError without a model directory, and QualityError if no head was kept or it belongs to other rows or to
    another backbone.
    """
    if request.model_dir is None:
        raise ConfigError("exact: no model directory was given, so there is no head to delete from")
    card, manifest = request.classifier.card, read_manifest(request.model_dir)
    if DESCRIPTIONS[card.training] not in manifest["files"]:
        raise QualityError(
            f"exact: {request.model_dir} contains no {DESCRIPTIONS[card.training]}, so it was made by an older "
            "version or another method; run the train stage again"
        )
    head: Head = (RidgeHead if card.training == "ridge" else SoftmaxHead).load(request.model_dir)
    counts = np.bincount(request.old_labels[request.train_rows], minlength=card.num_classes)
    if not np.array_equal(head.counts_.numpy(), counts):
        raise QualityError(
            f"exact: the head in {request.model_dir} was trained on {head.n_} rows, but the dataset has "
            f"{counts.sum()} training rows or other labels; run the train stage again"
        )
    if manifest["backbone_digest"] != backbone_digest(request.classifier):
        raise QualityError(
            f"exact: {request.model_dir}: its backbone is not the one that its manifest names; run the train stage "
            "again"
        )
    return head, manifest


def provenance(request: FitInputs, head: Head, manifest: dict[str, Any]) -> dict[str, Any]:
    """Provenance of the claim: public layers, rows, head, seed and versions. It contains no ids of rows."""
    shared = grounds(request)
    return {
        **shared,
        "public": {
            "backbone_digest": manifest["backbone_digest"],
            "name": request.classifier.card.name,
            "layers": list(request.classifier.card.layers),
        },
        "head": {"kind": type(head).__name__, "settings": {k: _plain(v) for k, v in head.get_params().items()}},
        "seed": manifest["seed"],
        "versions": {**shared["versions"], "scipy": scipy.__version__},
    }


def grounds(request: FitInputs) -> dict[str, Any]:
    """The part of the provenance common to all exact claims: retained rows, versions and machine type."""
    return {
        "rows": {"retained": len(request.retain_rows), "merkle_root": rows_root(request)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "machine": platform.machine(),
    }


def rows_root(request: FitInputs) -> str:
    """Merkle root of the keyed digests of the retained rows, each with its label, in sorted order.

    Raises ConfigError if the directory of the key is not given.
    """
    if request.forgotten_dir is None:
        raise ConfigError("exact: no directory was given for the key of row digests")
    ids, rows = request.store.column("sample_id"), request.retain_rows
    digests = ForgottenRows(request.forgotten_dir).digests(str(ids[row]) for row in rows)
    return merkle_root(sorted(row_leaves(digests, request.labels[rows].tolist())))


def recompute(request: FitInputs, shipped: LinearHead, claim: dict[str, Any]) -> dict[str, Any]:
    """Audit the claim by recomputation: fit the head from scratch and compare it with the `shipped` one.

    The head is fitted to the retained rows with the settings in `claim` (`info["exact"]`). `agrees` is True if rows,
    backbone and weights are those claimed, the weights to within the stated tolerance or bound plus the rounding of
    float32. The auditor must still trust that the features of the rows are those of the public backbone and that the
    backbone never saw the rows.
    """
    same_rows = rows_root(request) == claim["rows"]["merkle_root"]
    ridge = claim["head"]["kind"] == "RidgeHead"
    head: Head = (RidgeHead if ridge else SoftmaxHead)(**claim["head"]["settings"])
    y = torch.from_numpy(request.labels[request.retain_rows])
    head.fit(request.z_retain, y, request.classifier.card.num_classes)
    ours, theirs = (torch.cat([h.weight, h.bias[:, None]], dim=1).double() for h in (head.head_, shipped))
    same_bits, absent = bool(torch.equal(ours, theirs)), head.counts_ == 0
    same_masked = bool(torch.equal(ours[absent, -1], theirs[absent, -1]))
    for weights in (ours, theirs):  # the bias of a class without rows is a mask, not a fitted weight
        weights[absent, -1] = 0.0
    distance, size = float((ours - theirs).norm()), float(ours.norm())
    if isinstance(head, RidgeHead):
        allowed = claim["accuracy"]["relative_tolerance"] * size
    else:
        allowed = head.bound_ + claim["accuracy"]["bound"]
    same_backbone = backbone_digest(request.classifier) == claim["public"]["backbone_digest"]
    rounding = torch.finfo(torch.float32).eps * size
    return {
        "agrees": same_rows and same_backbone and same_masked and distance <= allowed + rounding,
        "rows": same_rows,
        "backbone": same_backbone,
        "distance": distance,
        "allowed": allowed + rounding,
        "same_bits": same_bits,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
