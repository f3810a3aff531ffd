"""Exact deletion from heads in shards on a public backbone: only the heads whose shards hold forgotten rows change."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from expunge.core import LinearHead, RidgeHead, SoftmaxHead, identity
from expunge.finetune.head_shards import DESCRIPTION, HeadShards, accuracy_of, count_rows
from expunge.finetune.shard_assignment import ShardAssignment
from expunge.methods.exact import TOLERANCE, provenance, rows_root, why_not
from expunge.methods.exact_shards import assignment_of
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import backbone_digest
from expunge.system.errors import QualityError
from expunge.system.files import read_manifest

KINDS: dict[str, type[RidgeHead] | type[SoftmaxHead]] = {"ridge": RidgeHead, "head": SoftmaxHead}


def in_shards(request: FitInputs) -> bool:
    """Whether the model was trained as several heads, one per shard."""
    return request.model_dir is not None and (request.model_dir / DESCRIPTION).is_file()


def delete_from_heads(request: FitInputs) -> UnlearnedModel:
    """Compute the mean of the heads without the forgotten rows, or with the corrected labels, and its provenance.

    Raises QualityError with the reason if exact deletion from the model is not possible.
    """
    reason = why_not(request)
    if reason is not None:
        raise QualityError(f"exact: {reason}")
    heads, placed, manifest = load_heads(request)
    removed = np.union1d(request.forget_rows, request.left_out)
    left = _rows(request, placed, request.retain_rows)
    if request.corrects:
        z, new, shard = _rows(request, placed, removed)
        after, again = heads.corrected((z, torch.from_numpy(request.old_labels[removed]), shard), new, left)
    else:
        after, again = heads.without(_rows(request, placed, removed), left)
    known, ridge = after.known, request.classifier.card.training == "ridge"
    accuracy = dict(accuracy_of(known))
    holds = all(h.drift_ <= h.drift if isinstance(h, RidgeHead) else h.converged_ for h in known)
    if ridge:
        accuracy["relative_tolerance"] = 0.0 if known[0].get_params()["quantum"] is not None else TOLERANCE
    sums = "sums of the corrected rows moved" if request.corrects else "sums less those of the rows"
    which = sums if ridge else "Newton-CG from the present optimum"
    exact = {
        "holds": holds and int(after.counts_.sum()) == len(request.retain_rows),
        "procedure": f"{'ridge' if ridge else 'softmax'}: {len(again)} of {len(after.heads)} heads changed, by {which}",
        "accuracy": accuracy,
        **provenance(request, known[0], manifest),
        "heads": {
            "count": len(after.heads),
            "key": after.key,
            "parts": [
                {"rows": int(rows.sum()), "merkle_root": _root(request, placed, number)}
                for number, rows in enumerate(after.counts_)
            ],
        },
        "again": again,
    }
    return UnlearnedModel(identity(request.store.dim), after.head_, {"exact": exact}, exact_head=after)


def load_heads(request: FitInputs) -> tuple[HeadShards, ShardAssignment, dict[str, Any]]:
    """Load the heads that training kept, the shards of the training rows, and the manifest of the model.

    Raises QualityError if the heads belong to other rows, another key or another backbone.
    """
    assert request.model_dir is not None
    card, manifest = request.classifier.card, read_manifest(request.model_dir)
    heads = HeadShards.load(request.model_dir, KINDS[card.training])
    placed = assignment_of(request, {"count": len(heads.heads), "slices": 1, "key": heads.key})
    counts = count_rows(placed.shard, request.old_labels[request.train_rows], len(heads.heads), card.num_classes)
    same = all(np.array_equal(h.counts_.numpy(), c) for h, c in zip(heads.heads, counts, strict=True) if h is not None)
    if not same or not np.array_equal(heads.counts_, counts):
        raise QualityError(
            f"exact: the heads in {request.model_dir} were trained on other rows than the shards of the dataset "
            "contain; run the train stage again"
        )
    if manifest["backbone_digest"] != backbone_digest(request.classifier):
        raise QualityError(
            f"exact: {request.model_dir}: its backbone is not the one that its manifest names; run the train stage "
            "again"
        )
    return heads, placed, manifest


def recompute(request: FitInputs, shipped: LinearHead, claim: dict[str, Any]) -> dict[str, Any]:
    """Audit as `exact.recompute` does, for all heads: each is fitted from scratch and their mean is compared."""
    described = claim["heads"]
    placed = assignment_of(request, {"count": described["count"], "slices": 1, "key": described["key"]})
    same_rows = rows_root(request) == claim["rows"]["merkle_root"] and all(
        _root(request, placed, number) == part["merkle_root"] for number, part in enumerate(described["parts"])
    )
    kind = RidgeHead if claim["head"]["kind"] == "RidgeHead" else SoftmaxHead
    z, y, shard = _rows(request, placed, request.retain_rows)
    classes = request.classifier.card.num_classes
    heads = HeadShards.fit(lambda: kind(**claim["head"]["settings"]), z, y, shard, placed.shards, classes, placed.key)
    ours, theirs = (torch.cat([h.weight, h.bias[:, None]], dim=1).double() for h in (heads.head_, shipped))
    same_bits, absent = bool(torch.equal(ours, theirs)), torch.from_numpy(heads.counts_.sum(axis=0) == 0)
    same_masked = bool(torch.equal(ours[absent, -1], theirs[absent, -1]))
    for weights in (ours, theirs):  # the bias of a class without rows is a mask, not a fitted weight
        weights[absent, -1] = 0.0
    distance = float((ours - theirs).norm())
    size = float(np.sqrt(sum(float(h.head_.weight.double().square().sum()) for h in heads.known)) + ours.norm())
    if kind is RidgeHead:
        allowed = claim["accuracy"]["relative_tolerance"] * size
    else:
        allowed = accuracy_of(heads.known)["bound"] + claim["accuracy"]["bound"]
    same_backbone = backbone_digest(request.classifier) == claim["public"]["backbone_digest"]
    allowed += torch.finfo(torch.float32).eps * size
    return {
        "agrees": same_rows and same_backbone and same_masked and distance <= allowed,
        "rows": same_rows,
        "backbone": same_backbone,
        "distance": distance,
        "allowed": allowed,
        "same_bits": same_bits,
    }


def _rows(
    request: FitInputs, placed: ShardAssignment, rows: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Features `(n, d)`, labels `(n,)` and shards `(n,)` of `rows`."""
    z, labels = torch.from_numpy(request.store.z(rows)), torch.from_numpy(request.labels[rows])
    return z, labels, placed.shard[request.among_train(rows)]


def _root(request: FitInputs, placed: ShardAssignment, number: int) -> str:
    """Merkle root of the retained rows of shard `number`."""
    return placed.root(placed.up_to(request.among_train(request.retain_rows), number, 0))
