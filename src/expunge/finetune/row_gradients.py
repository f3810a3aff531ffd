"""Gradients of single rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import grad, vmap

from expunge.models.classifier import Classifier
from expunge.models.tokens import Tokens

Parameters = Mapping[str, Tensor]


def row_gradients(model: Classifier, value: Callable[..., Tensor]) -> Callable[..., dict[str, Tensor]]:
    """Return a function of parameters and inputs whose result has, by name, the gradient `(n, ...)` of each row.

    `value(parameters, *row)` returns a scalar. Rows of images are computed at once. Those of texts are computed one
    after the other, because transformers reads the values of attention masks, which `vmap` does not permit.
    """
    one = grad(value)
    if not isinstance(model.preprocess, Tokens):
        return lambda parameters, *rows: vmap(one, in_dims=(None, *[0] * len(rows)))(parameters, *rows)

    def each(parameters: Parameters, *rows: Tensor) -> dict[str, Tensor]:
        found = [one(parameters, *row) for row in zip(*rows, strict=True)]
        return {name: torch.stack([gradients[name] for gradients in found]) for name in parameters}

    return each
