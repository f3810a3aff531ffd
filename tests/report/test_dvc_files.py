"""Test the metrics and plots for DVC: the stage `compare` writes the files that dvc.yaml declares."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path

import yaml

from expunge.config.rules import TAKEN
from expunge.report.dvc_files import METRICS, PLOTS, metrics, outcome, plots
from expunge.report.metrics import lookup
from expunge.report.tables import candidates
from expunge.system.paths import DVC_METRICS, DVC_PLOTS, OUTCOME

ROOT = Path(__file__).parents[2]
COMPARE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["compare"]


def test_dvc_yaml_has_one_plot_per_metric_under_its_name():
    declared = [next(iter(entry.items())) for entry in COMPARE["plots"]]
    wanted = {f"reports/plots/{m.path}.csv": m.name[0].upper() + m.name[1:] for m in PLOTS}
    assert {name: options["title"] for name, options in declared} == wanted
    for name, options in declared:
        assert (options["x"], options["y"], options["template"]) == ("value", "model", "bar_horizontal_sorted"), name


def test_git_has_metrics_and_plots_instead_of_the_cache():
    metric_files, plot_files = ([next(iter(e.items())) for e in COMPARE[kind]] for kind in ("metrics", "plots"))
    assert [name for name, _ in metric_files] == [OUTCOME.as_posix(), DVC_METRICS.as_posix()]
    assert {Path(name).parent for name, _ in plot_files} == {DVC_PLOTS}
    assert all(options["cache"] is False for _, options in [*metric_files, *plot_files])
    names = [str(OUTCOME), str(DVC_METRICS / "loft.json"), *(name for name, _ in plot_files), "reports/summary.json"]
    ignored = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, text=True, capture_output=True).stdout
    assert ignored.split() == ["reports/summary.json"]


def test_a_plot_holds_one_metric_of_every_model(run):
    summary, _ = run()
    written = plots(summary)
    assert list(written) == [f"{metric.path}.csv" for metric in PLOTS]
    for metric in PLOTS:
        rows = list(csv.DictReader(io.StringIO(written[f"{metric.path}.csv"])))
        known = {name: value for name, b in candidates(summary) if (value := metric.value(b)) is not None}
        assert {row["model"]: float(row["value"]) for row in rows} == {n: float(f"{v:.6g}") for n, v in known.items()}
        assert known, metric.path
    without, _ = run(seeds=0)
    assert plots(without)["divergence.forget.kl.csv"] == "model,value\n"


def test_every_model_has_a_file_of_few_metrics(run):
    summary, _ = run()
    written = {name: json.loads(text) for name, text in metrics(summary).items()}
    models = dict(candidates(summary))
    assert set(written) == {f"{name}.json" for name in models}
    assert set(models) - set(summary["methods"]) <= set(TAKEN)  # No method may have these names.
    for name, block in models.items():
        assert {k: v for k, v in written[f"{name}.json"].items() if k != "shown"} == {
            short: lookup(block, path) for short, path in METRICS.items()
        }
    assert written["loft.json"]["shown"] == "outputs" and written["logit-mask.json"]["shown"] == "none"
    assert outcome(summary) == {"selected": "loft"}


def test_what_a_run_does_not_have_is_left_out(run):
    without, _ = run(whole=False, seeds=0)
    assert json.loads(metrics(without)["keep.json"]).keys() == {"test_retain", "shown"}
    assert "retrained.json" not in metrics(without) and outcome(without) == {"selected": "nothing"}
