"""The evidence of a run for its certificates, collected before the sweep erases rows and files."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from expunge.config import load_config
from expunge.erasure.selection import Rows, Selection
from expunge.methods.unlearned import INFO
from expunge.report import wording
from expunge.report.evidence import read_columns, read_logits
from expunge.report.metrics import name_of
from expunge.report.request_words import corrects, worded
from expunge.report.tables import STILL_STORED, takes
from expunge.system.files import MANIFEST, read_json, sha256
from expunge.system.git import git_state
from expunge.system.paths import DATASET, EVALUATION, FEATURES, MODELS, ORIGINAL, SPLIT, SUMMARY, UNLEARNED, VALIDATION

if TYPE_CHECKING:
    from expunge.erasure.candidate import Candidate

TOOLS = ("expunge", "torch", "numpy", "pyarrow", "dvc", "prefect", "mlflow", "great-expectations", "cryptography")
MANIFESTS = (DATASET, SPLIT, FEATURES / ORIGINAL, MODELS / ORIGINAL)


def manifests() -> dict[str, str | None]:
    """Return `sha256:...` of the manifest of every directory that holds or describes rows; None for a missing one."""
    files = {d.as_posix(): d / MANIFEST for d in MANIFESTS}
    return {name: f"sha256:{sha256(file)}" if file.is_file() else None for name, file in files.items()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that determine the result."""
    return {"python": platform.python_version(), **{tool: importlib.metadata.version(tool) for tool in TOOLS}}


def of_run(product: Candidate, selection: Selection) -> dict[str, Any]:
    """Return the record of the run that made `product`.

    The record holds the procedure, the source revision, the validation, the metrics against the references, the
    claims, and what is not claimed.
    """
    from expunge.tracking.provenance import lock_digest  # imports MLflow, which takes seconds

    config, summary = load_config(), read_json(SUMMARY)
    block = _block(summary, product)
    return {
        "procedure": {"method": product.method, "settings": config.fit.get(product.method, {}), "versions": versions()},
        "source": {**git_state(), "dvc_lock": lock_digest()},
        "batch_request": summary["request"]["digest"],
        **_counts(summary["request"]),
        "validation": {file.stem: bool(read_json(file)["success"]) for file in sorted(VALIDATION.glob("*.json"))},
        "metrics": [
            {
                "metric": worded(name_of(gate["path"]), summary["request"]),
                "claim": gate["claim"],
                "value": gate["value"],
                "original": None if gate["excess"] is None else gate["target"] + gate["excess"],
                "retrained": gate["target"],
                "share": wording.share_words(gate),
                "margin": wording.margin_words(gate),
                "outcome": wording.gate_outcome(gate),
            }
            for gate in block["verdict"]["gates"]
        ],
        "claim": {
            "shown": product.claims,
            "utility": block["verdict"]["utility"],
            "claims": block["verdict"]["claims"],
            "says": worded(_says(summary, block), summary["request"]),
            "reference": f"{wording.seed_count(summary)} retrained",
            "caution": worded(takes(summary).strip(), summary["request"]) or None,
            "not_claimed": [worded(line, summary["request"]) for line in _not_claimed(product, summary)],
        },
        "exact": exact(product),
        "each": each(product, selection),
    }


def _counts(request: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return how many training rows were forgotten and left; for corrections, how many labels were replaced, too."""
    rows, others = request["forget_rows"], request["retain_rows"]
    if corrects(request):
        return {"forgotten": {"train": 0, "left": rows + others}, "corrected": {"labels": rows}}
    return {"forgotten": {"train": rows, "left": others}}


def _says(summary: Mapping[str, Any], block: Mapping[str, Any]) -> str:
    shown = wording.claim(block["verdict"])
    if block is not summary["references"]["retrained"]:
        return shown
    how = "on the new labels" if corrects(summary["request"]) else "without these rows"
    return f"It is a model trained {how}. {shown}"


def exact(product: Candidate) -> dict[str, Any] | None:
    """Return the evidence of an exactness claim from the product's record; None for a method without such a claim."""
    record = UNLEARNED / product.method / INFO
    found: dict[str, Any] | None = read_json(record).get("exact") if record.is_file() else None
    return found


def each(product: Candidate, selection: Selection) -> dict[str, dict[str, Any]]:
    """Return counts and accuracies for each request of the batch, and under `again` for rows forgotten earlier.

    `train` and `test` are numbers of rows. `accuracy` holds the accuracy on the training rows of the original, the
    retrained model and the product, and `agreement` the share of them for which product and retrained model predict
    the same class.
    """
    again = np.flatnonzero(selection.again & ~selection.erase)
    answers, labels = _answers(product, np.flatnonzero(selection.forget))
    out = {}
    for name, mine in {**selection.of, "again": again}.items():
        rows = mine[selection.train[mine]]
        counts: dict[str, Any] = {"train": len(rows), "test": len(mine) - len(rows)}
        if len(rows):
            counts |= {"accuracy": {model: _share(answer[rows] == labels[rows]) for model, answer in answers.items()}}
            if "retrained" in answers:
                counts["agreement"] = _share(answers["product"][rows] == answers["retrained"][rows])
        if name != "again" or len(rows):
            out[name] = counts
    return out


def _answers(product: Candidate, rows: Rows) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Return the predicted classes of each model and the labels, each `(rows of the dataset,)`.

    The predictions are read once, and only for `rows`; the others are -1.
    """
    files = _logits(product)
    labels = read_columns(files["original"], ["label"])["label"]
    answers = {}
    for model, file in files.items():
        answers[model] = np.full(len(labels), -1)
        if len(rows):
            answers[model][rows] = read_logits(file, rows).argmax(1)
    return answers, labels


def _logits(product: Candidate) -> dict[str, Path]:
    references = EVALUATION / "references"
    retrained = sorted(references.glob("retrained-*.parquet"))
    files = {"original": references / "original.parquet"}
    if retrained:
        files["retrained"] = retrained[0]
    own = EVALUATION / product.method / f"{product.method}.parquet"
    return {**files, "product": own if own.is_file() else files["retrained"]}


def _block(summary: Mapping[str, Any], product: Candidate) -> Mapping[str, Any]:
    found: Mapping[str, Any] = summary["methods"].get(product.method) or summary["references"]["retrained"]
    return found


def _not_claimed(product: Candidate, summary: Mapping[str, Any]) -> list[str]:
    if (UNLEARNED / product.method).is_dir():
        # The sweep's findings in the certificate say where rows are still stored.
        lines = [line for line in wording.not_claimed(summary) if line != STILL_STORED]
    else:
        lines = [
            *wording.copies_left(summary["request"]),
            "Only the attacks listed here were run; a stronger one may find more.",
        ]
    return [*lines, "Copies outside this installation, and models that others made from its data, are not covered."]


def _share(hits: NDArray[np.bool_]) -> float:
    return round(float(hits.mean()), 6)
