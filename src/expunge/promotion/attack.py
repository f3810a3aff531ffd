"""Attack the serving model again, with new seeds and the served files, and compare the results with its report.

Only metrics with a gate are compared, by their distance from the value of the retrained models in the report. A value
that moves towards the retrained models is therefore not worse, whichever its direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from expunge.config import load_config
from expunge.evaluation.margins import AUDIT
from expunge.evaluation.measuring import Outputs
from expunge.evaluation.suite import evaluate
from expunge.evaluation.verdict import Gate, gates
from expunge.methods.outputs import stored_classifier, stored_retrained
from expunge.promotion.session import ReviewSession
from expunge.report.metrics import lookup
from expunge.serving.servable import BATCH, Servable
from expunge.system.errors import PromotionError
from expunge.tracking import evaluation_of, servable_of

SCHEMA = 1
# Targets of the metrics that compare outputs with those of the retrained models: no difference.
PERFECT = {"divergence.forget.kl": 0.0, "divergence.forget.agreement": 1.0}


@dataclass(frozen=True)
class Compared:
    """The comparison of one gate.

    `then`: value at registration. `now`: mean over seeds, with `spread` = maximum - minimum over seeds. `target`: value
    of the retrained models. `worse_by`: growth of the distance to the target; `worsened` if it exceeds `margin`.
    """

    gate: str
    then: float
    now: float
    spread: float
    target: float
    margin: float
    worse_by: float

    @property
    def worsened(self) -> bool:
        """Whether the distance to the target grew by more than the margin."""
        return self.worse_by > self.margin

    def __str__(self) -> str:
        return (
            f"{self.gate} was {self.then:.3f} and is {self.now:.3f}, the retrained models' is {self.target:.3f}: "
            f"worse by {self.worse_by:.3f}, allowed {self.margin:.3f}"
        )


def attack_champion(workspace: ReviewSession, seeds: Sequence[int]) -> dict[str, Any]:
    """Attack the champion of `workspace` once per seed, and return the counts and metrics for `reports/audit.json`.

    Raises PromotionError if there is no champion, if its evaluation is missing, or if its request is not known here.
    """
    promoter, config = workspace.promoter, load_config()
    champion = promoter.champion()
    if champion is None:
        raise PromotionError(f"{workspace.name} has no champion: nothing to attack; promote a version first")
    report = evaluation_of(promoter.client, champion)
    if report.own is None or report.retrained is None:
        raise PromotionError(
            f"version {champion.version} of {workspace.name}: its evaluation beside a retrained model is gone from its "
            "run, or never was; register it anew with `reference: retrain`"
        )
    request = champion.tags.get("request")
    parts, same = workspace.parts(request), workspace.at_hand(request)
    if parts is None:
        raise PromotionError(
            "what the champion forgot is not known here: data/split is that of another request, and data/forgotten "
            "does not hold its rows; bring that folder from where it was registered or promoted"
        )
    servable = servable_of(champion)[0]
    labels, original = workspace.dataset.labels(), stored_classifier("original").at()
    candidate = outputs(servable, workspace)
    references = stored_retrained(config, workspace.split) if same and workspace.split is not None else []
    torch.set_num_threads(1)
    with threadpool_limits(1):
        retrained = [r.at() for r in references]
        blocks = [evaluate(candidate, original, retrained, labels, parts, seed) for seed in seeds]
    compared, left_out = compare(report.own, report.retrained, blocks, gates(AUDIT), servable.map_ is None)
    return {
        "schema": SCHEMA,
        "model": workspace.name,
        "version": champion.version,
        "run_id": champion.run_id,
        "request": champion.tags.get("request"),
        "seeds": list(seeds),
        "rows": {str(name): int(count) for name, count in zip(*np.unique(parts, return_counts=True), strict=True)},
        "compared": [asdict(c) | {"worsened": c.worsened} for c in compared],
        "left_out": left_out,
        "worsened": [str(c) for c in compared if c.worsened],
        "ledger": promoter.audit(),
    }


def compare(
    then: Mapping[str, Any],
    retrained: Mapping[str, Any],
    now: Sequence[Mapping[str, Any]],
    asked: Sequence[Gate],
    folded: bool,
) -> tuple[list[Compared], list[dict[str, str]]]:
    """Compare each gate of `asked` between the report and the new blocks.

    The report is `then`, and `retrained` for the targets; the new blocks are `now`, one per seed. `folded`: the map is
    merged into the served head, so the features z' of the report cannot be probed. Gates without a value on either side
    are returned in the second list, with the reason.
    """
    compared, left_out = [], []
    for gate in asked:
        before, target = lookup(then, gate.path), lookup(retrained, gate.path)
        target = PERFECT.get(gate.path, target)
        values = [v for block in now if (v := lookup(block, gate.path)) is not None]
        if gate.path == "representation.probe_z_prime" and folded:
            left_out.append({"gate": gate.path, "reason": "the served head has the map inside; z' is not shipped"})
        elif before is None or target is None:
            left_out.append({"gate": gate.path, "reason": "the report has no value"})
        elif not values:
            left_out.append({"gate": gate.path, "reason": "nothing here to measure it with: rows or retrained models"})
        else:
            mean = float(np.mean(values))
            grown = _distance(gate, mean, target) - _distance(gate, before, target)
            compared.append(Compared(gate.path, before, mean, float(np.ptp(values)), target, gate.margin, grown))
    return compared, left_out


def _distance(gate: Gate, value: float, target: float) -> float:
    """Return the distance from the target. It is signed for one-sided gates, and then negative on the allowed side."""
    return {"both": abs(value - target), "not above": value - target, "not below": target - value}[gate.side]


def outputs(servable: Servable, workspace: ReviewSession) -> Outputs:
    """Compute logits `(n, C)`, features and head inputs `(n, d)` of all rows of the dataset with the served files."""
    found = list(_batches(servable, workspace))
    logits, z, prime = (np.concatenate(column) for column in zip(*found, strict=True))
    return Outputs(logits, z, None if servable.map_ is None else prime)


def _batches(servable: Servable, workspace: ReviewSession) -> Iterator[tuple[NDArray[Any], ...]]:
    total = len(workspace.dataset)
    with torch.inference_mode():
        for start in range(0, total, BATCH):
            z = servable.classifier.features(workspace.dataset.inputs(np.arange(start, min(start + BATCH, total))))
            prime = servable.map_(z) if servable.map_ else z
            logits = servable.classifier.head(prime)
            yield logits.float().numpy(), z.float().numpy(), prime.float().numpy()
