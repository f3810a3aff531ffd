"""One trial of the verdict's calibration: train an original and retrained models, and judge the candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from expunge.core import LinearHead
from expunge.core.leace import Leace
from expunge.core.moments import Moments
from expunge.evaluation.claims import claims_of, judge_gates
from expunge.evaluation.controls import LOGIT_MASK, LOOKUP_LIST, ORIGINAL, logit_mask, lookup_list, negative_controls
from expunge.evaluation.excess import power_of
from expunge.evaluation.gates import CMIA, GEOMETRY, RELEARN, ModelRows, aligned, build_gates, model_rows, values_of
from expunge.evaluation.measuring import area, geometry_rows, probe_rows, relearned
from expunge.evaluation.rows import Rows, choose_rows
from expunge.results.study_models import Networks, StudyRecipe, order_of, start, train

SIZES = ("1", "5", "20", "100", "600", "class")
REFERENCES, OTHERS = 3, 1  # retrained models that serve as references, and those that are judged as candidates
RETRAINED, OTHER, NOISE, LEACE = "retrained", "another original", "label noise", "LEACE"
MASK_OF_ANOTHER, LIST_OF_ANOTHER = f"{LOGIT_MASK} of another", f"{LOOKUP_LIST} of another"
NEGATIVE = (ORIGINAL, LOGIT_MASK, LOOKUP_LIST, OTHER, MASK_OF_ANOTHER, LIST_OF_ANOTHER, NOISE, LEACE)
NOISE_STEPS, NOISE_LR = 60, 1e-3


@dataclass(frozen=True)
class StudyData:
    """Rows `x (n, d)` float32 with labels `y (n,)`; the first `train` are training rows, the others test rows."""

    name: str
    x: torch.Tensor
    y: NDArray[np.int64]
    train: int
    recipe: StudyRecipe

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.y.max()) + 1


def forgotten(data: StudyData, size: str, trial: int) -> NDArray[np.int64]:
    """Training rows of one request: drawn at random, or all of one class, which is `trial` modulo the class count."""
    if size == "class":
        return np.flatnonzero(data.y[: data.train] == trial % data.classes)
    rng = np.random.default_rng([trial, int(size), 1])
    return np.sort(rng.choice(data.train, int(size), replace=False))


def train_trial(data: StudyData, trial: int, file: Path, sizes: tuple[str, ...] = SIZES) -> None:
    """Train all networks of one trial and store their weights in `file`.

    These are two originals, then four retrained models per size, and then per size the original after label noise.
    """
    everything = np.arange(data.train)
    sets = [everything, everything]
    for size in sizes:
        retained = np.setdiff1d(everything, forgotten(data, size, trial))
        sets += [retained] * (REFERENCES + OTHERS)
    length = data.recipe.steps * data.recipe.batch_size
    seeds = [1_000_003 * (trial + 1) + i for i in range(len(sets))]
    orders = np.stack(
        [order_of(rows, length, np.random.default_rng([s, 2])) for rows, s in zip(sets, seeds, strict=True)]
    )
    begun = start(seeds, data.x.shape[1], data.classes, data.recipe.hidden)
    y = torch.from_numpy(data.y)
    trained = train(begun, data.x, y, torch.from_numpy(orders), data.recipe)
    noisy = _label_noise(data, trial, trained.one(0), sizes)
    pairs = zip(trained.weights, noisy.weights, strict=True)
    arrays = {f"w{i}": torch.cat(pair).contiguous() for i, pair in enumerate(pairs)}
    file.parent.mkdir(parents=True, exist_ok=True)
    # Rename only a complete file, so that an interrupted run leaves no damaged one.
    staging = file.with_name(f".{file.name}.part")
    save_file(arrays, staging)
    staging.replace(file)


def _label_noise(data: StudyData, trial: int, original: Networks, sizes: tuple[str, ...]) -> Networks:
    """The original fine-tuned per size; half of each batch are forgotten rows with wrong labels, half retained rows."""
    targets, orders = [], []
    half = max(data.recipe.batch_size // 2, 1)
    for i, size in enumerate(sizes):
        rng = np.random.default_rng([trial, i, 3])
        rows = forgotten(data, size, trial)
        y = data.y.copy()
        y[rows] = (y[rows] + rng.integers(1, data.classes, len(rows))) % data.classes
        retained = np.setdiff1d(np.arange(data.train), rows)
        sides = [order_of(side, NOISE_STEPS * half, rng).reshape(NOISE_STEPS, half) for side in (rows, retained)]
        targets.append(y)
        orders.append(np.concatenate(sides, axis=1).reshape(-1))
    recipe = StudyRecipe(data.recipe.hidden, NOISE_STEPS, 2 * half, NOISE_LR)
    begun = Networks([w.repeat(len(sizes), 1, 1) for w in original.weights])
    return train(begun, data.x, torch.from_numpy(np.stack(targets)), torch.from_numpy(np.stack(orders)), recipe)


def load_networks(file: Path) -> Networks:
    """Return the networks that a trial stored in `file`."""
    stored = load_file(file)
    return Networks([stored[f"w{i}"] for i in range(4)])


@dataclass(frozen=True)
class ModelOutputs:
    """Logits (n, C), the backbone's features z (n, h), and the head's inputs z_prime (n, h)."""

    logits: NDArray[Any]
    z: NDArray[Any]
    z_prime: NDArray[Any]


class Measure:
    """Measures models on the rows of a request. Features that several models share are probed only once."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._probed: dict[tuple[int, str], NDArray[Any] | None] = {}
        self._kept: list[NDArray[Any]] = []  # keeps probed arrays alive, so that their ids are not reused

    def _probe(self, z: NDArray[Any], kind: str) -> NDArray[Any] | None:
        key = id(z), kind
        if key not in self._probed:
            self._kept.append(z)
            self._probed[key] = aligned(z, self.rows) if kind == "own" else probe_rows(z, self.rows, kind)
        return self._probed[key]

    def __call__(self, outputs: ModelOutputs) -> ModelRows:
        """Return the per-row values of all measures for one model."""
        probes = {
            f"representation.{name}_{part}": self._probe(z, kind)
            for name, kind in (("probe", "linear"), ("knn", "knn"), ("alignment", "own"))
            for part, z in (("z", outputs.z), ("z_prime", outputs.z_prime))
        }
        again = area(relearned(outputs.logits, outputs.z_prime, self.rows))
        own = {RELEARN: again, GEOMETRY: geometry_rows(outputs.logits, self.rows)}
        return model_rows(outputs.logits, self.rows, {**probes, **own})


