"""evaluate: compute every metric of one method, or of the references if no method is named, and compare them."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from threadpoolctl import threadpool_limits

from expunge.config import Config, load_config
from expunge.data.canaries import canary_rows
from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.evaluation.criteria import MIN_REFERENCES
from expunge.evaluation.exposure import CanaryRows
from expunge.evaluation.measuring import Outputs
from expunge.evaluation.rows import Rows, choose_rows
from expunge.evaluation.suite import NO_RELEARNING, controls_of, evaluate
from expunge.features.store import FeatureStore
from expunge.methods.depth import cached_probes, stage_names, stage_probes
from expunge.methods.installed_metrics import BLOCK, described, forgotten_values, load_metrics
from expunge.methods.measured import measure_references
from expunge.methods.outputs import outputs_of_classifier, outputs_of_method, outputs_of_retrained
from expunge.methods.unlearned import INFO, SEEDS, UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.stages import run
from expunge.system.files import read_json, read_manifest, staged_dir, write_json, write_manifest
from expunge.system.monitor import write_cost
from expunge.system.paths import (
    DATASET,
    EVALUATION,
    FEATURES,
    METRICS,
    MODELS,
    ORIGINAL,
    REFERENCES,
    SPLIT,
    UNLEARNED,
    WORK,
    retrained,
)
from expunge.system.progress import log_message

JUDGED_HALF = 1  # the best of several methods is chosen on one half of the rows and judged on the other
VALIDATION = "validation"  # in the outputs per row, the part of the rows that settings were chosen on


def settings_of(method: str) -> dict[str, Any]:
    """Return the settings of a method.

    `params`: those in params.yaml. `chosen`: how some were chosen on held-out rows, and their scores. `fit_seeds`: with
    how many seeds it was fitted; None if it takes no seed.
    """
    info = read_json(UNLEARNED / method / INFO)
    params = read_manifest(UNLEARNED / method)["settings"] or {}
    return {"params": params, "chosen": info.get("chosen"), "fit_seeds": info.get("fit_seeds")}


def fits_of(name: str) -> list[str]:
    """Return the folders below UNLEARNED of a method's fit and its fits with other seeds; empty for the references."""
    if name == REFERENCES:
        return []
    others = (UNLEARNED / name / SEEDS).glob("*/")
    return [name, *(f"{name}/{SEEDS}/{number}" for number in sorted(int(place.name) for place in others))]


def rows_of(outputs: Outputs, mask: np.ndarray) -> Outputs:
    """Return the outputs of the rows in `mask`; the other rows were used to choose settings."""
    z_prime = None if outputs.z_prime is None else outputs.z_prime[mask]
    return Outputs(outputs.logits[mask], outputs.z[mask], z_prime, outputs.stages)


def with_stages(
    models: dict[str, Outputs],
    original: Outputs,
    references: list[Outputs],
    rows: Rows,
    at: np.ndarray,
    config: Config,
) -> tuple[dict[str, Outputs], Outputs, list[Outputs]]:
    """Return the same outputs with probes inside the backbones, if there are at least MIN_REFERENCES retrained models.

    The probes of the original and the retrained models are cached below WORK for the next method. `at` maps the planned
    `rows` to rows of the dataset.
    """
    if len(references) < MIN_REFERENCES:
        return models, original, references
    dataset, names = Dataset(DATASET, verify=False), stage_names(load_classifier(MODELS / ORIGINAL))

    def of(name: str) -> Mapping[str, np.ndarray]:
        digest = read_manifest(MODELS / name)["files"]["model.safetensors"]["sha256"]
        return cached_probes(WORK / "stages", digest, load_classifier(MODELS / name), names, dataset, rows, at)

    first = replace(original, stages=of(ORIGINAL))
    known = [replace(r, stages=of(retrained(s))) for r, s in zip(references, config.retrain.seeds, strict=True)]
    found = {}
    for name, model in models.items():
        if model is original:
            found[name] = first
        elif (number := next((i for i, r in enumerate(references) if r is model), None)) is not None:
            found[name] = known[number]
        else:
            own = UnlearnedModel.load(UNLEARNED / name).classifier
            stages = first.stages if own is None else stage_probes(own, names, dataset, rows, at)
            found[name] = replace(model, stages=stages)
    return found, first, known


