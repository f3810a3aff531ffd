"""reports/model_card.md: the selected classifier in the model-index format of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from expunge.report import wording
from expunge.report.metrics import METRICS, measured
from expunge.report.tables import candidates, columns, markdown_table, takes, verdict_line

# The metric's type in the vocabulary of the Hub, the split, and the metric.
INDEXED = (
    ("accuracy", "test", METRICS["accuracy.test_retain"]),
    ("accuracy", "test", METRICS["accuracy.test_forget"]),
    ("accuracy", "train", METRICS["accuracy.forget"]),
    ("kl_divergence", "train", METRICS["divergence.forget.kl"]),
    ("roc_auc", "train", METRICS["membership.loss_auc"]),
)


@dataclass(frozen=True)
class TrainingData:
    """Facts about the dataset for a card. `digest` identifies its content. `kind`: `image` or `text`."""

    name: str
    digest: str
    rows_train: int
    rows_test: int
    kind: str = "image"


def model_card(summary: Mapping[str, Any], data: TrainingData, classes: Sequence[str]) -> str:
    """Return the card as YAML front matter with a model-index, followed by Markdown.

    Without a selected method the card says so and lists no results.
    """
    method = summary["selected"]
    front: dict[str, Any] = {
        "tags": [f"{data.kind}-classification", "machine-unlearning", "expunge"],
        "pipeline_tag": f"{data.kind}-classification",
    }
    if method is not None:
        front["model-index"] = [_index(summary, method, data)]
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=100)
    parts = [f"---\n{text}---", *_body(summary, method, data, classes)]
    return "\n\n".join(parts) + "\n"


def _index(summary: Mapping[str, Any], method: str, data: TrainingData) -> dict[str, Any]:
    block = summary["methods"][method]
    results = []
    for split in ("test", "train"):
        metrics = [
            {"type": kind, "name": metric.name, "value": round(float(value), 6)}
            for kind, where, metric in INDEXED
            if where == split and (value := metric.value(block)) is not None
        ]
        if metrics:
            dataset = {"type": data.name, "name": data.name, "split": split, "revision": data.digest}
            task = {"type": f"{data.kind}-classification", "name": f"{data.kind.capitalize()} classification"}
            results.append({"task": task, "dataset": dataset, "metrics": metrics})
    return {"name": f"{summary['model']['name']}-{method}", "results": results}


def _body(summary: Mapping[str, Any], method: str | None, data: TrainingData, classes: Sequence[str]) -> list[str]:
    model = summary["model"]
    asked = wording.escaped(wording.request_words(summary, classes))
    name = wording.focus(summary)
    verdict = summary["methods"][name]["verdict"]
    if method is None:
        title = f"# {model['name']}: no model to ship"
        use = f"Nothing was shown of any method, so this run has no model to use. The nearest was {name}."
    else:
        title = f"# {model['name']} after {method}"
        named = ", ".join(wording.escaped(c) for c in classes)
        use = (
            f"{data.kind.capitalize()} classification over {len(classes)} classes ({named}), where the rows named "
            "below must no longer shape the answers. Judge it by what was shown; do not use it as proof that data was "
            "deleted."
        )
    claim = [
        f"**{verdict_line(verdict)}.** {wording.claim(verdict)}",
        takes(summary).strip(),
        wording.rows_it_takes(verdict),
    ]
    gates = [
        f"- {g['gate']} ({g['claim']}): {g['value']}, retrained {g['target']}, share of the excess {g['share']}: "
        f"{g['outcome']}"
        for g in wording.gate_rows(verdict)
    ]
    saw = "saw" if model["saw_forget_data"] else "is said not to have seen"
    return [
        title,
        f"## Intended use\n\n{use}",
        f"## What was forgotten\n\n{asked[0].upper()}{asked[1:]}.\n\nRequest `{summary['request']['digest']}`.",
        "## Verdict\n\n" + "\n\n".join(part for part in claim if part),
        "## Gates\n\n" + ("\n".join(gates) or "None."),
        "## What is not claimed\n\n" + "\n".join(f"- {line}" for line in wording.not_claimed(summary)),
        f"## Metrics\n\n{_table(summary)}\n\nMore in `summary.json`, `results.csv` and `report.html`.",
        f"## Training data\n\n{data.name}: {data.rows_train:,} training and {data.rows_test:,} test rows, "
        f"`{data.digest}`. The original's backbone {saw} the forgotten rows. Original weights `{model['digest']}`.",
    ]


def _table(summary: Mapping[str, Any]) -> str:
    """Return a table of the original, the retrained model and the method of the card, one metric per line."""
    shown = [(n, b) for n, b in candidates(summary) if n in ("original", "retrained", wording.focus(summary))]
    metrics = measured(columns(summary), [block for _, block in shown])
    head = ["metric", *(name for name, _ in shown)]
    return markdown_table(head, ([metric.name, *(metric.text(block) for _, block in shown)] for metric in metrics))