def judge_trial(
    data: StudyData,
    trial: int,
    networks: Networks,
    sizes: tuple[str, ...] = SIZES,
    *,
    trained: tuple[str, ...] = SIZES,
    references: int = REFERENCES,
) -> Iterator[dict[str, Any]]:
    """Yield one record per size and candidate: its claims, and per gate the power, share, interval and outcome.

    `trained`: the sizes that `train_trial` was given. `references`: how many of the retrained models are references.
    """

    def outputs_of(index: int) -> ModelOutputs:
        logits, z = networks.one(index).outputs(data.x)
        return ModelOutputs(logits, z, z)

    original, other = outputs_of(0), outputs_of(1)
    each = REFERENCES + OTHERS
    for size in sizes:
        i = trained.index(size)
        first = 2 + i * each
        judges = [outputs_of(first + k) for k in range(references)]
        retrained = outputs_of(first + each - 1)
        noisy = outputs_of(2 + len(trained) * each + i)
        yield from _judge(data, trial, size, original, other, judges, retrained, noisy, networks)


def _judge(
    data: StudyData,
    trial: int,
    size: str,
    original: ModelOutputs,
    other: ModelOutputs,
    judges: list[ModelOutputs],
    retrained: ModelOutputs,
    noisy: ModelOutputs,
    networks: Networks,
) -> Iterator[dict[str, Any]]:
    rows = _plan(data, size, trial, original)
    classes = rows.forgotten_classes if rows.whole_classes else np.array([], dtype=int)
    measure = Measure(rows)
    references = [measure(r) for r in judges]
    base = measure(original)
    gates = build_gates(base, references, rows)
    accuracy = float(np.mean([r.alone["accuracy.forget"].mean() for r in references]))
    forget = rows.forget

    telling = {gate.path for gate in gates if power_of(gate).tells}

    def blocks(outputs: ModelOutputs) -> list[dict[str, Any]]:
        # A gate that does not tell decides nothing about any candidate, so its values need not be computed.
        values = values_of(measure(outputs), references, base, rows, attack=CMIA in telling) if telling else {}
        return judge_gates(gates, values)

    def outputs_only(outputs: ModelOutputs, logits: NDArray[Any]) -> ModelOutputs:
        return ModelOutputs(logits, outputs.z, outputs.z)

    named = negative_controls(original.logits, data.y, forget, classes, accuracy)
    controls = {name: blocks(outputs_only(original, logits)) for name, logits in named.items()}
    candidates = {
        RETRAINED: blocks(retrained),
        **controls,
        OTHER: blocks(other),
        LIST_OF_ANOTHER: blocks(outputs_only(other, lookup_list(other.logits, data.y, forget, accuracy))),
        NOISE: blocks(noisy),
        LEACE: blocks(_leace(data, rows, original, networks)),
    }
    if len(classes):
        candidates[MASK_OF_ANOTHER] = blocks(outputs_only(other, logit_mask(other.logits, classes)))
    else:
        candidates[LOGIT_MASK] = controls[ORIGINAL]  # without a whole class to hide, the mask equals the original
    for name, found in candidates.items():
        claims, why = claims_of(found, controls, references=len(references))
        keys = ("path", "claim", "power", "tells", "share", "interval", "passed", "refuted", "excess", "rows_needed")
        yield {
            "trial": trial,
            "size": size,
            "candidate": name,
            "claims": claims,
            "why": why,
            "gates": [{key: block[key] for key in keys} for block in found],
        }


def _plan(data: StudyData, size: str, trial: int, original: ModelOutputs) -> Rows:
    lost = forgotten(data, size, trial)
    part = np.full(len(data.y), "retain", dtype="<U12")
    part[data.train :] = "test_retain"
    part[lost] = "forget"
    if size == "class":
        test = np.arange(len(data.y)) >= data.train
        part[test & (data.y == trial % data.classes)] = "test_forget"
    return choose_rows(data.y, part, original.z, trial)


def _leace(data: StudyData, rows: Rows, original: ModelOutputs, networks: Networks) -> ModelOutputs:
    z = torch.from_numpy(original.z)
    fitted = Leace().fit(Moments.of(z[rows.parts["retain"]]), Moments.of(z[rows.forget]))
    z_prime = fitted.map_(z).float()
    head = LinearHead(networks.weights[2][0].T.double().contiguous(), networks.weights[3][0, 0].double())
    return ModelOutputs(head.logits(z_prime).numpy(), original.z, z_prime.numpy())
