"""How far each method's step size may be from its default: on three models, by held-out training rows alone.

Trains an original by `train.recipe: auto` on a part of the training rows, unlearns a class and a random tenth of these
with a quarter of the default rate, the default and four times it, and reads the rows that no model was trained on. No
retrained model is made and no test row is read. `kept`: accuracy on held-out rows of retained classes. `gone`: of a
class, accuracy on its held-out rows; of rows, their accuracy beyond that of held-out rows. One thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.config import Config, load_config
from expunge.data.dataset import Dataset
from expunge.data.example_texts import ENCODER, fetch_example_texts
from expunge.data.prepare import prepare
from expunge.finetune import METHODS
from expunge.finetune.cut import fetch_activations
from expunge.finetune.loop import Updater
from expunge.finetune.relearn import FACTORS, Relearn
from expunge.finetune.steps import Steps
from expunge.models.checkpoint import load_classifier
from expunge.models.classifier import Classifier
from expunge.system.errors import CollapseError, DataError
from expunge.training.recipe import make_classifier

TEXTS = Path("data/source/texts")
SCALES = (0.25, 1.0, 4.0)
HELD = 0.2
# Name -> model, public weights, passes, batch size, classes at most, rows at most: cut so that one core does it.
STUDIES: dict[str, tuple[str, bool, int, int, int, int]] = {
    "digits": ("resnet-small", False, 6, 64, 10, 1200),
    "emoji": ("efficientnet-lite0", True, 4, 32, 6, 500),
    "emoji-all": ("efficientnet-lite0", True, 3, 64, 9, 3500),
    "fortunes": (f"sentence:{TEXTS / ENCODER}", True, 3, 32, 6, 600),
}
NEEDS_MORE = ("regun", "ssd", "loss-free-ssd", "damp", "one-step")  # unseen rows, or no descent


class Study:
    """One original and what is asked of it."""

    def __init__(self, name: str, root: Path) -> None:
        model, public, epochs, batch, classes, most = STUDIES[name]
        given = load_config(Path(__file__).parents[1] / "params.demo.yaml")
        if name == "fortunes" and not (TEXTS / ENCODER).is_dir():
            fetch_example_texts(TEXTS, Path("data/raw/texts"))
        prepare(name.partition("-")[0], root / "dataset", raw_dir=Path("data/raw"))
        self.dataset = Dataset(root / "dataset")
        labels = self.dataset.labels().astype(np.int64)
        train = np.flatnonzero((self.dataset.splits() == "train") & (labels < classes))
        rng = np.random.default_rng(7)
        rows = np.sort(rng.permutation(train)[:most])
        held = rng.random(len(rows)) < HELD
        self.labels, self.held, self.rows = labels, rows[held], rows[~held]
        text = name == "fortunes"
        self.config: Config = dataclasses.replace(
            given,
            model=dataclasses.replace(
                given.model, name=model, weights="public" if public else None, training="above" if text else "full",
                cut=cut_of(name) if text else None, saw_forget_data=not text,
            ),
            train=dataclasses.replace(given.train, epochs=epochs, batch_size=batch, precision="fp32"),
        )  # fmt: skip
        began = time.perf_counter()
        make_classifier(self.config, self.dataset, self.rows, 1, root / "original", root / "work")
        self.seconds = time.perf_counter() - began
        self.original = load_classifier(root / "original")
        self.images = None if text else self.dataset.images()
        self.root = root

    @torch.no_grad()
    def accuracy(self, network: Classifier, rows: np.ndarray) -> float:
        parts = [rows[i : i + 200] for i in range(0, len(rows), 200)]
        right = [network(self.dataset.inputs(p)).argmax(1).cpu().numpy() == self.labels[p] for p in parts]
        return float(np.concatenate(right).mean())

    def measured(self, network: Classifier, kind: str, forget: np.ndarray) -> tuple[float, float]:
        """Return `kept` and `gone` of a network, as shares."""
        classes = self.labels[forget][:1] if kind == "class" else np.empty(0, np.int64)
        asked = np.isin(self.labels[self.held], classes)
        kept = self.accuracy(network, self.held[~asked])
        gone = self.accuracy(network, self.held[asked]) if kind == "class" else self.accuracy(network, forget) - kept
        return kept, gone

    def requests(self) -> dict[str, np.ndarray]:
        """A class, and a random tenth."""
        asked = np.unique(self.labels[self.rows])[1]
        tenth = np.random.default_rng(3).choice(self.rows, len(self.rows) // 10, replace=False)
        return {"class": self.rows[self.labels[self.rows] == asked], "rows": np.sort(tenth)}

    def fit(self, method: str, kind: str, forget: np.ndarray, scale: float) -> tuple[Classifier, float]:
        """The unlearned network and the rate of its first step."""
        retain = np.setdiff1d(self.rows, forget)
        settings: dict[str, Any] = dict(METHODS[method].for_rows) if kind == "rows" and method in METHODS else {}
        if method == "relearn":
            cut = cut_of(self.config.model.name)
            path = self.root / "activations.npy"
            if not path.is_file():
                fetch_activations(self.original, self.dataset.inputs(self.rows), cut, path)
            fitted: Any = Relearn(cut=cut, epochs=1.0, batch_size=32, precision="fp32", factor=2.0 * scale)
            where = np.searchsorted(self.rows, retain)
            fitted.fit(self.original, np.load(path, mmap_mode="r"), self.labels[self.rows], where)
            return fitted.classifier_, Steps.of(self.original.card, FACTORS, None, fitted.factor, "auto").lr
        kind_of: Any = METHODS[method]
        made = kind_of(batch_size=32, **settings)
        steps = Steps.of(self.original.card, made.factors, made.lr, made.factor, made.optimizer)
        made.lr = steps.lr * scale
        made.fit(self.original, self.images, self.labels, retain, forget)
        return made.classifier_, made.lr


def cut_of(name: str) -> str:
    return {"resnet-small": "stage1", "efficientnet-lite0": "_blocks.5"}.get(name, "encoder.layer.3")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method_rates", description=__doc__)
    parser.add_argument("study", choices=STUDIES, help="the data, and the model that is trained on it")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="these alone; all that train when left out")
    given = parser.parse_args()
    name = given.study
    with tempfile.TemporaryDirectory() as tmp:
        study = Study(name, Path(tmp))
        recipe = study.original.card.recipe or (study.original.card.above or {}).get("recipe", {})
        print(f"{name}: {len(study.rows)} rows, {len(study.held)} held out, {study.seconds:.0f} s; {recipe}")
        print("\n| method | request | rate | kept, original | kept | gone | s |\n|---|---|---|---|---|---|---|")
        texts = study.images is None
        methods = [m for m, k in METHODS.items() if issubclass(k, Updater) and m not in NEEDS_MORE and not texts]
        for method in given.methods or [*methods, "relearn"]:
            for kind, forget in study.requests().items():
                for scale in SCALES:
                    print(line(study, method, kind, forget, scale), flush=True)


def line(study: Study, method: str, kind: str, forget: np.ndarray, scale: float) -> str:
    before, began = study.measured(study.original, kind, forget)[0], time.perf_counter()
    try:
        network, rate = study.fit(method, kind, forget, scale)
    except CollapseError as e:
        return f"| {method} | {kind} | x {scale:g} | {100 * before:.1f} | refused: {str(e)[:60]} | | |"
    except DataError:
        return f"| {method} | {kind} | not for this request | | | | |"
    seconds, (kept, left) = time.perf_counter() - began, study.measured(network, kind, forget)
    cells = f"{100 * before:.1f} | {100 * kept:.1f} | {100 * left:.1f} | {seconds:.0f}"
    return f"| {method} | {kind} | {rate:.2g} (x {scale:g}) | {cells} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
