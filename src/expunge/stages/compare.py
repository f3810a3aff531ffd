"""compare: write the verdicts, the summary, the results table and the plots."""

from collections.abc import Mapping
from typing import Any

from expunge.config import Config, load_config
from expunge.data.split import REQUEST
from expunge.report.dvc_files import metrics, outcome, plots
from expunge.report.request_words import worded
from expunge.report.summary import build_summary
from expunge.report.tables import headline, markdown
from expunge.stages import run
from expunge.system.errors import QualityError
from expunge.system.files import read_json, read_manifest, write_json, write_text, write_texts
from expunge.system.paths import (
    COST,
    DVC_METRICS,
    DVC_PLOTS,
    METRICS,
    MODELS,
    ORIGINAL,
    OUTCOME,
    REPORTS,
    SHADOW_REPORT,
    SPLIT,
    SUMMARY,
)
from expunge.system.progress import log_message


def retrain_seconds(config: Config) -> float | None:
    """Return the mean seconds of the retrainings; None without references."""
    if config.reference != "retrain":
        return None
    seconds = [read_json(COST / f"retrain-{seed}.json")["train_s"] for seed in config.retrain.seeds]
    return float(sum(seconds) / len(seconds))


def cost_of(name: str, retrain_s: float | None) -> dict[str, Any]:
    """Return the seconds and memory of fit and evaluation.

    With `retrain_s`, also return how many times faster than retraining the fit was.
    """
    cost = {**read_json(COST / f"evaluate-{name}.json"), **read_json(COST / f"fit-{name}.json")}
    for key in ("usage", "span"):  # samples and times, which the summary leaves out
        cost.pop(key, None)
    if retrain_s is not None:
        cost["retrain_s"] = retrain_s
        cost["speedup_vs_retrain"] = retrain_s / max(cost["fit_s"], 1e-4)
    return cost


def clean_references(config: Config) -> bool:
    """Whether the backbones of the retrained models never saw the forgotten rows.

    This holds if they were trained anew, or taken from a model that is declared (`model.saw_forget_data`) never to have
    seen them. Otherwise only the head of a reference was trained without the forgotten rows.
    """
    return config.model.training == "full" or not config.model.saw_forget_data


def apart(evaluations: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the blocks of the methods that gave a result, and the reasons of those that refused.

    Raises QualityError if all methods refused. That happens only without the control logit-mask, and leaves nothing to
    put into the table.
    """
    refused = {name: block["refused"] for name, block in evaluations.items() if "refused" in block}
    judged = {name: block for name, block in evaluations.items() if name not in refused}
    if not judged:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise QualityError(
            f"params.yaml: methods: all methods were refused ({reasons}); correct this and run again, or add "
            "logit-mask to show the refusals in the report"
        )
    return judged, refused


def main() -> None:
    """Run the stage `compare`."""
    config = load_config()
    described = read_json(MODELS / ORIGINAL / "model.json")
    card = described["card"]
    model = {
        "name": card["name"],
        "feature_dim": card["feature_dim"],
        "saw_forget_data": card["saw_forget_data"] or card["training"] == "above",
        "public_up_to": card["above"]["recipe"]["cut"] if card.get("above") else None,
        "digest": "sha256:" + read_manifest(MODELS / ORIGINAL)["files"]["model.safetensors"]["sha256"],
    }
    evaluations = {name: read_json(METRICS / f"{name}.json") for name in config.methods}
    judged, refused = apart(evaluations)
    retrain_s = retrain_seconds(config)
    summary = build_summary(
        read_json(SPLIT / REQUEST),
        model,
        read_json(METRICS / "references.json"),
        judged,
        {name: cost_of(name, retrain_s) for name in judged},
        clean_references(config),
        read_json(SHADOW_REPORT),
    )
    summary["refused"] = refused
    write_json(SUMMARY, summary)
    write_json(OUTCOME, outcome(summary))
    write_text(REPORTS / "results.md", worded(markdown(summary), summary["request"]))
    write_texts(DVC_METRICS, metrics(summary))
    write_texts(DVC_PLOTS, plots(summary))
    log_message(worded(headline(summary), summary["request"]).replace("**", ""))


if __name__ == "__main__":
    run(main)
