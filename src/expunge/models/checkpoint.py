"""Weights on disk: our own checkpoints, and files of others read without executing anything in them.

A checkpoint directory holds `model.safetensors` (`backbone.*`, `head.*`), `model.json`, `tokenizer.json` where the
model reads texts, and, last, `manifest.json`.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.errors import CheckpointError
from expunge.files import digest_of, read_json, read_manifest, write_json
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.layers import PENULTIMATE
from expunge.models.preprocess import Preprocess
from expunge.models.tokens import Tokens

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
SCHEMA = 1
# Where training scripts put the weights in what they save beside the optimizer.
NESTED = ("state_dict", "model", "model_state_dict")


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """`sha256:...` over names, types, shapes and bytes, in order of name."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        h.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + h.hexdigest()


def backbone_digest(classifier: Classifier) -> str:
    """Digest of what makes z: the backbone's tensors and, where they were chosen, the layers that z is read from. A new
    head on the same backbone leaves it as it is."""
    tensors, layers = digest_of_tensors(classifier.backbone.state_dict()), classifier.card.layers
    return tensors if layers == (PENULTIMATE,) else digest_of({"tensors": tensors, "layers": list(layers)})


def save_classifier(directory: Path, classifier: Classifier) -> dict[str, Any]:
    """Write weights and description into `directory`; return the description. The caller writes the manifest."""
    # contiguous: training keeps convolution weights channels-last, the file has one order.
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in classifier.state_dict().items()}
    save_file(tensors, directory / WEIGHTS)
    description = {
        "schema": SCHEMA,
        "card": classifier.card.to_json(),
        "preprocess": classifier.preprocess.to_json(),
        "backbone_digest": backbone_digest(classifier),
    }
    if isinstance(classifier.preprocess, Tokens):
        classifier.preprocess.save(directory)
    write_json(directory / DESCRIPTION, description)
    return description


def load_classifier(directory: Path | str) -> Classifier:
    """The classifier of a checkpoint directory, in eval mode, after checking it against its manifest.

    Raises ManifestError for a damaged directory, CheckpointError for tensors that do not fit the architecture.
    """
    from expunge.models.zoo import rebuild  # zoo reads checkpoints too

    directory = Path(directory)
    read_manifest(directory)
    description = read_json(directory / DESCRIPTION)
    if description.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{directory / DESCRIPTION}: schema {description.get('schema')!r}, this version reads {SCHEMA}"
        )
    given = description["preprocess"]
    preprocess = Tokens.load(directory, given) if "tokenizer" in given else Preprocess.from_json(given)
    classifier = rebuild(ModelCard.from_json(description["card"]), preprocess)
    load_tensors(classifier, read_weights(directory / WEIGHTS), directory / WEIGHTS)
    return classifier.eval()


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Copy `tensors` into `module`. Raises CheckpointError naming the first that are missing, unknown or misshapen."""
    own = module.state_dict()
    # Old files lack batch norm's step counter, which nothing here reads.
    missing = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    unknown = [k for k in tensors if k not in own]
    misshapen = [
        f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and v.shape != own[k].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if names
    ]
    if problems:
        kind = type(module).__name__
        raise CheckpointError(
            f"{source}: made for another architecture than this {kind}; tensors: {'; '.join(problems)}"
        )
    module.load_state_dict({**own, **tensors})


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Name -> tensor of a `.safetensors`, `.pt` or `.pth` file. Code inside the file is never executed.

    A `.pt` may hold the tensors directly or under `state_dict` or `model`; the prefix `module.` of data-parallel
    training is dropped. Raises CheckpointError if the file is missing, damaged, or anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; check the path, or train the model first")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path)
    raise CheckpointError(f"{path}: unknown kind of checkpoint; expected .safetensors, .pt or .pth")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as e:
        error = e
    with path.open("rb") as f:
        start = f.read(4)
    # Only now: a header of 128 bytes starts with the first byte of a pickle.
    if start[:1] == b"\x80" or start == b"PK\x03\x04":
        raise CheckpointError(
            f"{path}: a pickle named .safetensors, so it was refused; save the weights with safetensors.torch.save_file"
        )
    raise CheckpointError(f"{path}: not a complete safetensors file ({error}); copy or write it again")


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, before it refuses them
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds more than tensors (a pickle could run code), so it was refused. "
            "Save only model.state_dict(), best with safetensors.torch.save_file"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as e:
        raise CheckpointError(
            f"{path}: cannot be read as a torch checkpoint ({type(e).__name__}: {str(e).partition(chr(10))[0]})"
        ) from None
    for key in NESTED:
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
            break
    if not isinstance(value, dict) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise CheckpointError(f"{path}: not a dictionary of tensors; save model.state_dict()")
    prefix = "module."
    if all(k.startswith(prefix) for k in value):
        value = {k.removeprefix(prefix): v for k, v in value.items()}
    return dict(value)
