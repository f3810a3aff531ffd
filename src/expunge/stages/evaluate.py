"""evaluate: compute every metric of one method, or of the references if no method is named, and compare them."""

import argparse
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
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
from expunge.evaluation.rows import Rows, choose_rows, measured_rows
from expunge.evaluation.suite import NO_RELEARNING, controls_of, evaluate
from expunge.features.store import FeatureStore
from expunge.methods.depth import cached_probes, stage_names, stage_probes
from expunge.methods.installed_metrics import BLOCK, described, forgotten_values, load_metrics
from expunge.methods.measured import measure_references
from expunge.methods.outputs import StoredOutputs, stored_classifier, stored_method, stored_retrained
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


def stored_references(config: Config, split: Split) -> dict[str, StoredOutputs]:
    """Return the original and the retrained models by their folders below MODELS, the original first."""
    folders = [retrained(seed) for seed in config.retrain.seeds]
    return {ORIGINAL: stored_classifier(ORIGINAL), **dict(zip(folders, stored_retrained(config, split), strict=False))}


def with_stages(
    outputs: Mapping[str, Outputs], references: Collection[str], rows: Rows, at: np.ndarray
) -> dict[str, Outputs]:
    """Return the same outputs with probes inside the backbones, if there are at least MIN_REFERENCES retrained models.

    The names `references`, the original first, are folders below MODELS, and the others below UNLEARNED. The probes of
    `references` are cached below WORK for the next method. `at` maps the planned `rows` to rows of the dataset.
    """
    if len(references) - 1 < MIN_REFERENCES:
        return dict(outputs)
    dataset, names = Dataset(DATASET, verify=False), stage_names(load_classifier(MODELS / ORIGINAL))
    found: dict[str, Outputs] = {}
    for name, model in outputs.items():
        if name in references:
            digest = read_manifest(MODELS / name)["files"]["model.safetensors"]["sha256"]
            classifier = load_classifier(MODELS / name)
            stages = cached_probes(WORK / "stages", digest, classifier, names, dataset, rows, at)
        else:
            own = UnlearnedModel.load(UNLEARNED / name).classifier
            stages = found[ORIGINAL].stages if own is None else stage_probes(own, names, dataset, rows, at)
        found[name] = replace(model, stages=stages)
    return found


def write_refusal(name: str, reason: str) -> None:
    """Write the results of a method whose fit was refused, so that the run goes on without it."""
    with staged_dir(EVALUATION / name) as staging:
        write_manifest(staging, "expunge.stages.evaluate", refused=reason)
    write_json(METRICS / f"{name}.json", {"refused": reason})
    write_cost(f"evaluate-{name}", {"evaluate_s": 0.0})


def drawn_of(parts: np.ndarray, measured: np.ndarray) -> dict[str, dict[str, int]]:
    """Return of every part of which only some rows were drawn how many these are, and how many rows it has."""
    every, some = Counter(parts.tolist()), Counter(measured.tolist())
    return {name: {"measured": some[name], "rows": n} for name, n in sorted(every.items()) if some[name] < n}


def write_rows(
    name: str, models: Mapping[str, StoredOutputs], split: Split, labels: np.ndarray, ids: np.ndarray
) -> None:
    """Write `data/evaluation/NAME`: one Parquet file per model, with one row for every row of the dataset."""
    files = {f"{model.replace('/', '-')}.parquet": stored for model, stored in models.items()}
    parts = np.where(split.validation_mask, VALIDATION, split.parts)
    with staged_dir(EVALUATION / name) as staging:
        for file, stored in files.items():
            write_logits(staging / file, stored.parts(), {"sample_id": ids, "part": parts, "label": labels})
        write_manifest(staging, "expunge.stages.evaluate", rows=dict.fromkeys(files, len(labels)))


def write_logits(path: Path, parts: Iterator[np.ndarray], columns: Mapping[str, np.ndarray]) -> None:
    """Write the logits of `parts`, each `(k, C)`, one after the other, beside `columns`, each `(n,)`."""
    writer, start = None, 0
    for logits in parts:
        values = pa.array(logits.astype(np.float32).reshape(-1))
        rows = {name: column[start : start + len(logits)] for name, column in columns.items()}
        table = pa.table({**rows, "logits": pa.FixedSizeListArray.from_arrays(values, logits.shape[1])})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
        start += len(logits)
    if writer is not None:
        writer.close()


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
    ids, labels = store.column("sample_id"), split.labels(store.column("label"))  # corrected rows have new labels
    planted = canary_rows(DATASET, ids.tolist())
    canaries = None if planted is None else CanaryRows(*planted)
    seed, scored = config.evaluate.seed, ~split.validation_mask
    measured = measured_rows(split.parts, scored, seed, None if canaries is None else canaries.rows)
    at = np.flatnonzero(measured)
    references = stored_references(config, split)
    with ExitStack() as stack:
        fits = {folder: stack.enter_context(stored_method(folder, config)) for folder in fits_of(name)}
        outputs = {model: stored.at(at) for model, stored in {**references, **fits}.items()}
        write_rows(name, {name: fits[name]} if fits else references, split, labels, ids)
    start = time.perf_counter()
    y, part = labels[at], split.parts[at]
    canaries = None if canaries is None else canaries.among(measured)
    rows = choose_rows(y, part, outputs[ORIGINAL].z, seed, canaries)
    outputs = with_stages(outputs, references, rows, at)
    original, *known = (outputs[model] for model in references)
    candidates = [outputs[model] for model in ([name] if fits else references)]
    others = [outputs[model] for model in fits if model != name]  # the same method, fitted with other seeds
    # One thread: the arrays are small, and the thread pools of torch, BLAS and scikit-learn slow each other down.
    torch.set_num_threads(1)
    with threadpool_limits(1):
        measuring = measure_references(rows, [original, *known], WORK / "measured")
        plan = (y, part, seed, JUDGED_HALF, canaries)
        blocks = [
            evaluate(model, original, [r for r in known if r is not model], *plan, others, measuring)
            for model in candidates
        ]
        if metrics:
            for block, model in zip(blocks, candidates, strict=True):
                block[BLOCK] = forgotten_values(metrics, model, y, part)
        if split.corrections is not None:  # relearning the corrected rows is what was asked for
            blocks = [{**block, "relearn": NO_RELEARNING} for block in blocks]
        controls = controls_of(original, known, *plan, measuring) if not fits and known else {}
    seconds = time.perf_counter() - start
    if fits:
        found = {**blocks[0], "settings": settings_of(name), "exact": read_json(UNLEARNED / name / INFO).get("exact")}
    else:
        found = {"original": blocks[0], "retrained": blocks[1:], "controls": controls, "metrics": described(metrics)}
        found |= {"drawn": drawn_of(split.parts[scored], part)}
    write_json(METRICS / f"{name}.json", found)
    write_cost(f"evaluate-{name}", {"evaluate_s": round(seconds, 3)})
    log_message(f"evaluate {name}: {seconds:.1f} s")


if __name__ == "__main__":
    run(main)
