"""Head refit: train the head again on retained features alone, to the optimum."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.core.convex import LinearProblem, cross_entropy, minimise
from expunge.core.estimator import Estimator
from expunge.core.head import LinearHead
from expunge.core.logit_mask import MASKED_BIAS
from expunge.core.maps import FeatureMap, identity
from expunge.core.moments import Moments, as_features
from expunge.errors import DataError


class HeadRefit(Estimator):
    """Minimise `mean cross-entropy + l2/2 ||W||^2` over the retained rows, started from the present head.

    The optimum is one point (the loss is strictly convex for l2 > 0, up to a common shift of the biases), so the result
    does not depend on what the head was: exact unlearning of the head, when the backbone never saw the forgotten rows.
    Classes without a retained row are masked: row zero, bias -1e4, as the unpenalised optimum would be minus infinity.

    l2      as scikit-learn's LogisticRegression with C = 1 / (l2 n)
    tol     on the largest entry of the preconditioned gradient; float32 features reach about 1e-6

    Fitted: `head_`, `map_` (the identity, or the map given), `gradient_norm_`, `steps_`.
    """

    head_: LinearHead
    map_: FeatureMap
    gradient_norm_: float
    steps_: int

    def __init__(self, l2: float = 1e-4, tol: float = 1e-6, steps: int = 500) -> None:
        self.l2 = l2
        self.tol = tol
        self.steps = steps

    def fit(
        self,
        head: LinearHead,
        z: Tensor,
        labels: Tensor,
        map_: FeatureMap | None = None,
        moments: Moments | None = None,
    ) -> HeadRefit:
        """`z (n, d)` retained features, `labels (n,)` in the head's classes.

        `map_` is applied to `z` first and kept; `moments` of the mapped rows save a pass where they are known.
        """
        z = as_features(z, head.dim)
        if z.shape[0] == 0 or labels.shape != z.shape[:1]:
            raise DataError(
                f"a head needs rows and one label each, got {z.shape[0]} rows, {tuple(labels.shape)} labels"
            )
        labels = labels.long()
        if int(labels.min()) < 0 or int(labels.max()) >= head.num_classes:
            raise DataError(
                f"labels must be in 0 .. {head.num_classes - 1}, got {int(labels.min())} .. {int(labels.max())}"
            )
        z = map_(z) if map_ is not None else z.to(torch.promote_types(z.dtype, torch.float32))
        classes, labels = torch.unique(labels, return_inverse=True)
        present = torch.zeros(head.num_classes, dtype=torch.bool, device=z.device).index_fill(0, classes, True)
        start = torch.cat([head.weight, head.bias[:, None]], dim=1).to(z.device, torch.float64)[present]
        start[start.abs() >= abs(MASKED_BIAS)] = 0.0
        second = (moments or Moments.of(z)).second(augmented=True)
        x = torch.cat([z, z.new_ones(len(z), 1)], dim=1)
        ridge = torch.full((head.dim + 1,), self.l2, dtype=torch.float64, device=z.device)
        ridge[-1] = 0.0
        problem = LinearProblem(x, labels, cross_entropy, ridge)
        found = minimise(problem, start, second, self._curvature(x, start), self.tol, self.steps)
        weight = torch.zeros(head.num_classes, head.dim, dtype=torch.float64, device=z.device)
        bias = torch.full((head.num_classes,), MASKED_BIAS, dtype=torch.float64, device=z.device)
        weight[present], bias[present] = found.p[:, :-1], found.p[:, -1]
        self.head_ = LinearHead(weight, bias)
        self.map_ = map_ if map_ is not None else identity(head.dim)
        self.gradient_norm_, self.steps_ = found.gradient_norm, found.steps
        return self

    @staticmethod
    def _curvature(x: Tensor, start: Tensor) -> float:
        """The mean of p (1 - p) over classes and a sample of rows, at the start: the size of the Hessian."""
        sample = x[:: max(1, len(x) // 2048)].double()
        p = torch.softmax(sample @ start.T, dim=1)
        return max(float((p * (1 - p)).mean()), 1e-3)
