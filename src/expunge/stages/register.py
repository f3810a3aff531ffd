"""register: log the runs and register the selected method's classifier in MLflow.

The alias moves after the registered version was checked.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from expunge.config import Config, load_config
from expunge.data.canaries import CANARIES
from expunge.data.dataset import Dataset
from expunge.data.schema import FORGET
from expunge.data.split import Split, described
from expunge.evaluation.claims import claim_tags, shown_words
from expunge.ledger.forgotten import ForgottenRows, label_pairs
from expunge.ledger.ledger import Ledger
from expunge.methods.unlearned import INFO
from expunge.models.checkpoint import DESCRIPTION
from expunge.report.request_words import corrects, worded
from expunge.report.tables import headline, markdown
from expunge.report.version_page import version_page
from expunge.stages import run
from expunge.system.errors import TrackingError
from expunge.system.files import digest_of, read_json, read_manifest
from expunge.system.git import git_state
from expunge.system.paths import (
    DATASET,
    FORGOTTEN,
    LEDGER,
    METRICS,
    MODELS,
    ORIGINAL,
    REGISTRATION,
    REPORTS,
    SPLIT,
    SUMMARY,
    UNLEARNED,
    workspace,
)
from expunge.system.progress import log_message
from expunge.tracking import (
    CORRECTS,
    FORGETS,
    LoggedDataset,
    RunIds,
    Submission,
    log_pipeline_run,
    model_name,
    preflight,
    register_model,
    write_receipt,
)
from expunge.tracking.details import details_of, shared_stages, usage_of
from expunge.tracking.examples import examples_with_answers
from expunge.tracking.provenance import lock_digest
from expunge.tracking.report_link import log_linked_report
from expunge.training.original import present

ARTIFACTS = (
    "report.html",
    "results.md",
    "results.csv",
    "model_card.md",
    "summary.json",
    "metrics",
    "figures",
    "plots",
    "validation",
)
FLOW_RUN = "EXPUNGE_FLOW_RUN"  # environment variable with the id of the flow run that runs this stage


def content_digest(method: str, summary: dict[str, Any]) -> str:
    """Return the digest of what a version is made from: weights, map and head, request and claims.

    Times and run ids are left out.
    """
    files = read_manifest(UNLEARNED / method)["files"]
    return digest_of(
        {
            "model": summary["model"]["digest"],
            "unlearned": {name: entry for name, entry in files.items() if name != INFO},
            "request": summary["request"]["digest"],
            "claims": summary["methods"][method]["verdict"]["claims"],
        }
    )


def main() -> None:
    """Run the stage `register`. Raises TrackingError where the store cannot be reached."""
    try:
        preflight()
    except TrackingError as e:
        raise TrackingError(
            f"{e}. All results are kept; run `dvc repro` to log them when the store is available again"
        ) from None
    config, summary, dataset = load_config(), read_json(SUMMARY), Dataset(DATASET)
    name = config.register.name or model_name(config.data.source, config.model.name)
    audit = (DATASET / CANARIES).is_file()  # a model trained on planted canaries is never served
    selected = None if audit else summary["selected"]
    shown = shown_words(summary["methods"][selected]["verdict"]) if selected else "none"
    split = Split(SPLIT)
    keep_forgotten(split, dataset)
    tags = {"dvc_lock": lock_digest(), **git_state()}
    if flow_run := os.environ.get(FLOW_RUN):
        tags["flow_run"] = flow_run
    run_name = f"{asks(summary)} {describe(summary, dataset)} · {shown} · {selected or 'nothing'}"
    ids = log_run(config, summary, dataset, run_name, tags)
    if selected is None:
        write_receipt(
            REGISTRATION,
            content=digest_of(summary["request"]),
            name=name,
            method=None,
            tags={"dvc_lock": tags["dvc_lock"]},
        )
        why = "no method qualified; reports/results.md says why for each"
        if audit:
            why = "canaries were planted in the training data, so this run is an audit"
        log_message(f"register: nothing was registered: {why}")
        return
    verdict = summary["methods"][selected]["verdict"]
    tags |= {
        "verdict": worded(headline(summary), summary["request"]).replace("**", ""),
        **claim_tags(verdict),
        "request": summary["request"]["digest"],
        **({CORRECTS: str(len(split.corrections.rows))} if split.corrections is not None else {}),
        FORGETS: described(split.parts, dataset) if split.corrections is None else describe(summary, dataset),
    }
    page = f"#/experiments/{ids.experiment}/runs/{ids.parent}"
    inputs, probabilities = examples_with_answers(selected, dataset)
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
            description_md=version_page(summary, dataset.class_names, page),
            documents=[REPORTS / "results.md", REPORTS / "model_card.md"],
            any_size=dataset.image_shape is None,
        )
    )
    # The receipt is an output of the stage: equal content must give equal bytes, so the git commit is left out.
    verdict_tags = {key: tags[key] for key in ("dvc_lock", "verdict", "claims", "utility", "failed_gates", "request")}
    write_receipt(REGISTRATION, content=content, name=name, method=selected, tags=verdict_tags)
    state = "version" if version.new else "already version"
    log_message(f"register: {selected} is {state} {version.version} of {name}, alias challenger; shown: {shown}")


def log_run(
    config: Config, summary: dict[str, Any], dataset: Dataset, run_name: str, tags: Mapping[str, str]
) -> RunIds:
    """Log the run with its references, methods, seeds, reports and samples of the machine."""
    seeds = [] if summary["references"]["retrained"] is None else list(config.retrain.seeds)
    retrained = read_json(METRICS / "references.json")["retrained"]
    ids = log_pipeline_run(
        summary,
        experiment=config.register.experiment or f"{config.data.source} {config.model.name}",
        run_name=run_name,
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
    log_linked_report(ids, REPORTS / "report.html")
    return ids


def keep_forgotten(split: Split, dataset: Dataset) -> None:
    """Record the keyed digests of the rows that this request forgets, or of the labels that it corrects.

    Promotions need them after the workspace has moved on to another request.
    """
    ids, corrections = dataset.sample_ids(), split.corrections
    rows = split.rows(FORGET) if corrections is None else corrections.rows
    own = [ids[i] for i in rows.tolist()]
    if corrections is not None:
        own = label_pairs(own, corrections.old.tolist(), dataset.class_names)
    seen = present(dataset, Ledger(workspace() / LEDGER))
    ForgottenRows(workspace() / FORGOTTEN, split.request["digest"], own, seen).register()


def description(summary: dict[str, Any], dataset: Dataset) -> str:
    """Return the result as Markdown. The outcome comes first, because MLflow's lists show only the beginning."""
    selected = summary["selected"]
    came = (
        f"{selected}, shown: {shown_words(summary['methods'][selected]['verdict'])}"
        if selected
        else "Nothing qualified"
    )
    table = worded(markdown(summary), summary["request"]).removeprefix("# Result\n\n")
    return f"{came}: {asks(summary)} {describe(summary, dataset)}.\n\n{table}"


def asks(summary: dict[str, Any]) -> str:
    """Return what the request does, as a verb."""
    return "correct" if corrects(summary["request"]) else "forget"


def describe(summary: dict[str, Any], dataset: Dataset) -> str:
    """Describe the request in a few words, without ids."""
    request = summary["request"]
    if request["selector"] == "classes":
        return ", ".join(dataset.class_names[c] for c in request["classes"])
    if corrects(request):
        return f"the labels of {request['forget_rows']:,} rows"
    return f"{request['forget_rows']:,} rows ({request['selector']})"


def flat_params(config: Config) -> dict[str, Any]:
    """Return params.yaml as `section.key` entries, as MLflow shows them.

    Files and filters of requests are left out, because they may name people.
    """
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
