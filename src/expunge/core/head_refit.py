"""Head refit: train the head again on retained features alone, or on corrected labels, to the optimum."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.convex import LinearProblem, cross_entropy, minimise
from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.core.head import LinearHead
from expunge.core.logit_mask import MASKED_BIAS
from expunge.core.maps import FeatureMap, identity
from expunge.core.moments import as_features
from expunge.system.errors import DataError

# The preconditioner need not be exact, so it is computed from about this many rows.
SAMPLE_ROWS = 8192


class HeadRefit(Estimator):
    """Minimise `mean cross-entropy + l2/2 ||W||^2` over the retained rows, started from the present head.

    For l2 > 0 the optimum is unique (up to a common shift of the biases), so the result depends on the present head
    only within `tol`. If the backbone never saw the forgotten rows, this is exact unlearning of the head, to that
    tolerance. Classes without a retained row are masked with weight 0 and bias -1e4, because the bias is not penalised
    and its optimum would be minus infinity.

    l2      corresponds to C = 1 / (l2 n) in scikit-learn's LogisticRegression
    tol     bound on the largest entry of the preconditioned gradient. 1e-5 gives a relative distance of about 1e-6
            from the optimum; float32 features allow little more

    Fitted: `head_`, `map_` (the identity, or the map given), `gradient_norm_`, `steps_`.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows", "corrections"), ("features", "retained rows"), "head", "features only", "derived"
    )
    head_: LinearHead
    map_: FeatureMap
    gradient_norm_: float
    steps_: int

    def __init__(self, l2: float = 1e-4, tol: float = 1e-5, steps: int = 500) -> None:
        self.l2 = l2
        self.tol = tol
        self.steps = steps

    def fit(
        self,
        head: LinearHead,
        z: Tensor,
        labels: Tensor,
        map_: FeatureMap | None = None,
    ) -> HeadRefit:
        """Fit to retained features `z (n, d)` and `labels (n,)`, which are classes of the head.

        `map_` is applied to `z` first and becomes the fitted `map_`. Raises DataError where there are no rows, or where
        the labels do not fit the rows or the head.
        """
        z = as_features(z, head.dim)
        if z.shape[0] == 0 or labels.shape != z.shape[:1]:
            raise DataError(
                f"a head needs at least one row and one label per row, got {z.shape[0]} rows and labels "
                f"{tuple(labels.shape)}"
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
        # A class that the present head masks starts from bias 0.
        start[start.abs() >= abs(MASKED_BIAS)] = 0.0
        x = torch.cat([z, z.new_ones(len(z), 1)], dim=1)
        ridge = torch.full((head.dim + 1,), self.l2, dtype=torch.float64, device=z.device)
        ridge[-1] = 0.0
        problem = LinearProblem(x, labels, cross_entropy, ridge)
        found = minimise(problem, start, hessian_guess(x, start, ridge), self.tol, self.steps)
        weight = torch.zeros(head.num_classes, head.dim, dtype=torch.float64, device=z.device)
        bias = torch.full((head.num_classes,), MASKED_BIAS, dtype=torch.float64, device=z.device)
        weight[present], bias[present] = found.p[:, :-1], found.p[:, -1]
        self.head_ = LinearHead(weight, bias)
        self.map_ = map_ if map_ is not None else identity(head.dim)
        self.gradient_norm_, self.steps_ = found.gradient_norm, found.steps
        return self


def hessian_guess(x: Tensor, p: Tensor, ridge: Tensor) -> Tensor:
    """Return the Hessian of cross-entropy at `p (C, p)`, averaged over classes, from a sample of rows; float64.

    The result is `(p, p)`. As in the Hessian itself, each row is weighted by `q (1 - q)` of its probabilities, so the
    rows near a decision boundary determine the curvature. A small constant keeps every row's weight above zero.
    """
    sample = x[:: max(1, len(x) // max(SAMPLE_ROWS, 8 * x.shape[1]))].double()
    shares = torch.softmax(sample @ p.T, dim=1)
    weights = (shares * (1 - shares)).mean(dim=1)
    weights = weights + 0.01 * weights.mean() + 1e-6
    return sample.T @ (weights[:, None] * sample) / len(sample) + torch.diag(ridge)
