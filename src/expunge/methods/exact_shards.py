"""Exact deletion from a model in shards: only the shards that hold forgotten rows are trained again.

`training/recipe.py` trains by `finetune.shards.train_shards` on the same activations. All shards, retrained or kept,
are therefore bit-identical to those of training on a dataset without the rows, on the same machine.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.finetune.above import activations_alone
from expunge.finetune.shard_assignment import ShardAssignment, assign_shards
from expunge.finetune.shards import counts_of, earlier_training, shards_of, train_shards
from expunge.methods.exact import rows_root
from expunge.methods.exact_above import provenance, retained_activations, why_not
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier
from expunge.models.cuts import split_at_cut
from expunge.models.lower import lower_digest
from expunge.models.sharded import average, core_with_shards, unsharded
from expunge.models.zoo import public_start
from expunge.system.errors import ConfigError, QualityError


def delete_from_shards(request: FitInputs) -> UnlearnedModel:
    """Retrain the affected shards on their retained rows with the original's recipe and seed; add the provenance.

    Raises QualityError with the reason if exact deletion from the model is not possible.
    """
    reason = why_not(request)
    if reason is not None:
        raise QualityError(f"exact: {reason}")
    claim = dict(request.classifier.card.above or {})
    recipe, shards = claim["recipe"], claim["shards"]
    placed = assignment_of(request, shards)
    activations = retained_activations(request, recipe["cut"], claim["lower_digest"])
    trained = train_shards(
        request.classifier,
        activations,
        request.labels[request.train_rows],
        request.among_train(request.retain_rows),
        recipe,
        placed,
        earlier_training(request.classifier, request.model_dir),
        request.engine,
    )
    above = dict(trained.classifier_.card.above or {})
    same = all(above[key] == claim[key] for key in ("recipe", "lower_digest"))
    exact = {
        "holds": same and above["shards"]["key"] == shards["key"],
        "procedure": (
            f"above: {len(trained.again)} of {shards['count']} shards trained again from public weights on kept "
            f"activations, {'on the corrected labels' if request.corrects else 'without the rows'}"
        ),
        "accuracy": {"relative_tolerance": 0.0},
        "weights_digest": digest_of_tensors(trained.classifier_.state_dict()),
        **provenance(request),
        "shards": above["shards"],
        "again": {str(shard): step for shard, step in sorted(trained.again.items())},
    }
    return UnlearnedModel.of_classifier(trained.classifier_, {"exact": exact, "history": trained.history_}, trained)


def assignment_of(request: FitInputs, shards: dict[str, Any]) -> ShardAssignment:
    """Shards and slices of the training rows, by the key that the model was trained with.

    Raises ConfigError if the directory of the key is not given, and QualityError if it holds another key.
    """
    if request.forgotten_dir is None:
        raise ConfigError("exact: no directory was given for the key that places subjects into shards")
    placed = assign_shards(
        request.dataset, request.train_rows, request.forgotten_dir, int(shards["count"]), int(shards["slices"])
    )
    if placed.key != shards["key"]:
        raise QualityError(
            f"exact: {request.forgotten_dir}/key is not the key with which the model's subjects were placed into "
            "shards; copy the key from where the model was trained, or train again with `dvc repro --force train`"
        )
    return placed


def drawn(nonce: str, count: int, wanted: int) -> list[int]:
    """Select `wanted` of `count` shards by an auditor's `nonce` in hexadecimal digits; return their sorted numbers.

    Selected are the shards whose numbers have the smallest HMAC-SHA256 under the nonce. Without knowing the nonce
    nobody can predict the selection. Raises ConfigError for a nonce of fewer than 16 bytes and for a `wanted` outside
    1..count.
    """
    try:
        key = bytes.fromhex(nonce)
    except ValueError:
        key = b""
    if len(key) < 16:
        raise ConfigError(
            "--nonce: give at least 16 bytes as hexadecimal digits, such as those of `openssl rand -hex 16`"
        )
    if not 1 <= wanted <= count:
        raise ConfigError(f"--shards is {wanted}, but the model has {count} shards; give a number from 1 to {count}")
    order = sorted(range(count), key=lambda shard: hmac.digest(key, shard.to_bytes(4, "big"), "sha256"))
    return sorted(order[:wanted])


def recompute(
    request: FitInputs,
    shipped: Classifier,
    claim: dict[str, Any],
    from_inputs: Path | None = None,
    chosen: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Audit the claim by recomputation: train the `chosen` shards again and compare them with those `shipped`.

    Training starts from the public weights and uses the shards' retained rows and the recipe in `claim`
    (`info["exact"]`). `chosen`: numbers of shards; None means all. For every shard the Merkle root of its rows and the
    digest of its weights are compared with the claim, and the weights of their mean with those that the counts of rows
    give. `from_inputs` and the result are as in `exact_above.recompute`. `distance` is that of the retrained shards,
    which `shards_made_again` lists.
    """
    recipe, shards = claim["recipe"], claim["shards"]
    cut, lower = recipe["cut"], claim["public"]["lower_digest"]
    again = list(range(shards["count"])) if chosen is None else list(chosen)
    public = public_start(replace(request.classifier.card, above=None), request.classifier.preprocess).eval()
    same_lower = all(lower_digest(split_at_cut(unsharded(m), cut)) == lower for m in (public, shipped))
    placed, rows = assignment_of(request, shards), request.among_train(request.retain_rows)
    activations, same_activations = retained_activations(request, cut, lower), None
    if from_inputs is not None:
        stored, activations = activations, activations_alone(public, request.dataset, cut, from_inputs)
        same_activations = bool(np.array_equal(activations, stored, equal_nan=True))
    all_shards = shards_of(public, recipe, placed, rows)
    ends, labels = _ends(shipped), request.labels[request.train_rows]
    same_rows = rows_root(request) == claim["rows"]["merkle_root"] and all(
        shard.roots == [step["merkle_root"] for step in steps]
        for shard, steps in zip(all_shards, shards["parts"], strict=True)
    )
    same_bits = all(
        digest_of_tensors(end) == steps[-1]["weights_digest"] for end, steps in zip(ends, shards["parts"], strict=True)
    )
    distance = 0.0
    for number in again:
        states, _ = all_shards[number].trained(activations, labels)
        same_bits &= all_shards[number].records(states) == shards["parts"][number]
        last = states[-1]
        distance = max(distance, *(float((last[k].double() - v.double()).abs().max()) for k, v in ends[number].items()))
    mean = average(counts_of(all_shards, labels, public.card.num_classes))
    same_mean = all(torch.equal(*both) for both in zip(mean, (shipped.head.weight, shipped.head.bias), strict=True))
    return {
        "agrees": same_rows and same_lower and same_bits and same_mean and same_activations is not False,
        "rows": same_rows,
        "backbone": same_lower,
        "activations": same_activations,  # None: not computed again
        "distance": distance,
        "allowed": 0.0,
        "same_bits": same_bits,
        "same_mean": same_mean,
        "shards": shards["count"],
        "shards_made_again": again,
    }


def _ends(shipped: Classifier) -> list[dict[str, torch.Tensor]]:
    """State dict of every shard of a classifier, detached."""
    core = core_with_shards(shipped)
    assert core is not None
    return [{k: v.detach() for k, v in upper.state_dict().items()} for upper in core.uppers]
