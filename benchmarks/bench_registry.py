"""What MLflow adds to a pipeline run: logging the runs, registering a version with its check, and promoting it.

python -m benchmarks.bench_registry
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from expunge.core import LinearHead, identity
from expunge.evaluation.criteria import CANNOT_TELL, CLAIMS, KEPT, OUTPUTS, SHOWN
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.ledger import Ledger
from expunge.models.checkpoint import save_classifier
from expunge.models.zoo import build
from expunge.system.files import staged_dir, write_json, write_manifest

TARGET_S = 10.0
METHODS = [f"method-{i}" for i in range(8)]
CLASSES = [str(c) for c in range(10)]
REQUEST = "sha256:" + "a" * 64
CHECKED = 256  # rows on which the register stage compares


def run() -> dict[str, Any]:
    """Seconds of each step on a new SQLite store: the first version, and one more. Import of MLflow counts once."""
    before, here = os.environ.get("MLFLOW_TRACKING_URI"), Path.cwd()
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp}/mlflow.db"
        os.chdir(tmp)
        try:
            prepared = prepare(Path(tmp))
            rounds, busy = {}, {}
            for name in ("first", "next"):
                start = time.process_time()
                rounds[name] = measure(Path(tmp), prepared, name)
                busy[name] = time.process_time() - start
        finally:
            os.chdir(here)
            os.environ.pop("MLFLOW_TRACKING_URI")
            if before is not None:
                os.environ["MLFLOW_TRACKING_URI"] = before
    table = Table("step", *(f"{name} version, s" for name in rounds), title=f"MLflow, {len(METHODS)} methods")
    for step in rounds["first"]:
        table.add_row(step, *(f"{seconds[step]:.2f}" for seconds in rounds.values()))
    totals = {name: sum(seconds.values()) for name, seconds in rounds.items()}
    table.add_row("total", *(f"{total:.2f}" for total in totals.values()), style="bold")
    # Beside the clock, which counts whatever else the machine does.
    table.add_row("of that, processor", *(f"{seconds:.2f}" for seconds in busy.values()))
    Console().print(table)
    figures = {"steps": rounds, "totals": totals, "processor_s": busy}
    return {"threads": torch.get_num_threads(), "target_s": TARGET_S, **figures}


def prepare(home: Path) -> dict[str, Any]:
    """A classifier as the fit stage leaves it, and what the evaluation saw of it."""
    classifier = build("resnet-small", len(CLASSES), (28, 28, 1), seed=1).eval()
    head = LinearHead.of(classifier.head)
    with staged_dir(home / "model") as staging:
        save_classifier(staging, classifier)
        write_manifest(staging, "benchmark")
    with staged_dir(home / "unlearned") as staging:
        identity(classifier.card.feature_dim).save(staging)
        head.save(staging / "head.safetensors")
        write_manifest(staging, "benchmark")
    images = np.random.default_rng(0).integers(0, 256, (CHECKED, 28, 28), dtype=np.uint8)
    with torch.inference_mode():
        expected = torch.softmax(classifier(images).double(), 1).numpy()
    block = {f"group-{g}": {f"metric-{m}": 0.5 for m in range(12)} for g in range(6)}
    claims = {**dict.fromkeys(CLAIMS, CANNOT_TELL), OUTPUTS: SHOWN}
    verdict = {"claims": claims, "utility": KEPT, "gates": [], "references": 1}
    summary = {
        "request": {"selector": "classes", "digest": REQUEST, "forget_rows": 6000},
        "model": {"name": "resnet-small"},
        "references": {"original": block, "retrained": block, "logit_mask": block},
        "methods": {name: {**block, "verdict": verdict} for name in METHODS},
        "selected": METHODS[0],
    }
    write_json(home / "summary.json", summary)
    return {"images": images, "expected": expected, "summary": summary}


def measure(home: Path, prepared: dict[str, Any], content: str) -> dict[str, float]:
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[step] = time.perf_counter() - start

    with timed("import"):
        from expunge.promotion.promoter import Promoter
        from expunge.tracking import LoggedDataset, Submission, connect, log_pipeline_run, preflight, register_model
    with timed("open the store; at first it makes the tables"):
        preflight()
    with timed("log the runs"):
        ids = log_pipeline_run(
            prepared["summary"],
            experiment="benchmark",
            run_name=content,
            description_md="",
            params={},
            tags={},
            dataset=LoggedDataset("noise", REQUEST, {}),
            artifacts=[home / "summary.json"],
        )
    with timed("register and check"):
        version = register_model(
            Submission(
                name="benchmark",
                content=content,
                run_id=ids.children[METHODS[0]],
                method=METHODS[0],
                model_dir=home / "model",
                unlearned_dir=home / "unlearned",
                classes=CLASSES,
                inputs=prepared["images"],
                expected=prepared["expected"],
                tags={"claims": OUTPUTS, "utility": KEPT, "failed_gates": "none", "request": REQUEST},
                description_md="",
            )
        )
    with timed("promote"):
        promoter = Promoter(
            connect(), "benchmark", Ledger(home / "ledger.jsonl"), ForgottenRows(home, REQUEST, ["1"]), OUTPUTS
        )
        promoter.promote(promoter.version(version.version), "measured", promoter.history().head, {})
    return seconds


if __name__ == "__main__":
    run()
