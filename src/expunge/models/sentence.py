"""Text classifiers: a transformer encoder, the masked mean of its last hidden states, and a linear head."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.models.classifier import Classifier, ModelCard
from expunge.models.families import transformers_config, transformers_file, transformers_names
from expunge.models.layers import PENULTIMATE, Layers, masked_mean
from expunge.models.tokens import TOKENIZER, Tokens
from expunge.models.weights import load_tensors, read_weights
from expunge.system.errors import ConfigError
from expunge.system.vision_imports import import_vision

PREFIX = "sentence:"
LONGEST = 512  # tokens, unless the tokenizer or the encoder has a lower limit
# Texts of similar length per forward pass. On a processor, larger groups of a batch of 64 compute mostly padding; a GPU
# loses more by many small passes.
ROWS, ROWS_ON_GPU = 8, 32


class SentenceEncoder(nn.Module):
    """Maps token ids `(n, t)` of texts to the mean of each text's last hidden states `(n, d)`.

    Token ids are int64, and negative after the end of a text.
    """

    def __init__(self, model: nn.Module, pad: int) -> None:
        super().__init__()
        self.model = model
        self.pad = pad

    def forward(self, ids: Tensor) -> Tensor:
        """Return the features `(n, d)` of the token ids `(n, t)`."""
        inside = ids >= 0
        out = self.model(input_ids=torch.where(inside, ids, self.pad), attention_mask=inside.long())
        return masked_mean(out.last_hidden_state, inside)


class ByLength(nn.Module):
    """Runs `encoder` on groups of texts of similar length, which avoids most of the computation on padding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how timm numbers the layers for layer decay: embeddings first, then the encoder's layers, then rest.

        `coarse` is part of timm's interface and has no effect.
        """
        layers = r"encoder\.model\.(?:.*\.)?(?:layer|layers|h|block|blocks)\.(\d+)\."
        return {
            "stem": r"encoder\.model\.(?:embeddings|wte|wpe|embed_tokens|shared)",
            "blocks": [(layers, None), (r".", (99_999,))],
        }

    def forward(self, ids: Tensor) -> Tensor:
        """Return the features `(n, d)` of the token ids `(n, t)`, in the given order of texts."""
        if len(ids) == 1:  # torch.func.vmap gives one text at a time, and cannot read its length
            z: Tensor = self.encoder(ids)
            return z
        lengths = (ids >= 0).sum(1)
        order = lengths.argsort(stable=True)
        groups = torch.split(order, ROWS_ON_GPU if ids.is_cuda else ROWS)
        parts = [self.encoder(ids[rows, : max(int(lengths[rows[-1]]), 1)]) for rows in groups]
        z = torch.cat(parts)
        return torch.empty_like(z).index_copy_(0, order, z)


def build_sentence(
    name: str,
    num_classes: int,
    *,
    training: str,
    saw_forget_data: bool,
    checkpoint: Path | str | None,
    layers: tuple[str, ...],
    seed: int,
) -> Classifier:
    """Build `sentence:DIR-OR-NAME`: a transformers encoder with its tokenizer and a new linear head, in eval mode.

    Weights come from `checkpoint`, else from the directory. Pooling is always the masked mean, even if the directory
    specifies another one. Raises ConfigError for an unsupported `training`, for missing weights and for files that
    transformers cannot read, CheckpointError for weights that do not fit.
    """
    if training == "none":
        raise ConfigError(
            f"model.training: {training}: a text encoder has no head for these classes; set model.training to head, "
            "ridge, above or full"
        )
    detail = name.removeprefix(PREFIX)
    config, weights = transformers_config(detail)
    source = Path(checkpoint) if checkpoint is not None else weights
    if source is None:
        raise ConfigError(f"model.checkpoint: {name} has no model.safetensors; name a file of weights")
    tokens = _tokens(detail, config)
    card = ModelCard(name, num_classes, 0, training, saw_forget_data, options={"config": config}, layers=layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _encoder(card)
        # Tensors that the encoder lacks, such as those of a pretraining head, are ignored; all of its own must exist.
        _load(encoder, source)
        return _classifier(encoder, tokens, card)


def rebuild_sentence(card: ModelCard, tokens: Tokens, weights: Path | None = None) -> Classifier:
    """Build the architecture that a card describes; load the encoder's `weights` if a file is given."""
    with torch.random.fork_rng(devices=[]):
        encoder = _encoder(card)
        if weights is not None:
            _load(encoder, weights)
        return _classifier(encoder, tokens, card)


def weights_of_sentence(card: ModelCard) -> Path | None:
    """Return the file of weights in the encoder's directory, or None."""
    return transformers_config(card.name.removeprefix(PREFIX))[1]


def _load(encoder: SentenceEncoder, source: Path) -> None:
    own = encoder.model.state_dict()
    tensors = transformers_names(encoder.model, read_weights(source))
    load_tensors(encoder.model, {k: v for k, v in tensors.items() if k in own}, source)


def _encoder(card: ModelCard) -> SentenceEncoder:
    transformers = import_vision("transformers")
    given = dict(card.options["config"])
    config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    model = transformers.AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # it uses only the first token, and not every checkpoint has it
    return SentenceEncoder(model, config.pad_token_id or 0).eval()


def _classifier(encoder: SentenceEncoder, tokens: Tokens, card: ModelCard) -> Classifier:
    example = torch.tensor([[1, 2, 3], [3, 1, -1]])
    inner: nn.Module = encoder
    if card.layers != (PENULTIMATE,):
        inner = Layers(encoder, [n if n == PENULTIMATE else f"model.{n}" for n in card.layers], example)
    with torch.no_grad():
        dim = inner(example).shape[1]
    head = nn.Linear(dim, card.num_classes)
    return Classifier(ByLength(inner), head, tokens, replace(card, feature_dim=dim)).eval()


def _tokens(detail: str, config: dict[str, Any]) -> Tokens:
    """Return the tokenizer, with the lowest of the length limits of tokenizer, encoder and LONGEST."""
    file = transformers_file(detail, TOKENIZER)
    if file is None:
        raise ConfigError(
            f"model.name: {detail!r} has no {TOKENIZER}; write it with save_pretrained of transformers.AutoTokenizer"
        )
    limits = [config.get("max_position_embeddings"), LONGEST]
    for name, key in (("tokenizer_config.json", "model_max_length"), ("sentence_bert_config.json", "max_seq_length")):
        if found := transformers_file(detail, name):
            limits.append(json.loads(found.read_text(encoding="utf-8")).get(key))
    return Tokens(file.read_text(encoding="utf-8"), int(min(limit for limit in limits if limit)))
