"""Build classifiers by name, split into backbone and head, with their initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from expunge.models.classifier import Classifier, ModelCard
from expunge.models.families import Expects, Headed, Shape, family_of, transformers_names
from expunge.models.heads import LogitsOf, find_head, split_at
from expunge.models.layers import PENULTIMATE, Layers
from expunge.models.preprocess import Preprocess
from expunge.models.random_features import with_random_features
from expunge.models.sentence import PREFIX, build_sentence, rebuild_sentence, weights_of_sentence
from expunge.models.sharded import sharded
from expunge.models.tokens import Tokens
from expunge.models.weights import load_tensors, read_weights
from expunge.system.errors import CheckpointError, ConfigError
from expunge.system.files import sha256


def build(
    name: str,
    num_classes: int,
    image_shape: Shape | None,
    *,
    training: str = "full",
    saw_forget_data: bool = True,
    image_size: int | None = None,
    checkpoint: Path | str | None = None,
    head: str | None = None,
    layers: Sequence[str] = (PENULTIMATE,),
    seed: int = 0,
    public: bool = False,
    random_features: int = 0,
) -> Classifier:
    """Build the classifier `name` for images of `image_shape` (h, w, c), or for texts (None), in eval mode.

    Weights come from `checkpoint`, else from the source (EfficientNet-Lite0's package, a transformers directory), else
    they are drawn with `seed`. With `training` "none" all tensors must fit; otherwise a head for another number of
    classes is replaced by a new one. Only "full" can start from random weights.
    `image_size`: side of the square to which images are resized; None: the backbone's own size.
    `head`: name of the last linear layer; None: it is searched.
    `layers`: modules whose pooled outputs are concatenated to the features (see Layers), with a new head.
    `random_features`: number of random features appended to z, for a head on a frozen backbone (see RandomFeatures).
    `public`: the weights are public, so they do not depend on rows that a request may name; the card records them.
    Raises ConfigError for invalid names and sizes and for missing weights, CheckpointError for weights that do not fit.
    """
    if (image_shape is None) != name.startswith(PREFIX):
        kinds = "images, but the dataset holds texts" if image_shape is None else "texts, but the dataset holds images"
        raise ConfigError(f"model.name: {name} takes {kinds}; use sentence:NAME-OR-DIR for texts")
    if image_shape is None:
        if image_size or head:
            raise ConfigError("model.image_size and model.head: must be null for texts")
        classifier = build_sentence(
            name,
            num_classes,
            training=training,
            saw_forget_data=saw_forget_data,
            checkpoint=checkpoint,
            layers=tuple(layers),
            seed=seed,
        )
        if public:
            classifier.card = replace(
                classifier.card, weights=_recorded(name, checkpoint, weights_of_sentence(classifier.card))
            )
        return with_random_features(classifier, random_features) if random_features else classifier
    family, detail = family_of(name)
    expects = family.expects(detail, image_shape, (image_size, image_size) if image_size else None)
    weights = Path(checkpoint) if checkpoint is not None else expects.weights
    if training != "full" and weights is None:
        raise ConfigError(
            f"model.checkpoint: {name} has no weights of its own, and model.training is {training}; name a file of "
            "weights"
        )
    recorded = _recorded(name, checkpoint, expects.weights) if public else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.make(detail, num_classes, expects.size, image_shape[2], expects.options)
    preprocess = _preprocess(expects, model, image_shape[2], name)
    pixels = _example(preprocess)
    head = find_head(model, pixels, head and _inner_name(model, head))
    if weights is not None:
        _load(model, head, weights, strict=training == "none")
    card = ModelCard(name, num_classes, 0, training, saw_forget_data, head, expects.options, tuple(layers), recorded)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = _cut(model, head, pixels, preprocess, card)
    return with_random_features(classifier, random_features) if random_features else classifier


def rebuild(card: ModelCard, preprocess: Preprocess | Tokens) -> Classifier:
    """Build the architecture that a card describes; the caller loads the weights."""
    if card.above and "shards" in card.above:
        base = rebuild(replace(card, above=None), preprocess).eval()
        return sharded(base, card.above["recipe"]["cut"], card.above["shards"]["count"], card)
    if card.random_features:
        return with_random_features(rebuild(replace(card, random_features=0), preprocess), card.random_features)
    if isinstance(preprocess, Tokens):
        return rebuild_sentence(card, preprocess)
    family, detail = family_of(card.name)
    size = (preprocess.height, preprocess.width)
    with torch.random.fork_rng(devices=[]):
        model = family.make(detail, card.num_classes, size, preprocess.channels, card.options)
        return _cut(model, card.head, _example(preprocess), preprocess, card)


def public_start(card: ModelCard, preprocess: Preprocess | Tokens) -> Classifier:
    """Build the classifier of `card` as before training: with the public weights that it records and an initial head.

    Raises CheckpointError if the file of weights is missing or its sha256 is not the recorded one.
    """
    assert card.weights is not None
    source, text = card.weights["source"], isinstance(preprocess, Tokens)
    if source != card.name:
        path: Path | None = Path(source)
    elif text:
        path = weights_of_sentence(card)
    else:
        assert isinstance(preprocess, Preprocess)
        size = (preprocess.height, preprocess.width)
        family, detail = family_of(card.name)
        path = family.expects(detail, (*size, preprocess.channels), size).weights
    if path is None or not path.is_file():
        raise CheckpointError(
            f"the public weights of {source} are missing; put them back, or relearn with start: fresh"
        )
    if sha256(path) != card.weights["digest"].removeprefix("sha256:"):
        raise CheckpointError(
            f"{source}: is not the file of public weights that training started from ({card.weights['digest']}); put "
            "that file back"
        )
    if text:
        assert isinstance(preprocess, Tokens)
        return rebuild_sentence(card, preprocess, path)
    assert isinstance(preprocess, Preprocess)
    family, detail = family_of(card.name)
    with torch.random.fork_rng(devices=[]):
        model = family.make(
            detail, card.num_classes, (preprocess.height, preprocess.width), preprocess.channels, card.options
        )
        _load(model, card.head, path, strict=False)
        return _cut(model, card.head, _example(preprocess), preprocess, card)


def _recorded(name: str, checkpoint: Path | str | None, brought: Path | None) -> dict[str, str]:
    path = Path(checkpoint) if checkpoint is not None else brought
    if path is None:
        raise ConfigError(
            f"model.weights is public, but {name} has no weights of its own; name a file of public weights in "
            "model.checkpoint"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; check model.checkpoint")
    return {"source": name if checkpoint is None else str(checkpoint), "digest": f"sha256:{sha256(path)}"}


def _cut(model: nn.Module, head: str, pixels: Tensor, preprocess: Preprocess, card: ModelCard) -> Classifier:
    backbone, linear = split_at(model, head, pixels)
    if linear.out_features != card.num_classes:
        raise ConfigError(
            f"model.name: {card.name} returns {linear.out_features} logits, but the dataset has {card.num_classes} "
            "classes"
        )
    if isinstance(backbone, Headed):
        backbone = backbone.backbone
    if card.layers != (PENULTIMATE,):
        names = [n if n == PENULTIMATE else _inner_name(model, n) for n in card.layers]
        backbone = Layers(backbone, names, pixels)
        with torch.no_grad():
            linear = nn.Linear(backbone(pixels).shape[1], card.num_classes)
    return Classifier(backbone, linear, preprocess, replace(card, feature_dim=linear.in_features)).eval()


def _preprocess(expects: Expects, model: nn.Module, image_channels: int, name: str) -> Preprocess:
    """Return the preprocessing; the number of channels is that of the model's first convolution."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else image_channels
    mean, std = (v * channels if len(v) == 1 else v for v in (expects.mean, expects.std))
    try:
        return Preprocess(*expects.size, channels, mean, std, expects.interpolation)
    except ValueError as e:
        raise ConfigError(f"model.name: {name}: {e}") from None


def _example(preprocess: Preprocess) -> Tensor:
    """Return random pixels (seed 0), for which outputs of different layers do not agree by chance."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, preprocess.channels, preprocess.height, preprocess.width, generator=generator)


def _inner_name(model: nn.Module, head: str) -> str:
    """Add the prefix of LogitsOf to a module name, since users give names as in transformers."""
    return f"model.{head}" if isinstance(model, LogitsOf) else head


def _load(model: nn.Module, head: str, path: Path, strict: bool) -> None:
    target, inner, tensors = model, head, read_weights(path)
    if isinstance(model, LogitsOf):
        target, inner = model.model, head.removeprefix("model.")
        tensors = transformers_names(target, tensors)
    own = target.state_dict()
    if not strict:
        for key in (f"{inner}.weight", f"{inner}.bias"):
            if key in own and (key not in tensors or tensors[key].shape != own[key].shape):
                tensors[key] = own[key]
    load_tensors(target, tensors, path)
