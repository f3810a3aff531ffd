"""The table of docs/finetune.md: every method that changes weights, with its defaults, beside retrained models.

python -m benchmarks.finetune_table [METHOD ...]

Run it in a directory that holds a pipeline's data/dataset, data/split, models/original and models/retrained/*.
Retained training rows are thinned to 6,000; all others are used. KL and agreement are means over the retrained models.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.beside import answers, distances, shown_rows
from expunge.core import FeatureMap, LinearHead, Moments, PourP, RepresentationLinear
from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.evaluation.measuring import Outputs, measure
from expunge.evaluation.membership import loss_auc
from expunge.evaluation.rows import Rows, choose_rows
from expunge.finetune import METHODS, Seal
from expunge.models.checkpoint import load_classifier
from expunge.models.classifier import Classifier

SHIFT = 10.0  # logits by which the sealed POUR-P lowers the forgotten class
COLUMNS = ("retain", "forget", "test_retain", "test_forget", "kl", "agreement", "loss_auc", "mia", "probe", "seconds")


class Bench:
    """The rows of one request, the models it is measured against, and a line of results per model."""

    def __init__(self, root: Path) -> None:
        dataset, split = Dataset(root / "data/dataset"), Split(root / "data/split")
        images, self.labels = dataset.images(), dataset.labels().astype(np.int64)
        assert isinstance(images, np.ndarray), "images of one size"
        self.images = images
        self.retain, self.forget = split.rows("retain"), split.rows("forget")
        self.whole_classes: list[int] = split.request["whole_classes"]
        self.shown = shown_rows(split.parts)
        self.shown_images = images[self.shown]
        self.original = load_classifier(root / "models/original")
        self.before = answers(self.original, self.shown_images)
        self.retrained = {p.name: load_classifier(p) for p in sorted((root / "models/retrained").iterdir())}
        self.references = {name: answers(model, self.shown_images) for name, model in self.retrained.items()}
        self.rows: Rows = choose_rows(self.labels[self.shown], split.parts[self.shown], self.before.z, seed=0)

    def line(self, name: str, out: Outputs, seconds: float = 0.0, references: list[Outputs] | None = None) -> None:
        """Print one row of the table, as Markdown and as JSON."""
        rows, measured = self.rows, measure(out, self.rows)
        references = list(self.references.values()) if references is None else references
        far = distances(out, references, rows.forget)

        def scored(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.asarray(out.logits)[index], rows.labels[index]

        values = {part: measured.value(f"accuracy.{part}") for part in COLUMNS[:4]} | {
            "kl": far.get("kl"),
            "agreement": far.get("agreement"),
            "loss_auc": loss_auc(*scored(rows.forget), *scored(rows.unseen)),
            "mia": measured.value("membership.mia_lr_member"),
            "probe": measured.value("representation.probe_z_prime"),
            "seconds": seconds,
        }
        cells = [self._cell(key, values[key]) for key in COLUMNS]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        print(json.dumps({"name": name, **{k: v and float(v) for k, v in values.items()}}), file=sys.stderr, flush=True)

    @staticmethod
    def _cell(key: str, value: float | None) -> str:
        if value is None or (key == "seconds" and not value):
            return ""
        if key == "seconds":
            return f"{value:.0f}"
        return f"{value:.2f}" if key == "kl" else f"{value:.3f}" if key == "loss_auc" else f"{100 * value:.1f}"

    def fit(self, method: object) -> tuple[Classifier, float]:
        start = time.perf_counter()
        fitted = method.fit(self.original, self.images, self.labels, self.retain, self.forget)  # type: ignore[attr-defined]
        return fitted.classifier_, time.perf_counter() - start

    def maps(self) -> dict[str, FeatureMap]:
        """What is sealed: an erased representation, and an affine map that acts as the logit mask does."""
        z = {}
        for name, rows in (("retain", self.retain), ("forget", self.forget)):
            with torch.no_grad():
                parts = [
                    self.original.features(self.images[part]) for part in np.array_split(rows, len(rows) // 500 + 1)
                ]
            z[name] = Moments.of(torch.cat(parts))
        head = LinearHead.of(self.original.head)
        return {
            "ru-linear": RepresentationLinear(beta=1.0).fit(z["retain"], z["forget"], head=head).map_,
            f"pour-p shift {SHIFT:g}": PourP(shift=SHIFT).fit(head, self.whole_classes).map_,
        }


def main(wanted: list[str]) -> None:
    bench = Bench(Path())
    print("| | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    bench.line("original", bench.before)
    for name, out in bench.references.items():
        others = [o for other, o in bench.references.items() if other != name]
        bench.line(f"retrained, seed {name}", out, references=others)
    if bench.whole_classes:
        logits = bench.before.logits.copy()
        logits[:, bench.whole_classes] = -np.inf
        bench.line("logit mask", Outputs(logits, bench.before.z))
    for name, method in METHODS.items():
        if not wanted or name in wanted:
            settings = {} if bench.whole_classes else dict(method.for_rows)
            if name != "ssd":
                settings["precision"] = "bf16"
            model, seconds = bench.fit(method(**settings))
            bench.line(name, answers(model, bench.shown_images), seconds)
    if bench.whole_classes and (not wanted or "seal" in wanted):
        for name, map_ in bench.maps().items():
            bench.line(f"{name}, map", answers(bench.original, bench.shown_images, map_))
            for inputs, settings in (("both", {}), ("forget", {"lr": 3e-4, "epochs": 3})):
                model, seconds = bench.fit(Seal(map_, inputs=inputs, precision="bf16", **settings))  # type: ignore[arg-type]
                bench.line(f"{name}, sealed on {inputs}", answers(model, bench.shown_images), seconds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
