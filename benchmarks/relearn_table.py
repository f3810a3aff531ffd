"""The table of docs/relearn.md: entries of params.yaml over originals and forgotten classes, beside retrained models.

python -m benchmarks.relearn_table [ENTRY ...]      (default: teacher-map relearn)

Run it where `make results` ran: it takes the three originals of the variant "class", with their features and
activations. Three models per class are retrained first and kept in .expunge/relearn, minutes each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.beside import answers, distances, shown_rows
from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.data.schema import TRAIN
from expunge.evaluation.measuring import Outputs, measure
from expunge.evaluation.rows import choose_rows
from expunge.features.store import FeatureStore
from expunge.methods.fitting import fit, warm_up
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.models.classifier import Classifier
from expunge.results.variants import HOME, RETRAIN_SEEDS
from expunge.training.recipe import make_classifier

ORIGINALS, CLASSES = (1, 2, 3), (0, 5, 9)
KEPT = Path(".expunge/relearn")
MEASURES = {
    "retained test %": "accuracy.test_retain",
    "probe on z' %": "representation.probe_z_prime",
    "member %": "membership.mia_lr_member",
}
COLUMNS = ("retained test %", "kl", "js", "agreement", "probe on z' %", "member %", "seconds")
Line = dict[str, float]


class Case:
    """One original and one class to forget, beside models retrained without it, with `seeds`."""

    def __init__(self, seed: int, forgotten: int, seeds: Sequence[int] = ORIGINALS) -> None:
        root = HOME / "class" / str(seed)
        self.dataset = Dataset(root / "data/dataset", verify=False)
        images, labels = self.dataset.images(), self.dataset.labels().astype(np.int64)
        assert isinstance(images, np.ndarray), "images of one size"
        store = FeatureStore(root / "data/features/original")
        train, gone = store.column("split") == TRAIN, labels == forgotten
        self.request = FitInputs(
            store=store,
            activations_dir=root / "data/activations",
            dataset=self.dataset,
            classifier=load_classifier(root / "models/original"),
            forget_rows=np.flatnonzero(train & gone),
            retain_rows=np.flatnonzero(train & ~gone),
            forget_classes=[forgotten],
            validation_rows=np.empty(0, np.int64),
        )
        parts = np.char.add(np.where(train, "", "test_"), np.where(gone, "forget", "retain"))
        self.shown = shown_rows(parts)
        self.z = store.z(self.shown)
        self.rows = choose_rows(labels[self.shown], parts[self.shown], self.z, seed=0)
        self.images = images[self.shown]
        self.references = [
            answers(self._reference(forgotten, RETRAIN_SEEDS[0] + other), self.images) for other in seeds
        ]

    def _reference(self, forgotten: int, seed: int) -> Classifier:
        out = KEPT / str(forgotten) / str(seed)
        if not (out / "manifest.json").is_file():
            make_classifier(load_config(), self.dataset, self.request.retain_rows, seed, out, KEPT / "work")
        return load_classifier(out)

    def entry(self, name: str) -> Line:
        """Fit an entry of params.yaml, its features and activations fetched, and measure it."""
        table = load_config().fit
        warm_up(name, table, self.request.classifier.card.training)
        start = time.perf_counter()
        unlearned = fit(name, self.request, table)
        return self.measured(unlearned, time.perf_counter() - start)

    def measured(self, unlearned: UnlearnedModel, seconds: float) -> Line:
        if unlearned.classifier is not None:
            return self.line(answers(unlearned.classifier, self.images), seconds)
        z_prime = unlearned.map(torch.from_numpy(self.z))
        return self.line(Outputs(unlearned.head.logits(z_prime).numpy(), self.z, z_prime.numpy()), seconds)

    def line(self, out: Outputs, seconds: float = 0.0) -> Line:
        measured, forget = measure(out, self.rows), self.rows.forget
        others = [r for r in self.references if r is not out]
        far = distances(out, others, forget)
        line = {title: 100 * float(measured.value(path) or 0) for title, path in MEASURES.items()}
        return line | far | {"agreement": 100 * far.get("agreement", float("nan")), "seconds": seconds}


def show(name: str, lines: Sequence[Line]) -> None:
    """One row: mean, and in brackets the smallest and the largest."""
    cells = []
    for key in COLUMNS:
        values, digits = [line[key] for line in lines], {"kl": 3, "js": 3, "retained test %": 2}.get(key, 1)
        cells.append(f"{np.mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main(entries: Sequence[str]) -> None:
    print("| | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    names = ["retrained", "logit-mask", *entries]
    every: dict[str, list[Line]] = {name: [] for name in names}
    for forgotten in CLASSES:
        here: dict[str, list[Line]] = {name: [] for name in names}
        for seed in ORIGINALS:
            case = Case(seed, forgotten)
            here["retrained"] += [case.line(reference) for reference in case.references]
            for name in names[1:]:
                here[name].append(case.entry(name))
        for name, lines in here.items():
            show(f"class {forgotten}: {name}", lines)
            every[name] += lines
    for name, lines in every.items():
        show(f"mean: {name}", lines)


if __name__ == "__main__":
    main(sys.argv[1:] or ["teacher-map", "relearn"])
