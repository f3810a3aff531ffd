"""Oracle matching: the network is trained towards the predicted logits of a model without the forgotten rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from expunge.core.facts import Facts
from expunge.core.group_removal import group_effect, ridge
from expunge.core.head import LinearHead
from expunge.core.logit_mask import MASKED_BIAS
from expunge.finetune.loop import MIXED, Index, Phase, Run, Terms, Updater, single
from expunge.models.classifier import Classifier
from expunge.system.errors import DataError


class Oracle(Protocol):
    """Predicts the logits of a model that never saw the forgotten rows."""

    def prepare(self, run: Run) -> None:
        """Compute what `logits` needs from the run; called once, before the first call of `logits`."""

    def logits(self, run: Run, rows: Index) -> Tensor:
        """Return the predicted logits, `(len(rows), C)` float32."""


class TeacherOracle:
    """The logits of a classifier trained without the forgotten rows, such as `relearn` gives above a cut."""

    def __init__(self, teacher: Classifier) -> None:
        self.teacher = teacher.eval()

    def prepare(self, run: Run) -> None:
        """Do nothing: the teacher needs no preparation."""

    def logits(self, run: Run, rows: Index) -> Tensor:
        """Return the teacher's logits `(len(rows), C)` float32."""
        return run.ask(self.teacher, rows)


class RidgeOracle:
    """The original's logits less the contribution of the forgotten rows to a ridge head on its features.

    This is exact where the original's head is that ridge head, on labels coded 0 and 1. Only the effect through the
    head is removed; the features still encode the forgotten rows. `l2` is the ridge of the head. The features are
    extended by an intercept, which is penalised too.
    """

    def __init__(self, l2: float = 1.0) -> None:
        self.l2 = l2

    def prepare(self, run: Run) -> None:
        """Compute what the forgotten rows contribute to the ridge head."""
        rows = np.concatenate([run.retain, run.forget])
        z, y = self._inputs(run, rows), one_hot(run.y(rows), run.original.card.num_classes).double()
        weight, second = ridge(z, y, self.l2)
        m = len(run.forget)
        self.effect = group_effect(second, z[-m:], y[-m:] - z[-m:] @ weight)

    def logits(self, run: Run, rows: Index) -> Tensor:
        """Return the original's logits less that contribution, `(len(rows), C)` float32."""
        return run.ask(run.original, rows) - (self._inputs(run, rows) @ self.effect).float()

    @torch.no_grad()
    def _inputs(self, run: Run, rows: Index) -> Tensor:
        z = torch.cat([run.original.features(run.inputs[part]).double() for part in run.split(rows)])
        return torch.cat([z, z.new_ones(len(z), 1)], 1)


class HeadOracle:
    """The logits of another head on the original's features, such as `head-refit` finds without the forgotten rows.

    Where that head is the optimum of its problem, these are the logits after training the head again; RidgeOracle is
    the same for a ridge head. Only the effect through the head is removed. The logit of a masked class is replaced by
    the smallest logit of the row's other classes [derived].
    """

    def __init__(self, head: LinearHead) -> None:
        self.head = head
        self.masked = head.bias <= MASKED_BIAS

    def prepare(self, run: Run) -> None:
        """Raise DataError if the head does not have the shape of the original's head."""
        if tuple(self.head.weight.shape) != tuple(run.original.head.weight.shape):
            found, wanted = list(self.head.weight.shape), list(run.original.head.weight.shape)
            raise DataError(
                f"the oracle's head has the shape {found}, but the model's has {wanted}; give a head on the same "
                "features"
            )

    @torch.no_grad()
    def logits(self, run: Run, rows: Index) -> Tensor:
        """Return the head's logits on the original's features, `(len(rows), C)` float32."""
        out = self.head.logits(run.original.features(run.inputs[rows]).float())
        least = out.masked_fill(self.masked, torch.inf).amin(1, keepdim=True)
        return torch.where(self.masked, least, out).float()


class GroupOracle:
    """The original's logits plus the mean difference between `retrained` networks and `others` trained on all rows.

    What both groups have in common cancels in the difference, up to the randomness of seeds. This costs more than
    retraining. It is meant for evaluations only, as an upper bound on what distillation can reach.
    """

    def __init__(self, retrained: Sequence[Classifier], others: Sequence[Classifier]) -> None:
        if not retrained or not others:
            raise ValueError("a group oracle needs at least one retrained network and one trained on all rows")
        self.retrained = [model.eval() for model in retrained]
        self.others = [model.eval() for model in others]

    def prepare(self, run: Run) -> None:
        """Do nothing: the networks need no preparation."""

    def logits(self, run: Run, rows: Index) -> Tensor:
        """Return the original's logits plus the difference of the groups, `(len(rows), C)` float32."""
        without, with_ = (
            torch.stack([run.ask(model, rows) for model in models]).mean(0) for models in (self.retrained, self.others)
        )
        return run.ask(run.original, rows) + without - with_


@dataclass(eq=False, repr=False, kw_only=True)
class OracleMatch(Updater):
    """Minimise mean ||f(x) - t(x)||^2 over forgotten and some retained rows; Georgiev et al., arXiv 2410.23232.

    t are the oracle's logits. Both are first centred over classes, because a common shift does not change probabilities
    [derived]. The oracles here replace the paper's datamodels, which need thousands of networks.

    oracle              a TeacherOracle, RidgeOracle, HeadOracle or GroupOracle
    forget_multiplier   number of times an epoch passes over each forgotten row
    retain_multiplier   retained rows in an epoch, per forgotten row; drawn anew for each epoch, and `retain_share` has
                        no effect

    Other arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"),
        ("inputs", "retained rows", "teacher"),
        "weights",
        "passes over forgotten rows",
        "arXiv 2410.23232; oracles: derived",
    )
    oracle: Oracle
    forget_multiplier: int = 1
    retain_multiplier: float = 3.0
    epochs: int = 2
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.forget_multiplier < 1 or self.retain_multiplier < 0:
            raise ValueError(
                "forget_multiplier must be at least 1 and retain_multiplier must not be negative, got "
                f"{self.forget_multiplier} and {self.retain_multiplier}"
            )

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch: forgotten and retained rows, compared with the oracle's logits."""
        self.oracle.prepare(run)

        def loss(rows: Index) -> Terms:
            return {"distance": distance(run.logits(rows), self.oracle.logits(run, rows))}

        return [Phase(e, "forgotten and retained", single(self.batches(run, e)), loss) for e in range(self.epochs)]

    def batches(self, run: Run, epoch: int) -> list[Index]:
        """Return shuffled batches of forgotten and retained rows, as many as the multipliers say."""
        rng = run.rng(MIXED, epoch)
        size = min(len(run.retain), round(self.retain_multiplier * len(run.forget)))
        rows = np.concatenate([np.repeat(run.forget, self.forget_multiplier), rng.permutation(run.retain)[:size]])
        return run.split(rng.permutation(rows))


def distance(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over rows of the squared distance between logits `(b, C)`, each centred over classes."""
    difference = logits - target
    return (difference - difference.mean(1, keepdim=True)).square().sum(1).mean()