def write_refusal(name: str, reason: str) -> None:
    """Write the results of a method whose fit was refused, so that the run goes on without it."""
    with staged_dir(EVALUATION / name) as staging:
        write_manifest(staging, "expunge.stages.evaluate", refused=reason)
    write_json(METRICS / f"{name}.json", {"refused": reason})
    write_cost(f"evaluate-{name}", {"evaluate_s": 0.0})


def write_rows(name: str, models: dict[str, Outputs], split: Split, labels: np.ndarray, ids: np.ndarray) -> None:
    """Write `data/evaluation/NAME`: one Parquet file per model, with one row for every row of the dataset."""
    with staged_dir(EVALUATION / name) as staging:
        for model, outputs in models.items():
            logits = pa.FixedSizeListArray.from_arrays(
                pa.array(outputs.logits.astype(np.float32).reshape(-1)), outputs.logits.shape[1]
            )
            columns = {
                "sample_id": ids,
                "part": np.where(split.validation_mask, VALIDATION, split.parts),
                "label": labels,
                "logits": logits,
            }
            pq.write_table(pa.table(columns), staging / f"{model}.parquet", compression="zstd")
        write_manifest(staging, "expunge.stages.evaluate", rows={f"{model}.parquet": len(labels) for model in models})


def main() -> None:
    """Run the stage `evaluate` for the method on the command line, or for the references."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", nargs="?", default=REFERENCES)
    name = parser.parse_args().method
    if name != REFERENCES and (refused := read_manifest(UNLEARNED / name).get("refused")):
        write_refusal(name, refused)
        return
    config = load_config()
    metrics = load_metrics(config.evaluate.metrics)
    split, store = Split(SPLIT), FeatureStore(FEATURES / ORIGINAL)
    labels = split.labels(store.column("label"))  # corrected rows have their new labels
    original, references = outputs_of_classifier(ORIGINAL), outputs_of_retrained(config, split)
    models = {n: outputs_of_method(n, original, config) for n in fits_of(name)} or {ORIGINAL: original}
    if name == REFERENCES:
        models |= {f"retrained-{s}": r for s, r in zip(config.retrain.seeds, references, strict=False)}
    scored = ~split.validation_mask
    planted = canary_rows(DATASET, store.column("sample_id").tolist())
    canaries = None if planted is None else CanaryRows(*planted).among(scored)
    start = time.perf_counter()
    y, part = labels[scored], split.parts[scored]
    rows = choose_rows(y, part, original.z[scored], config.evaluate.seed, canaries)
    models, original, references = with_stages(models, original, references, rows, np.flatnonzero(scored), config)
    # One thread: the arrays are small, and the thread pools of torch, BLAS and scikit-learn slow each other down.
    torch.set_num_threads(1)
    with threadpool_limits(1):
        of = {id(model): rows_of(model, scored) for model in (original, *references, *models.values())}
        first, known = of[id(original)], [of[id(r)] for r in references]
        candidates = [of[id(model)] for model in models.values()]
        fits: list[Outputs] = []  # fits of the method with other seeds
        if name != REFERENCES:
            candidates, fits = candidates[:1], candidates[1:]
        measuring = measure_references(rows, [first, *known], WORK / "measured")
        plan = (y, part, rows.seed, JUDGED_HALF, canaries)
        blocks = [
            evaluate(model, first, [r for r in known if r is not model], *plan, fits, measuring) for model in candidates
        ]
        if metrics:
            for block, model in zip(blocks, candidates, strict=True):
                block[BLOCK] = forgotten_values(metrics, model, y, part)
        if split.corrections is not None:  # relearning the corrected rows is what was asked for
            blocks = [{**block, "relearn": NO_RELEARNING} for block in blocks]
        controls = controls_of(first, known, *plan, measuring) if name == REFERENCES and known else {}
    seconds = time.perf_counter() - start
    if name == REFERENCES:
        written = {"original": blocks[0], "retrained": blocks[1:], "controls": controls, "metrics": described(metrics)}
    else:
        written = {**blocks[0], "settings": settings_of(name), "exact": read_json(UNLEARNED / name / INFO).get("exact")}
        models = {name: models[name]}
    write_rows(name, models, split, labels, store.column("sample_id"))
    write_json(METRICS / f"{name}.json", written)
    write_cost(f"evaluate-{name}", {"evaluate_s": round(seconds, 3)})
    log_message(f"evaluate {name}: {seconds:.1f} s")


if __name__ == "__main__":
    run(main)
