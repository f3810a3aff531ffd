"""report: write one HTML file, its figures, the numbers as CSV, and a model card."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.config import Config, load_config
from expunge.data.dataset import Dataset
from expunge.data.schema import TEXT
from expunge.data.split import Split
from expunge.features.store import FeatureStore
from expunge.methods.unlearned import UnlearnedModel
from expunge.report.card import TrainingData, model_card
from expunge.report.comparison import on_same_rows
from expunge.report.comparison_page import section
from expunge.report.comparison_view import ComparedModels
from expunge.report.evidence import Evidence, draw_rows, draw_view, drawn_words, read_columns, read_logits
from expunge.report.export import results_csv
from expunge.report.html import Section, render, sections
from expunge.report.request_words import worded
from expunge.report.style import standalone
from expunge.report.tables import candidates
from expunge.report.wording import focus
from expunge.stages import run
from expunge.system.files import read_json, read_manifest, staged_dir, write_manifest, write_text
from expunge.system.git import git_state
from expunge.system.paths import (
    DATASET,
    EVALUATION,
    FEATURES,
    FIGURES,
    ORIGINAL,
    REFERENCES,
    REPORTS,
    SPLIT,
    SUMMARY,
    UNLEARNED,
    VALIDATION,
    retrained,
)
from expunge.system.progress import log_message


def outputs(summary: dict[str, Any], config: Config) -> dict[str, Path]:
    """Return the file of every candidate's outputs per row, in the order of the table.

    For the retrained models it is that of the first seed.
    """
    files = {}
    for name, _ in candidates(summary):
        if name == ORIGINAL:
            files[name] = EVALUATION / REFERENCES / f"{ORIGINAL}.parquet"
        elif name == "retrained":
            files[name] = EVALUATION / REFERENCES / f"retrained-{config.retrain.seeds[0]}.parquet"
        else:
            files[name] = EVALUATION / name / f"{name}.parquet"
    for directory in sorted({path.parent for path in files.values()}):
        read_manifest(directory, verify=False)
    return files


def view(name: str, rows: np.ndarray, dataset: Dataset, config: Config) -> dict[str, np.ndarray]:
    """Return features of `rows`, which are in dataset order.

    They are z of the original, the features that the method's head reads and, with references, z of the first retrained
    model.
    """
    z = FeatureStore(FEATURES / ORIGINAL).z(rows)
    unlearned = UnlearnedModel.load(UNLEARNED / name)
    own = torch.from_numpy(z)
    if unlearned.classifier is not None:
        unlearned.classifier.eval()
        with torch.inference_mode():
            own = torch.cat(
                [
                    unlearned.classifier.features(dataset.inputs(part)).float()
                    for part in np.array_split(rows, max(1, len(rows) // config.features.batch_size))
                ]
            )
    views = {"z of the original": z, f"z' of {name}": unlearned.map(own).float().numpy()}
    if config.reference == "retrain":
        views["z of the retrained model"] = FeatureStore(FEATURES / retrained(config.retrain.seeds[0])).z(rows)
    return views


def gather(summary: dict[str, Any], dataset: Dataset, config: Config) -> Evidence:
    """Read the data of the drawn rows that the plots show."""
    files, seed = outputs(summary, config), config.evaluate.seed
    columns = read_columns(files["original"], ["label", "part"])
    labels, parts = columns["label"], columns["part"]
    rows, (shown, groups) = draw_rows(parts, seed), draw_view(labels, parts, seed)
    order = np.argsort(shown, kind="stable")
    return Evidence(
        classes=tuple(dataset.class_names),
        labels=labels[rows],
        parts=parts[rows],
        logits={candidate: read_logits(path, rows) for candidate, path in files.items()},
        views=view(focus(summary), shown[order], dataset, config),
        view_groups=groups[order],
        drawn=drawn_words(len(rows), len(parts), seed),
    )


def beside_the_original(summary: dict[str, Any], dataset: Dataset, config: Config) -> str:
    """Return HTML that compares the original and the method that the page is about on the same rows.

    The outputs are those that the evaluation kept.
    """
    files, name = outputs(summary, config), focus(summary)

    def answers_of(candidate: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda rows: read_logits(files[candidate], rows).argmax(1).astype(np.int64)

    split = Split(SPLIT)
    parts = on_same_rows(
        answers_of(ORIGINAL), answers_of(name), dataset.with_labels(split.labels(dataset.labels())), split
    )
    retrained = {part: answers_of("retrained")(p.rows) for part, p in parts.items()} if "retrained" in files else {}
    blocks = (summary["references"]["original"], summary["methods"][name], summary["references"]["retrained"])
    return section(ComparedModels(ORIGINAL, name, blocks, parts, retrained, dataset.class_names), dataset)


def write_figures(drawn: Sequence[Section], request: dict[str, Any]) -> None:
    """Write every panel of the page to `reports/figures` as an SVG file, numbered by section."""
    with staged_dir(FIGURES) as staging:
        for i, section in enumerate(drawn, start=1):
            for panel in (*section.panels, *section.more):
                name = re.sub(r"[^a-z0-9]+", "-", f"{section.title} {panel.title}".lower()).strip("-")
                write_text(staging / f"{i:02}-{name[:100]}.svg", worded(standalone(panel), request))
        write_manifest(staging, "expunge.stages.report")


def made() -> str:
    """Return when and from which commit the report was made, and where its runs are."""
    git = git_state()
    changed = ", with changes that are not committed" if git.get("git_dirty") == "true" else ""
    commit = f" from commit {git['git_commit'][:12]}{changed}" if git else ""
    return f"Made on {datetime.now(UTC):%Y-%m-%d}{commit}. Its runs are in MLflow (expunge ui)."


def main() -> None:
    """Run the stage `report`."""
    config, summary, dataset = load_config(), read_json(SUMMARY), Dataset(DATASET, verify=False)
    found = summary["methods"]  # write_json sorted the keys; all tables use the order of params
    summary["methods"] = {name: found[name] for name in config.methods if name in found}
    evidence = gather(summary, dataset, config)
    data = TrainingData(
        config.data.source,
        dataset.digest,
        dataset.manifest["rows_train"],
        dataset.manifest["rows_test"],
        "text" if dataset.encoding == TEXT else "image",
    )
    drawn = sections(summary, evidence)
    asked = summary["request"]
    checks = [read_json(file) for file in sorted(VALIDATION.glob("*.json"))]
    page = render(summary, evidence, drawn, beside_the_original(summary, dataset, config), checks, made())
    write_text(REPORTS / "report.html", worded(page, asked))
    write_figures(drawn, asked)
    write_text(REPORTS / "results.csv", results_csv(summary))
    write_text(REPORTS / "model_card.md", worded(model_card(summary, data, dataset.class_names), asked))
    log_message(f"report: {REPORTS / 'report.html'}")


if __name__ == "__main__":
    run(main)
