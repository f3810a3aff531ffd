"""Successive requests: after each round every earlier request is tested again.

Each round fits every method to all requests so far, from the original. Moments of forgotten rows add up, and no method
is applied to the result of another. Only `exact` in shards above a cut continues from its own last product, which gives
the same bits (see `continued.py`). The results of a round are stored, so that an interrupted run can continue.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from expunge.config import Config
from expunge.data.dataset import Dataset
from expunge.data.schema import TEST, TRAIN
from expunge.data.selectors import class_indices
from expunge.data.split import Split, split, whole_classes
from expunge.evaluation.membership import loss_auc
from expunge.methods.fitting import fit, warm_up
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.reproduce.continued import LastProduct, continues
from expunge.system.errors import REFUSALS, ConfigError
from expunge.system.files import digest_of, read_json, read_manifest, write_json
from expunge.system.paths import DATASET, MODELS, ORIGINAL, WORK
from expunge.system.progress import log_message

HOME = WORK / "rounds"
PRODUCTS = HOME / "products"
BEFORE = "original"
RETAINED = 10_000
KINDS = {"classes", "rows", "subjects", "seed"}


@dataclass(frozen=True)
class DrawnRequest:
    """One request.

    `kind`: classes, rows or subjects. `rows (k,)`: its training rows. `unseen`: test rows of the same classes, with
    which the loss attack compares.
    """

    name: str
    kind: str
    rows: np.ndarray
    unseen: np.ndarray


def requests_of(dataset: Dataset, rounds: Sequence[Mapping[str, Any]]) -> list[DrawnRequest]:
    """Requests of all rounds; `rows` and `subjects` are drawn from what earlier rounds left.

    Raises ConfigError for a round of unknown kind, and if too few rows or subjects are left.
    """
    labels, splits = dataset.labels(), dataset.splits()
    train = splits == TRAIN
    left, requests = train.copy(), []
    for number, asked in enumerate(rounds, 1):
        kind = next((k for k in ("classes", "rows", "subjects") if k in asked), None)
        if kind is None or set(asked) - KINDS:
            raise ConfigError(
                f"round {number}: {dict(asked)} must have one of classes, rows and subjects, and beside it only a seed"
            )
        rng = np.random.default_rng(asked.get("seed", number))
        if kind == "classes":
            chosen = class_indices(dataset.class_names, asked["classes"])
            mask = left & np.isin(labels, chosen)
            name = "class " + ", ".join(dataset.class_names[c] for c in chosen)
        elif kind == "rows":
            mask = np.zeros(len(left), dtype=bool)
            mask[rng.choice(np.flatnonzero(left), _at_most(asked[kind], left.sum(), number), replace=False)] = True
            name = f"{asked[kind]} rows"
        else:
            mask = _subjects(dataset, left, asked[kind], rng, number)
            name = f"{asked[kind]} {'person' if asked[kind] == 1 else 'people'}"
        left &= ~mask
        unseen = np.flatnonzero((splits == TEST) & np.isin(labels, labels[mask]))
        requests.append(DrawnRequest(f"{number}: {name}", kind, np.flatnonzero(mask), unseen))
    return requests


def run_rounds(config: Config, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Run all rounds in the current workspace, which must have its model and features.

    Returns {"requests", "methods"}; "methods" maps each name to one entry per round. An entry holds the retained and
    test accuracy, the seconds to fit by the clock and of the processor, and the accuracy and loss AUC of every request
    so far, or the reason of a refusal. That of an exact deletion also holds "exact": whether the claim holds, the
    procedure, and the number of shards that were changed (None without shards).
    """
    dataset = Dataset(DATASET, verify=False)
    requests = requests_of(dataset, rounds)
    model = read_manifest(MODELS / ORIGINAL)["files"]["model.safetensors"]["sha256"]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (BEFORE, *config.methods)}
    for number in range(1, len(requests) + 1):
        last: Round | None = None
        for name in found:
            settings = config.fit.get(name)
            before, key = (_key(model, settings, requests[:count]) for count in (number - 1, number))
            file = HOME / f"{number}-{name}.json"
            if not file.is_file() or (entry := read_json(file))["key"] != key:
                last = last or Round.of(config, dataset, requests[:number])
                entry = {"key": key, **last.tested(name, LastProduct(PRODUCTS / name, before, key))}
                write_json(file, entry)
                log_message(f"round {number} of {len(requests)}: {name}, {entry.get('fit_s', 0):.1f} s")
            found[name].append({k: v for k, v in entry.items() if k != "key"})
    described = [{"name": r.name, "kind": r.kind, "rows": len(r.rows)} for r in requests]
    return {"requests": described, "methods": found}


def _key(model: str, settings: Mapping[str, Any] | None, requests: Sequence[DrawnRequest]) -> str:
    """Return a digest of all on which the result of an entry depends after these requests."""
    return digest_of({"model": model, "settings": settings, "rows": [r.rows.tolist() for r in requests]})


