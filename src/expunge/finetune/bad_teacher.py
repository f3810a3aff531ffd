"""Bad Teacher: the original teaches retained rows, an untrained network the forgotten ones."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softmax

from expunge.core.facts import Facts
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, kl, single
from expunge.models.classifier import Classifier


@dataclass(eq=False, repr=False, kw_only=True)
class BadTeacher(Updater):
    """KL(teacher || student) at temperature 1, retained and forgotten rows shuffled together; arXiv 2205.08096.

    The teacher of a forgotten row is the same architecture with fresh weights, of a retained row the original. The sum
    over classes is averaged over rows only: dividing it by the number of classes as well, as is often done by
    accident, weakens every step. As published, an epoch looks at 30 % of the retained rows.
    Arguments as in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("images", "retained rows"), "weights", "passes over retained rows", "arXiv 2205.08096"
    )
    retain_share: float = 0.3

    def phases(self, run: Run) -> list[Phase]:
        bad = untrained(run.original, self.seed)
        forgotten = np.zeros(len(run.labels), dtype=bool)
        forgotten[run.forget] = True

        def targets(rows: Index) -> Tensor:
            from_bad = torch.from_numpy(forgotten[rows]).to(run.device)[:, None]
            return softmax(torch.where(from_bad, run.ask(bad, rows), run.ask(run.original, rows)), 1)

        def loss(rows: Index) -> Terms:
            return {"kl": kl(targets(rows), run.logits(rows))}

        return [Phase(epoch, "all rows", single(run.mixed(epoch)), loss) for epoch in range(self.epochs)]


def untrained(classifier: Classifier, seed: int) -> Classifier:
    """A copy in eval mode with fresh weights: each layer's own start, and where a module has none for its parameters
    (class tokens, position embeddings), the trained values in random order.
    """
    fresh = copy.deepcopy(classifier)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                order = torch.randperm(parameter.numel()).to(parameter.device)
                parameter.copy_(parameter.reshape(-1)[order].view_as(parameter))
    return fresh.eval()
