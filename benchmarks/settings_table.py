"""The tables of docs/settings.md: how LOFT depends on its rank and RU linear on its beta.

python -m benchmarks.settings_table [ROOT]

ROOT, by default here, holds the outputs of a pipeline: data/split, data/features, and models with a retrained one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from expunge.core import AffineMap, LinearHead, Loft, Moments, RepresentationLinear
from expunge.data.split import Split
from expunge.evaluation.measuring import Outputs
from expunge.evaluation.suite import evaluate
from expunge.features.store import MOMENTS, FeatureStore
from expunge.models.checkpoint import load_classifier
from expunge.report.metrics import lookup

RANKS = (2, 4, 9, 16, 32, 64, 100)
BETAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
COLUMNS = {
    "retain %": "accuracy.retain",
    "forget %": "accuracy.forget",
    "test ret. %": "accuracy.test_retain",
    "test forg. %": "accuracy.test_forget",
    "KL": "divergence.forget.kl",
    "agree %": "divergence.forget.agreement",
    "MIA %": "membership.mia_lr_member",
    "probe z' %": "representation.probe_z_prime",
}


class Bench:
    """One request: its moments, its head, and the models it is measured against."""

    def __init__(self, root: Path) -> None:
        split, store = Split(root / "data/split"), FeatureStore(root / "data/features/original")
        self.labels, self.parts = store.column("label"), split.parts
        self.head, self.original = outputs(root, "original")
        names = sorted(p.name for p in (root / "models/retrained").iterdir() if p.is_dir())
        self.retrained = [outputs(root, f"retrained/{name}")[1] for name in names]
        self.forget = Moments.of(torch.from_numpy(store.z(split.rows("forget"))))
        self.retain = Moments.load(store.directory / MOMENTS) - self.forget

    def block(self, candidate: Outputs, others: list[Outputs]) -> dict[str, Any]:
        return evaluate(candidate, self.original, others, self.labels, self.parts, 0)

    def mapped(self, map_: AffineMap) -> dict[str, Any]:
        z = torch.from_numpy(self.original.z)
        logits = map_.fold_into(self.head).logits(z).numpy()
        return self.block(Outputs(logits, self.original.z, map_(z).float().numpy()), self.retrained)


def outputs(root: Path, name: str) -> tuple[LinearHead, Outputs]:
    layer = load_classifier(root / "models" / name).head
    head, z = LinearHead.of(layer), FeatureStore(root / "data/features" / name).z()
    return head, Outputs(head.logits(torch.from_numpy(z)).numpy(), z)


def line(name: str, block: Mapping[str, Any]) -> str:
    def cell(heading: str, path: str) -> str:
        value = lookup(block, path)
        if value is None:
            return ""
        return f"{100 * value:.1f}" if heading.endswith("%") else f"{value:.2f}"

    return f"| {name} | " + " | ".join(cell(h, p) for h, p in COLUMNS.items()) + " |"


def main() -> None:
    bench = Bench(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    references = {"original": bench.block(bench.original, bench.retrained)}
    for number, model in enumerate(bench.retrained, start=1):
        others = [r for r in bench.retrained if r is not model]
        references[f"retrained {number}" if others else "retrained"] = bench.block(model, others)

    def loft(rank: Any) -> tuple[str, AffineMap]:
        fitted = Loft(rank).fit(bench.retain, bench.forget)
        kept, gone = 100 * fitted.retained_, 100 * fitted.forgotten_
        return f"{rank if rank != 'auto' else f'auto: {fitted.rank_}'} (keeps {kept:.1f} / {gone:.1f} %)", fitted.map_

    def ru(beta: float) -> tuple[str, AffineMap]:
        fitted = RepresentationLinear(beta, max_distortion=None).fit(bench.retain, bench.forget)
        return f"{beta:g}", fitted.map_

    tables: dict[str, tuple[Callable[[Any], tuple[str, AffineMap]], tuple[Any, ...]]] = {
        "LOFT rank (variance kept: retained / forgotten)": (loft, (*RANKS, "auto")),
        "RU linear beta": (ru, BETAS),
    }
    for title, (fit, values) in tables.items():
        print(f"| {title} | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
        for name, block in references.items():
            print(line(name, block))
        for value in values:
            name, map_ = fit(value)
            print(line(name, bench.mapped(map_)), flush=True)
        print()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
