"""TeacherMap: a feature map that makes the model treat forgotten rows as a model that never saw them.

A second model, the teacher, never saw the forgotten rows. A small network learns the teacher's probabilities and
features for forgotten rows, where `Stitch` maps the features into the original's space, and to leave retained rows
unchanged. Relearning above a cut (`expunge.finetune.relearn`) makes a teacher in seconds. The teacher may be a poor
classifier, because the targets for retained rows are the original's, and those for forgotten rows combine the two.
[derived; measured in docs/relearn.md]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.core.estimator import Estimator, History
from expunge.core.facts import Facts
from expunge.core.guard import distortion, ratio, refuse_collapse
from expunge.core.head import LinearHead
from expunge.core.logit_mask import MASKED_BIAS, mask_classes
from expunge.core.maps import MlpMap
from expunge.core.moments import as_features
from expunge.core.representation_mlp import GUARD_ROWS, Network, shuffled_batches

LEAST = 1e-12  # the least probability, so that logarithms stay finite


class Stitch(Estimator):
    """Map another model's features t into the space of z: `z ~ A t + a`, by least squares over common rows.

    `ridge` is a share of the mean variance of t that is added to each variance, so that collinear features do not give
    large weights. Fitted: `weight_ (d, e)` and `bias_ (d,)` float64, and `r2_`, the explained share of the variance
    of z.
    """

    weight_: Tensor
    bias_: Tensor
    r2_: float

    def __init__(self, ridge: float = 1e-3) -> None:
        self.ridge = ridge

    def fit(self, t: Tensor, z: Tensor) -> Stitch:
        """Fit to features of the same rows, `t (n, e)` of the other model and `z (n, d)`.

        Raises ValueError where shapes do not fit or values are not finite.
        """
        t, z = as_features(t).double(), as_features(z).double()
        if len(t) != len(z) or len(t) < 2:
            raise ValueError(
                f"the features of both models must describe the same rows, at least 2, got {tuple(t.shape)} and "
                f"{tuple(z.shape)}"
            )
        if not bool(torch.isfinite(t).all() and torch.isfinite(z).all()):
            raise ValueError("the features of both models must be finite")
        t_mean, z_mean = t.mean(0), z.mean(0)
        t, z = t - t_mean, z - z_mean
        gram = t.T @ t
        gram.diagonal().add_(self.ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny))
        self.weight_ = torch.linalg.solve(gram, t.T @ z).T
        self.bias_ = z_mean - self.weight_ @ t_mean
        self.r2_ = 1 - ratio((t @ self.weight_.T - z).square().sum(), z.square().sum())
        return self

    def __call__(self, t: Tensor) -> Tensor:
        """Map features `(n, e)` of the other model onto features `(n, d)` float32."""
        return F.linear(t.double(), self.weight_.to(t.device), self.bias_.to(t.device)).float()


class TeacherMap(Estimator):
    """A ReLU network that moves forgotten features to the teacher's and keeps retained ones, trained by Adam.

    L = E_r KL(h(z) || h(f(z))) + E_f KL(q || h(f(z))) + w / tr Cov(z_r) (E_r ||f(z) - z||^2 + E_f ||f(z) - p||^2)

    h is the softmax of the head with the forgotten classes masked; `head_` is masked likewise. q is the geometric mean
    of the teacher's probabilities t and the original's own, q ~ t^a h(z)^(1-a), with a = `teacher_share`. The teacher
    never saw the rows but was trained briefly, and the original was trained on them, so their errors differ. p are the
    teacher's features and w is `feature_weight`. The first two terms determine the output of the head, the last one
    what a probe of z' finds. f(z) = z + g(z), where g is a ReLU network of `hidden` widths that is initially 0.

    steps, batch_size   of Adam; each step uses as many retained as forgotten rows, and the rate falls from `lr` to zero
    max_distortion      as in RepresentationLinear

    Fitted: `map_`, `head_`, `distortion_`, `history_`. The backbone does not change and still encodes the rows.
    """

    facts: ClassVar[Facts] = Facts(("classes", "rows"), ("features", "teacher"), "map", "features only", "derived")
    map_: MlpMap
    head_: LinearHead
    distortion_: float
    history_: History

    def __init__(
        self,
        hidden: Sequence[int] = (256,),
        teacher_share: float = 0.5,
        feature_weight: float = 3.0,
        steps: int = 300,
        lr: float = 2e-3,
        batch_size: int = 128,
        seed: int = 0,
        max_distortion: float | None = 0.5,
    ) -> None:
        self.hidden = hidden
        self.teacher_share = teacher_share
        self.feature_weight = feature_weight
        self.steps = steps
        self.lr = lr
        self.batch_size = batch_size
        self.seed = seed
        self.max_distortion = max_distortion

    def fit(
        self,
        z_retain: Tensor,
        z_forget: Tensor,
        head: LinearHead,
        teacher_probabilities: Tensor,
        teacher_features: Tensor,
        forget_classes: Sequence[int] = (),
    ) -> TeacherMap:
        """Fit to features `(n, d)` and `(m, d)`, and the teacher's probabilities `(m, C)` and features `(m, d)`.

        `forget_classes`: the classes without a retained row; they are masked, also in the teacher's probabilities.
        Raises ValueError where the arguments do not fit together, CollapseError where `max_distortion` is exceeded.
        """
        z_retain, z_forget = as_features(z_retain, head.dim).float(), as_features(z_forget, head.dim).float()
        teacher_features = as_features(teacher_features, head.dim).float()
        if len(teacher_features) != len(z_forget) or teacher_probabilities.shape != (len(z_forget), head.num_classes):
            raise ValueError(
                f"teacher_probabilities and teacher_features must have {len(z_forget)} rows, one per forgotten row, "
                f"and the former {head.num_classes} classes, got {tuple(teacher_probabilities.shape)} and "
                f"{tuple(teacher_features.shape)}"
            )
        self.head_ = mask_classes(head, forget_classes) if len(forget_classes) else head
        if not 0 < self.teacher_share <= 1:
            raise ValueError(f"teacher_share {self.teacher_share} must be above 0 and at most 1")
        target = self._target(teacher_probabilities, z_forget, forget_classes)
        variance = float(z_retain.var(0, correction=0).sum())
        weight = self.feature_weight / max(variance, torch.finfo(torch.float32).tiny)
        generator = torch.Generator().manual_seed(self.seed)
        network = Network(head.dim, self.hidden, "identity-residual", generator, z_retain.device)
        retained_batches = shuffled_batches(
            torch.arange(len(z_retain), device=z_retain.device), self.batch_size, generator
        )
        forgotten_batches = shuffled_batches(
            torch.arange(len(z_forget), device=z_forget.device), self.batch_size, generator
        )

        def loss() -> Tensor:
            retain, forget = next(retained_batches), next(forgotten_batches)
            before = torch.cat([z_retain[retain], z_forget[forget]])
            wanted = torch.cat([z_retain[retain], teacher_features[forget]])
            should = torch.cat([self.head_.logits(z_retain[retain]).log_softmax(1), target[forget]])
            after = network(before)
            says = F.linear(after, self.head_.weight, self.head_.bias).log_softmax(1)
            kl = F.kl_div(says, should, reduction="none", log_target=True).sum(1)
            rows = kl + weight * (after - wanted).square().sum(1)
            return rows[: len(retain)].mean() + rows[len(retain) :].mean()

        self.history_ = network.descend(loss, self.steps, self.lr, decay=True)
        fitted = network.map()
        self.distortion_ = distortion(fitted, z_retain[:: max(1, len(z_retain) // GUARD_ROWS)], self.head_)
        refuse_collapse(self.distortion_, self.max_distortion, "TeacherMap")
        self.map_ = fitted
        return self

    def _target(self, teacher_probabilities: Tensor, z: Tensor, without: Sequence[int]) -> Tensor:
        """Return the logarithm of q, `(m, C)`. Raises ValueError where `teacher_probabilities` is not valid."""
        if not bool(torch.isfinite(teacher_probabilities).all()) or bool((teacher_probabilities < 0).any()):
            raise ValueError("teacher_probabilities must be finite and not negative")
        own = self.head_.logits(z).log_softmax(1)
        both = (
            self.teacher_share * teacher_probabilities.float().clamp_min(LEAST).log() + (1 - self.teacher_share) * own
        )
        both[:, list(without)] = MASKED_BIAS
        return both.log_softmax(1)
