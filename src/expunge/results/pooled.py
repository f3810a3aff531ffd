"""Pool the runs of one experiment, one per training seed: their metrics, and how often each claim was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from expunge.evaluation.criteria import CLAIMS, KEPT, REFUTED, SHOWN
from expunge.evaluation.divergence import summary as divergence
from expunge.report.metrics import lookup
from expunge.report.summary import CONTROL
from expunge.system.files import read_json
from expunge.system.paths import EVALUATION, SUMMARY

Block = Mapping[str, Any]


@dataclass(frozen=True)
class Pooled:
    """One experiment over its seeds.

    `blocks`: by candidate, in the order of the table, one block of metrics per seed in which it was not refused.
    """

    seeds: tuple[int, ...]
    summaries: tuple[Mapping[str, Any], ...]
    blocks: Mapping[str, Sequence[Block]]

    def values(self, candidate: str, path: str) -> list[float]:
        """The candidate's values at `path`, from every seed that has one."""
        return [float(v) for block in self.blocks[candidate] if (v := lookup(block, path)) is not None]


@dataclass(frozen=True)
class PooledVerdict:
    """Counts over the training seeds: how often each claim was shown and refuted, and how often utility was kept."""

    runs: int
    kept: int
    shown: Mapping[str, int]
    refuted: Mapping[str, int]

    @property
    def always(self) -> tuple[str, ...]:
        """Claims that were shown in every run."""
        return tuple(claim for claim, count in self.shown.items() if count == self.runs)


def pool(workspaces: Mapping[int, Path]) -> Pooled:
    """Read and pool the runs, by training seed.

    With several seeds, the divergences of the retrained models are replaced by those between seeds, the noise floor.
    """
    pooled = pool_summaries({seed: read_json(path / SUMMARY) for seed, path in workspaces.items()})
    if len(workspaces) > 1:
        logits = [_forgotten_logits(path) for path in workspaces.values()]
        pooled = replace(pooled, blocks={**pooled.blocks, "retrained": _with_floor(pooled.blocks["retrained"], logits)})
    return pooled


def pool_summaries(found: Mapping[int, Mapping[str, Any]]) -> Pooled:
    """Pool the summaries of runs, by training seed.

    The divergences of the retrained models stay those between the models of one run.
    """
    summaries = list(found.values())
    retrained = [summary["references"]["retrained"] for summary in summaries]
    blocks = {"original": [s["references"]["original"] for s in summaries], "retrained": retrained}
    # A method may be refused in one seed and not in another.
    names = dict.fromkeys([CONTROL, *(name for summary in summaries for name in summary["methods"])])
    blocks |= {name: [s["methods"][name] for s in summaries if name in s["methods"]] for name in names}
    return Pooled(tuple(found), tuple(summaries), blocks)


def judge(pooled: Pooled, name: str) -> PooledVerdict:
    """Count the verdicts of the method `name` over the runs in which it was not refused.

    Each run has a verdict of its own, on its own rows and retrained models.
    """
    verdicts = [summary["methods"][name]["verdict"] for summary in pooled.summaries if name in summary["methods"]]

    def count(outcome: str) -> dict[str, int]:
        return {claim: sum(v["claims"][claim] == outcome for v in verdicts) for claim in CLAIMS}

    return PooledVerdict(len(verdicts), sum(v["utility"] == KEPT for v in verdicts), count(SHOWN), count(REFUTED))


def _with_floor(blocks: Sequence[Block], logits: Sequence[np.ndarray]) -> list[Block]:
    """The blocks with each retrained model's mean divergence from those of the other seeds, on forgotten rows."""
    result: list[Block] = []
    for i, block in enumerate(blocks):
        others = [divergence(logits[j], logits[i]) for j in range(len(logits)) if j != i]
        floor = {key: float(np.mean([o[key] for o in others])) for key in ("kl", "js", "agreement")}
        forget = {**block["divergence"]["forget"], **floor}
        result.append({**block, "divergence": {**block["divergence"], "forget": forget}})
    return result


def _forgotten_logits(workspace: Path) -> np.ndarray:
    """Logits `(n, C)` of the run's first retrained model on the forgotten rows."""
    path = min((workspace / EVALUATION / "references").glob("retrained-*.parquet"))
    table = pq.read_table(path, columns=["part", "logits"])
    logits = table["logits"].combine_chunks()
    values = logits.flatten().to_numpy().reshape(len(logits), -1)
    return np.asarray(values[np.asarray(table["part"].to_pylist()) == "forget"])
