"""Several runs of one experiment, one per training seed, as one: means, spreads, and a verdict over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from expunge.evaluation.divergence import summary as divergence
from expunge.evaluation.equivalence import seed_difference
from expunge.evaluation.margins import Margins
from expunge.evaluation.verdict import LEVELS, Gate, gates, lookup
from expunge.report.summary import CONTROL
from expunge.system.files import read_json
from expunge.system.paths import EVALUATION, SUMMARY

Block = Mapping[str, Any]


@dataclass(frozen=True)
class Pooled:
    """One experiment: `blocks` holds per candidate one block of metrics per seed, in the order of the table."""

    seeds: tuple[int, ...]
    summaries: tuple[Mapping[str, Any], ...]
    blocks: Mapping[str, Sequence[Block]]

    def values(self, candidate: str, path: str) -> list[float]:
        """Of every seed that has one."""
        return [v for block in self.blocks[candidate] if (v := lookup(block, path)) is not None]


@dataclass(frozen=True)
class PooledVerdict:
    """`level` reached over the seeds, the first gate in the way, and the levels of the single runs."""

    level: str
    failed: tuple[str, ...]
    single: tuple[str, ...]


def pool(workspaces: Mapping[int, Path]) -> Pooled:
    """Read the runs. The retrained models of different seeds stand against each other: that is the noise floor."""
    summaries = [read_json(path / SUMMARY) for path in workspaces.values()]
    retrained = [summary["references"]["retrained"] for summary in summaries]
    if len(workspaces) > 1:
        retrained = _with_floor(retrained, [_forgotten_logits(path) for path in workspaces.values()])
    blocks = {"original": [s["references"]["original"] for s in summaries], "retrained": retrained}
    names = [CONTROL, *(name for name in summaries[0]["methods"] if name != CONTROL)]
    blocks |= {name: [s["methods"][name] for s in summaries] for name in names}
    return Pooled(tuple(workspaces), tuple(summaries), blocks)


def judge(pooled: Pooled, name: str, margins: Margins) -> PooledVerdict:
    """Equivalence over seeds: t intervals of the difference of method and retrained models, as `seed_difference`.

    With one seed it is the verdict of that run, which is indicative.
    """
    single = tuple(summary["methods"][name]["verdict"]["level"] for summary in pooled.summaries)
    if len(pooled.seeds) == 1:
        failed = tuple(g["gate"] for g in pooled.summaries[0]["methods"][name]["verdict"]["failed_gates"])
        return PooledVerdict(single[0], failed, single)
    bad = [gate for gate in gates(margins) if not _passes(pooled, name, gate)]
    level = "none"
    for step in LEVELS:
        if any(gate.level == step for gate in bad):
            break
        level = step
    return PooledVerdict(level, tuple(gate.path for gate in bad), single)


def _passes(pooled: Pooled, name: str, gate: Gate) -> bool:
    """A gate whose reference has no value is left out; one where only the method has none fails."""
    target, values = pooled.values("retrained", gate.path), pooled.values(name, gate.path)
    if len(target) < 2:
        return True
    return bool(values) and gate.excess(seed_difference(values, target)) <= 1e-12


def _with_floor(blocks: Sequence[Block], logits: Sequence[np.ndarray]) -> list[Block]:
    """Every retrained model's mean divergence from those of the other seeds, on the forgotten rows."""
    result: list[Block] = []
    for i, block in enumerate(blocks):
        others = [divergence(logits[j], logits[i]) for j in range(len(logits)) if j != i]
        floor = {key: float(np.mean([o[key] for o in others])) for key in ("kl", "js", "agreement")}
        forget = {**block["divergence"]["forget"], **floor}
        result.append({**block, "divergence": {**block["divergence"], "forget": forget}})
    return result


def _forgotten_logits(workspace: Path) -> np.ndarray:
    """Of the run's first retrained model, `(n, C)`."""
    path = min((workspace / EVALUATION / "references").glob("retrained-*.parquet"))
    table = pq.read_table(path, columns=["part", "logits"])
    logits = table["logits"].combine_chunks()
    values = logits.flatten().to_numpy().reshape(len(logits), -1)
    return np.asarray(values[np.asarray(table["part"].to_pylist()) == "forget"])
