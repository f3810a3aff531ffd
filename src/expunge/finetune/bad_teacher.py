"""Bad Teacher: distillation from the original on retained rows and from an untrained network on forgotten ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softmax

from expunge.core.facts import Facts
from expunge.finetune.loop import Index, Phase, Run, Terms, Updater, kl, single
from expunge.models.classifier import Classifier


@dataclass(eq=False, repr=False, kw_only=True)
class BadTeacher(Updater):
    """Minimise KL(teacher || student) at temperature 1 on retained and forgotten rows shuffled together.

    From arXiv 2205.08096. The teacher of a retained row is the original, and that of a forgotten row is the same
    architecture with fresh weights. KL is a sum over classes and a mean over rows. A mean over classes as well, a
    common mistake, would make every step smaller. As published, an epoch uses 30 % of the retained rows. Arguments as
    in Updater.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"), ("inputs", "retained rows"), "weights", "passes over retained rows", "arXiv 2205.08096"
    )
    for_rows: ClassVar[Mapping[str, Any]] = {"factor": 0.2, "retain_share": 1.0}
    retain_share: float = 0.3

    def phases(self, run: Run) -> list[Phase]:
        """Return one phase per epoch: all rows, each compared with its teacher."""
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
    """Return a copy in eval mode with fresh weights.

    Each layer is initialised by its own `reset_parameters`. Parameters of modules without one (class tokens, position
    embeddings) get the trained values in random order.
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
