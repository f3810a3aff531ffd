"""register: runs and the selected method's classifier into MLflow; the alias moves once the version was checked."""

import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import yaml

from expunge.config import Config, load_config
from expunge.data.dataset import Dataset
from expunge.data.schema import TEXT
from expunge.data.split import Split
from expunge.errors import TrackingError
from expunge.evaluation.divergence import log_softmax
from expunge.files import digest_of, read_json, read_manifest
from expunge.models.checkpoint import DESCRIPTION
from expunge.paths import (
    DATASET,
    EVALUATION,
    METRICS,
    MODELS,
    ORIGINAL,
    REGISTRATION,
    REPORTS,
    SPLIT,
    SUMMARY,
    UNLEARNED,
)
from expunge.progress import say
from expunge.report.tables import failures, headline, markdown
from expunge.stages import run
from expunge.tracking import Dataset as LoggedDataset
from expunge.tracking import Submission, log_pipeline_run, model_name, preflight, register_model, write_receipt
from expunge.tracking.details import details_of, shared_stages, usage_of
from expunge.unlearned import INFO

CHECKED_ROWS = 256  # test rows on which the loaded version must repeat the evaluation
ARTIFACTS = (
    "report.html",
    "results.md",
    "results.csv",
    "model_card.md",
    "summary.json",
    "metrics.json",
    "figures",
    "plots",
    "validation",
)
FLOW_RUN = "EXPUNGE_FLOW_RUN"  # set by the flow that runs this stage: the run's id


def lock_digest() -> str:
    """Digest of what dvc.lock says of every stage upstream of this one: HEAD is the commit before this lock."""
    lock = Path("dvc.lock")
    stages = (yaml.safe_load(lock.read_text()) if lock.is_file() else {}).get("stages", {})
    return digest_of({name: entry for name, entry in stages.items() if name != "register"})


