"""Save and load Expunge's own checkpoints.

A checkpoint directory contains `model.safetensors` (`backbone.*`, `head.*`), `model.json`, `tokenizer.json` if the
model reads texts, and `manifest.json`, which is written last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from expunge.models.classifier import Classifier, ModelCard
from expunge.models.families import package_of
from expunge.models.layers import PENULTIMATE
from expunge.models.preprocess import Preprocess
from expunge.models.tokens import Tokens
from expunge.models.trained_on import refuse_contradiction
from expunge.models.weights import load_tensors, read_weights
from expunge.models.zoo import rebuild
from expunge.system.damage import reading
from expunge.system.errors import CheckpointError, ConfigError
from expunge.system.files import digest_of, read_json, read_manifest, write_json

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
SCHEMA = 1


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return `sha256:...` over the names, types, shapes and bytes of `tensors`, in order of name."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + h.hexdigest()


def backbone_digest(classifier: Classifier) -> str:
    """Return the digest of what determines z; it does not depend on the head.

    It covers the tensors of the backbone and, unless it is the default, the choice of layers.
    """
    tensors, layers = digest_of_tensors(classifier.backbone.state_dict()), classifier.card.layers
    return tensors if layers == (PENULTIMATE,) else digest_of({"tensors": tensors, "layers": list(layers)})


def save_classifier(directory: Path, classifier: Classifier) -> dict[str, Any]:
    """Write weights and description into `directory`; return the description. The caller writes the manifest."""
    # Training keeps convolution weights in channels-last order; the file always has the contiguous one.
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in classifier.state_dict().items()}
    save_file(tensors, directory / WEIGHTS)
    description = {
        "schema": SCHEMA,
        "card": classifier.card.to_json(),
        "preprocess": classifier.preprocess.to_json(),
        "backbone_digest": backbone_digest(classifier),
    }
    if (package := package_of(classifier.card.name)) is not None:
        description["package"] = package
    if isinstance(classifier.preprocess, Tokens):
        classifier.preprocess.save(directory)
    write_json(directory / DESCRIPTION, description)
    return description


def load_classifier(directory: Path | str) -> Classifier:
    """Load the classifier of a checkpoint directory in eval mode, after checking the directory against its manifest.

    Raises ManifestError for a damaged directory, CheckpointError for tensors that do not fit the architecture and for a
    `saw_forget_data` that contradicts the record of the training.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    with reading(directory / DESCRIPTION, "run the stage that writes it again", CheckpointError):
        return _load(directory, manifest)


def _load(directory: Path, manifest: Mapping[str, Any]) -> Classifier:
    description = read_json(directory / DESCRIPTION)
    if description.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{directory / DESCRIPTION}: has the schema {description.get('schema')!r}, but this version reads "
            f"{SCHEMA}; run the stage that writes it again"
        )
    given = description["preprocess"]
    preprocess = Tokens.load(directory, given) if "tokenizer" in given else Preprocess.from_json(given)
    card = ModelCard.from_json(description["card"])
    refuse_contradiction(directory, card, manifest)
    try:
        classifier = rebuild(card, preprocess)
    except ConfigError as e:
        raise CheckpointError(f"{directory / DESCRIPTION}: {e}") from None
    load_tensors(classifier, read_weights(directory / WEIGHTS), directory / WEIGHTS)
    return classifier.eval()
