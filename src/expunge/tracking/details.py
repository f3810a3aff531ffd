"""Details of runs besides the summary, read from the files of the stages: learning curves, resource usage, costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from expunge.methods.unlearned import INFO
from expunge.report.metrics import lookup
from expunge.system.errors import ManifestError
from expunge.system.files import read_json
from expunge.system.monitor import Series
from expunge.system.paths import COST, ORIGINAL, UNLEARNED
from expunge.tracking.run_times import Span
from expunge.tracking.runs import Curve, Detail, seed_run

# Keys of a training history: those that serve as the step of a curve, and those that are not drawn as curves.
STEPS = ("epoch", "pass", "step")
NOT_LEARNED = {*STEPS, "seconds", "images_per_s", "bf16"}
# Values of a model compared with itself. A single retrained model has no other values for these metrics, and MLflow's
# charts would omit it.
ITSELF = {
    "gap/mean": 0.0,
    "gap/tow": 1.0,
    "divergence/forget_kl": 0.0,
    "divergence/forget_js": 0.0,
    "divergence/forget_agreement": 1.0,
    "divergence/forget_activation_distance": 0.0,
    "divergence/test_kl": 0.0,
    "divergence/test_js": 0.0,
    "divergence/test_agreement": 1.0,
    "divergence/test_activation_distance": 0.0,
    "representation/cka_retrained": 1.0,
}


def details_of(summary: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Detail]:
    """Return the details of each run besides its block of the summary, by run name.

    `seeds`: seeds of the retrained models; empty if nothing was retrained.
    """
    out = {name: _of_method(name, _taken(block)) for name, block in summary["methods"].items()}
    training = {seed: _cost(f"retrain-{seed}") for seed in seeds}
    retrain_s = fmean(cost["train_s"] for cost in training.values()) if training else None
    evaluate_s = _cost("evaluate-references").get("evaluate_s", 0.0) / (1 + len(seeds))
    out[ORIGINAL] = _of_training(_cost("train"), retrain_s, evaluate_s)
    for seed, cost in training.items():
        one = _of_training(cost, retrain_s, evaluate_s)
        if len(training) > 1:
            out[seed_run(seed)] = one
        else:
            alone = {"compared_with": "itself, by definition"}
            out["retrained"] = replace(one, metrics={**one.metrics, **ITSELF}, tags=alone)
    if len(training) > 1:
        each = [out[seed_run(seed)].metrics for seed in seeds]
        mean = {key: fmean(m[key] for m in each) for key in each[0] if all(key in m for m in each)}
        spans = [span for seed in seeds if (span := out[seed_run(seed)].span) is not None]
        out["retrained"] = Detail(mean, tags={"compared_with": "the other seeds"}, span=_around(spans))
    return out


def _taken(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a method ran with.

    They are those of params.yaml, with `choose` replaced by the settings chosen on held-out rows.
    """
    given = {key: value for key, value in block["settings"]["params"].items() if key != "choose"}
    return {**given, **((block["settings"]["chosen"] or {}).get("taken") or {})}


def usage_of(stages: Iterable[str]) -> dict[str, Series]:
    """Return the resource usage of several stages, merged by metric and ordered by time."""
    joined: dict[str, list[tuple[float, float]]] = {}
    for stage in stages:
        for name, series in _cost(stage).get("usage", {}).items():
            joined.setdefault(name, []).extend(zip(series["time"], series["value"], strict=True))
    return {
        name: {"time": [at for at, _ in samples], "value": [value for _, value in samples]}
        for name, samples in ((name, sorted(samples)) for name, samples in joined.items())
    }


def shared_stages() -> list[str]:
    """Return the stages that belong to no single child run, such as extraction and shadow models."""
    return [p.stem for p in sorted(COST.glob("*.json")) if p.stem.startswith(("extract-", "shadow"))]


def _of_method(name: str, settings: Mapping[str, Any]) -> Detail:
    info: Path = UNLEARNED / name / INFO
    history = read_json(info).get("history", []) if info.is_file() else []
    usage = usage_of([f"fit-{name}", f"evaluate-{name}"])
    return Detail(params=settings, curves=_curves(history), usage=usage, span=_span(_cost(f"fit-{name}")))


def _of_training(cost: Mapping[str, Any], retrain_s: float | None, evaluate_s: float) -> Detail:
    metrics = {"cost/fit_s": cost["train_s"], "cost/evaluate_s": evaluate_s}
    if (peak := lookup(cost, "peak_rss_mb")) is not None:
        metrics["cost/peak_rss_mb"] = peak
    if retrain_s is not None:
        metrics |= {"cost/retrain_s": retrain_s, "cost/speedup_vs_retrain": retrain_s / max(cost["train_s"], 1e-4)}
    return Detail(metrics, curves=_curves(cost["epochs"]), usage=cost.get("usage", {}), span=_span(cost))


def _span(cost: Mapping[str, Any]) -> Span | None:
    """Return start and end of the stage that wrote `cost`; None if an earlier version wrote it."""
    span = cost.get("span")
    return None if span is None else (float(span[0]), float(span[1]))


def _around(spans: Sequence[Span]) -> Span | None:
    """Return the time from the first start to the last end."""
    return (min(start for start, _ in spans), max(end for _, end in spans)) if spans else None


def _curves(history: Sequence[Mapping[str, float]]) -> dict[str, Curve]:
    """Return the curves of a training history, such as `training/loss`, by epoch, pass or step."""
    out: dict[str, list[tuple[int, float]]] = {}
    for i, entry in enumerate(history, start=1):
        step = next((int(entry[key]) for key in STEPS if key in entry), i)
        for key, value in entry.items():
            if key not in NOT_LEARNED:
                out.setdefault(f"training/{key}", []).append((step, float(value)))
    return dict(out)


def _cost(stage: str) -> dict[str, Any]:
    try:
        cost: dict[str, Any] = read_json(COST / f"{stage}.json")
    except ManifestError:  # params.yaml leaves this stage out
        return {"train_s": 0.0, "epochs": []}
    return {"train_s": 0.0, "epochs": [], **cost}
