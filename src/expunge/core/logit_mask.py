"""Logit masking, a control: it hides the forgotten classes from the output, and the features do not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.core.head import LinearHead, class_indices
from expunge.core.maps import AffineMap, identity

# The bias is finite so that the losses of forgotten rows stay finite and can be ranked.
MASKED_BIAS = -1e4


class LogitMask(Estimator):
    """Set the head rows of `classes` to zero and their biases to -1e4; features do not change."""

    facts: ClassVar[Facts] = Facts(("classes", "corrections"), ("head",), "head", "closed form", "control")
    head_: LinearHead
    map_: AffineMap

    def __init__(self, classes: int | Sequence[int]) -> None:
        self.classes = classes

    def fit(self, head: LinearHead) -> LogitMask:
        """Set `head_`, the masked head, and `map_`, the identity.

        Raises ValueError for a class that the head does not have, or if all classes are forgotten.
        """
        self.head_ = mask_classes(head, self.classes)
        self.map_ = identity(head.dim)
        return self


def mask_classes(head: LinearHead, classes: int | Sequence[int]) -> LinearHead:
    """Return a copy of the head with the rows of `classes` masked."""
    chosen = class_indices(classes, head.num_classes)
    weight, bias = head.weight.clone(), head.bias.clone()
    weight[chosen] = 0.0
    bias[chosen] = MASKED_BIAS
    return LinearHead(weight, bias)