def git_state() -> dict[str, str]:
    """Commit and whether the work tree differs from it; empty outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": str(bool(git("status", "--porcelain", "-uno"))).lower(),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


def content_digest(method: str, summary: dict[str, Any]) -> str:
    """What a version is made from: weights, map and head, request and claim. Times and run ids do not count."""
    files = read_manifest(UNLEARNED / method)["files"]
    return digest_of(
        {
            "model": summary["model"]["digest"],
            "unlearned": {name: entry for name, entry in files.items() if name != INFO},
            "request": summary["request"]["digest"],
            "level": summary["methods"][method]["verdict"]["level"],
        }
    )


def evaluated(method: str, dataset: Dataset, model: str | None = None) -> tuple[np.ndarray | list[str], np.ndarray]:
    """Test rows of retained classes, images uint8 `(n, h, w[, c])` or texts, and the probabilities that the evaluation
    had for them. `model`: one of several that were evaluated under this name."""
    rows = Split(SPLIT).rows("test_retain")
    if dataset.image_shape is None and dataset.encoding != TEXT:
        shapes = dataset.table(["height", "width", "channels"]).take(rows).to_pylist()
        rows = rows[[shape == shapes[0] for shape in shapes]]
    rows = rows[:CHECKED_ROWS]
    logits = (
        pq.read_table(EVALUATION / method / f"{model or method}.parquet", columns=["logits"])["logits"]
        .take(rows)
        .combine_chunks()
    )
    probabilities = np.exp(log_softmax(logits.flatten().to_numpy().reshape(len(rows), -1)))
    if dataset.encoding == TEXT:
        return cast(list[str], dataset.inputs(rows)), probabilities
    images = np.stack(list(dataset.images(rows)))
    return images[..., 0] if images.shape[-1] == 1 else images, probabilities


def main() -> None:
    try:
        preflight()
    except TrackingError as e:
        raise TrackingError(f"{e}. All that was computed is kept: `dvc repro` logs it when the store is back") from None
    config, summary, dataset = load_config(), read_json(SUMMARY), Dataset(DATASET)
    name = config.register.name or model_name(config.data.source, config.model.name)
    selected = summary["selected"]
    level = summary["methods"][selected]["verdict"]["level"] if selected else "none"
    tags = {"dvc_lock": lock_digest(), **git_state()}
    if flow_run := os.environ.get(FLOW_RUN):
        tags["flow_run"] = flow_run
    seeds = [] if summary["references"]["retrained"] is None else list(config.retrain.seeds)
    retrained = read_json(METRICS / "references.json")["retrained"]
    ids = log_pipeline_run(
        summary,
        experiment=config.register.experiment or f"{config.data.source} {config.model.name}",
        run_name=f"forget {describe(summary, dataset)} · {level} · {selected or 'nothing'}",
        description_md=description(summary, dataset),
        params=flat_params(config),
        tags=tags,
        dataset=LoggedDataset(
            config.data.source, dataset.digest, {k: dataset.manifest[k] for k in ("rows_train", "rows_test")}
        ),
        per_method=details_of(summary, seeds),
        seeds=dict(zip(seeds, retrained, strict=False)),
        usage=usage_of(shared_stages()),
        artifacts=[REPORTS / a for a in ARTIFACTS if (REPORTS / a).exists()],
    )
    if selected is None:
        write_receipt(
            REGISTRATION,
            content=digest_of(summary["request"]),
            name=name,
            method=None,
            tags={"dvc_lock": tags["dvc_lock"]},
        )
        say(f"register: nothing registered. {failures(summary)}")
        return
    verdict = summary["methods"][selected]["verdict"]
    tags |= {
        "verdict": headline(summary).replace("**", ""),
        "claim_level": level,
        "failed_gates": ", ".join(gate["gate"] for gate in verdict["failed_gates"]) or "none",
        "request": summary["request"]["digest"],
    }
    inputs, probabilities = evaluated(selected, dataset)
    content = content_digest(selected, summary)
    own = UNLEARNED / selected
    model_dir = own if (own / DESCRIPTION).is_file() else MODELS / ORIGINAL
    version = register_model(
        Submission(
            name=name,
            content=content,
            run_id=ids.children[selected],
            method=selected,
            model_dir=model_dir,
            unlearned_dir=UNLEARNED / selected,
            classes=dataset.class_names,
            inputs=inputs,
            expected=probabilities,
            tags=tags,
            description_md=description(summary, dataset),
            documents=[REPORTS / "results.md", REPORTS / "model_card.md"],
            any_size=dataset.image_shape is None,
        )
    )
    # The commit stays out of the receipt: it is an output, and the same content must give the same bytes.
    kept = {key: tags[key] for key in ("dvc_lock", "verdict", "claim_level", "failed_gates", "request")}
    write_receipt(REGISTRATION, content=content, name=name, method=selected, tags=kept)
    state = "version" if version.new else "already version"
    say(f"register: {selected} is {state} {version.version} of {name}, alias challenger, claim level {level}")


def description(summary: dict[str, Any], dataset: Dataset) -> str:
    """The result for MLflow, whose lists show the beginning: what came of it, then the table."""
    selected = summary["selected"]
    came = f"{selected}, level {summary['methods'][selected]['verdict']['level']}" if selected else "Nothing qualified"
    return f"{came}: forget {describe(summary, dataset)}.\n\n" + markdown(summary).removeprefix("# Result\n\n")


def describe(summary: dict[str, Any], dataset: Dataset) -> str:
    """The request in a few words, without ids."""
    request = summary["request"]
    if request["selector"] == "classes":
        return ", ".join(dataset.class_names[c] for c in request["classes"])
    return f"{request['forget_rows']:,} rows ({request['selector']})"


def flat_params(config: Config) -> dict[str, Any]:
    """params.yaml as `section.key`, as MLflow shows it. File names of requests stay out: they may name people."""
    out: dict[str, Any] = {}
    for section, value in asdict(config).items():
        if section == "fit":
            continue
        if isinstance(value, dict):
            out |= {
                f"{section}.{key}": v
                for key, v in value.items()
                if (section, key) not in {("split", "file"), ("split", "filter")}
            }
        else:
            out[section] = value
    return out


if __name__ == "__main__":
    run(main)