@dataclass(frozen=True)
class Round:
    """All requests so far, and the inputs of a method that answers them together."""

    config: Config
    inputs: FitInputs
    requests: Sequence[DrawnRequest]
    test: np.ndarray  # test rows of retained classes

    @classmethod
    def of(cls, config: Config, dataset: Dataset, requests: Sequence[DrawnRequest]) -> Round:
        """Return the round that forgets the rows of all `requests`; its split is written below HOME."""
        directory = HOME / "split"
        ids, rows = dataset.sample_ids(), np.concatenate([r.rows for r in requests])
        HOME.mkdir(parents=True, exist_ok=True)
        with open(HOME / "ids.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["sample_id"], *([ids[i]] for i in np.sort(rows))])
        split(
            dataset, directory, selector="ids", file=HOME / "ids.csv",
            validation=config.split.validation, seed=config.split.seed,
        )  # fmt: skip
        split_of_round = Split(directory)
        labels, train = dataset.labels(), dataset.splits() == TRAIN
        classes = whole_classes(labels, train, np.isin(np.arange(len(labels)), rows))
        return cls(
            config,
            FitInputs.of_split(split_of_round),
            requests,
            np.flatnonzero((dataset.splits() == TEST) & ~np.isin(labels, classes)),
        )

    def tested(self, name: str, product: LastProduct) -> dict[str, Any]:
        """Fit the entry `name` and evaluate it; {"refused": reason} if the fit is refused.

        An entry that continues starts from `product` and replaces it.
        """
        if name == BEFORE:
            return self._numbers(self.inputs.head.logits(torch.from_numpy(self.inputs.store.z())).numpy(), (0.0, 0.0))
        goes_on = continues(self.inputs, name, self.config.fit)
        inputs = product.start(self.inputs) if goes_on else self.inputs
        warm_up(name, self.config.fit, inputs.classifier.card.training)
        try:
            start = time.perf_counter(), time.process_time()
            unlearned = fit(name, inputs, self.config.fit)
            seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        except REFUSALS as e:
            return {"refused": str(e)}
        if goes_on:
            product.keep(unlearned)
        return self._numbers(self._logits(unlearned), seconds) | _claim(unlearned.info)

    def _logits(self, unlearned: UnlearnedModel) -> np.ndarray:
        """Logits `(n, C)` of all rows, or with another backbone than the original's of the evaluated rows, else NaN."""
        if unlearned.classifier is None:
            logits: np.ndarray = unlearned.logits(torch.from_numpy(self.inputs.store.z())).numpy()
            return logits
        classifier = unlearned.classifier.eval()
        rows = np.unique(np.concatenate([self.test, self._retained(), *(r.rows for r in self.requests)]))
        rows = np.union1d(rows, np.concatenate([r.unseen for r in self.requests]))
        out = np.full((self.inputs.dataset.rows, classifier.card.num_classes), np.nan, np.float32)
        with torch.inference_mode():
            for part in np.array_split(rows, len(rows) // self.config.features.batch_size + 1):
                z = classifier.features(self.inputs.dataset.inputs(part)).float().cpu()
                out[part] = unlearned.logits(z).numpy()
        return out

    def _retained(self) -> np.ndarray:
        """Retained training rows that are evaluated: at most RETAINED, drawn with seed 0."""
        rows = self.inputs.retain_rows
        if len(rows) <= RETAINED:
            return rows
        return np.sort(np.random.default_rng(0).choice(rows, RETAINED, replace=False))

    def _numbers(self, logits: np.ndarray, seconds: tuple[float, float]) -> dict[str, Any]:
        labels = self.inputs.labels
        right = logits.argmax(1) == labels

        def auc(request: DrawnRequest) -> float | None:
            rows, unseen = request.rows, request.unseen
            return loss_auc(logits[rows], labels[rows], logits[unseen], labels[unseen])

        return {
            "retain": float(right[self._retained()].mean()),
            "test": float(right[self.test].mean()),
            "fit_s": round(seconds[0], 3),
            "processor_s": round(seconds[1], 3),
            "requests": [{"accuracy": float(right[r.rows].mean()), "auc": auc(r)} for r in self.requests],
        }


def _claim(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry holds of an exact deletion, nothing for other methods."""
    if "exact" not in info:
        return {}
    claim = info["exact"]
    changed = len(claim["again"]) if "again" in claim else None
    return {"exact": {"holds": claim["holds"], "procedure": claim["procedure"], "changed": changed}}


def _subjects(dataset: Dataset, left: np.ndarray, count: int, rng: np.random.Generator, number: int) -> np.ndarray:
    if "subject" not in dataset.columns:
        raise ConfigError(f"round {number}: this dataset has no subjects; ask for rows or classes")
    subjects = np.array(dataset.table(["subject"])["subject"].to_pylist())
    known = np.unique(subjects[left])
    chosen = rng.choice(known, _at_most(count, len(known), number), replace=False)
    return np.asarray(left & np.isin(subjects, chosen))


def _at_most(count: int, there: int, number: int) -> int:
    if not 0 < count < there:
        raise ConfigError(f"round {number}: asks for {count}, but {there} are left and one must stay; ask for fewer")
    return count
