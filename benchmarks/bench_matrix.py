"""How the cost of a pipeline grows with its matrix of methods, on digits with one retrained model.

python -m benchmarks.bench_matrix           (1 and 10 methods)
python -m benchmarks.bench_matrix --page    (1 to 200 methods, and writes the table and the figure of docs/scale.md)

Every size is a fresh workspace, and every method is LOFT with settings of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.bench_orchestration import ROOT, call, dvc_repro, one_thread, timed
from benchmarks.page import DOCS, plot, write_section
from expunge.report.tables import markdown_table
from expunge.workspaces.workspace import lay_out

METHODS = (1, 10, 41, 100, 200)  # 41 of them make a hundred stages
SUMMARISING = ("compare", "report", "register")
REPEATS = 3  # of `dvc repro` with nothing to do
SECONDS = {
    "run": "run_s",
    "run, of which DVC computes": "dvc_cpu_s",
    "nothing to do": "nothing_to_do_s",
    "nothing to do, of which DVC computes": "nothing_to_do_cpu_s",
    **{name: f"{name}_s" for name in SUMMARISING},
}


def params(methods: int) -> str:
    """Return the params of the demo with `methods` entries beside the control."""
    whole = yaml.safe_load((ROOT / "params.demo.yaml").read_text(encoding="utf-8"))
    names = [f"loft-{i:03d}" for i in range(methods)]
    for i, name in enumerate(names):
        whole["fit"][name] = {"method": "loft", "choose": {"rank": [16 + i % 48]}, "solver": "exact"}
    whole["methods"], whole["retrain"]["seeds"] = ["logit-mask", *names], [1]
    return yaml.safe_dump(whole, sort_keys=False)


def measure(workspace: Path, methods: int) -> dict[str, float]:
    """Seconds of a run from nothing, of the stages that read every method, and of `dvc repro` with nothing to do.

    Stages fork from a process of their own, so the processor seconds of the run are those of DVC.
    """
    environment = one_thread()
    lay_out(ROOT, workspace, params(methods))
    whole = timed(dvc_repro, workspace, environment)
    lock = (workspace / "dvc.lock").read_text(encoding="utf-8")
    idle = [timed(dvc_repro, workspace, environment) for _ in range(REPEATS)]
    found = {
        "methods": methods,
        "stages": lock.count("    cmd: "),
        "lock_lines": lock.count("\n"),
        "run_s": whole["wall_s"],
        "dvc_cpu_s": whole["cpu_s"],
        "nothing_to_do_s": statistics.median(i["wall_s"] for i in idle),
        "nothing_to_do_cpu_s": statistics.median(i["cpu_s"] for i in idle),
    }
    for name in SUMMARISING:
        command = [sys.executable, "-m", f"expunge.stages.{name}"]
        alone = {**environment, "EXPUNGE_WARM": "0"}
        found[f"{name}_s"] = timed(partial(call, command), workspace, alone)["cpu_s"]
    return found


def cells(found: dict[str, float]) -> list[str]:
    counts = [f"{found[key]:,.0f}" for key in ("methods", "stages", "lock_lines")]
    return counts + [f"{found[key]:.1f}" for key in SECONDS.values()]


def run(sizes: Sequence[int] = METHODS[:2]) -> dict[str, Any]:
    """Measure matrices of these sizes, one after the other."""
    results = []
    table = Table("methods", "stages", "lines of dvc.lock", *SECONDS, title="Seconds of a matrix of methods")
    for methods in sizes:
        with tempfile.TemporaryDirectory() as tmp:
            results.append(measure(Path(tmp), methods))
        table.add_row(*cells(results[-1]))
    Console().print(table)
    return {"sizes": results}


def write_page(sizes: Sequence[dict[str, float]]) -> None:
    """Write the table and the figure of docs/scale.md."""
    head = ["methods", "stages", "lines of dvc.lock", *SECONDS]
    write_section(DOCS / "scale.md", "matrix", [markdown_table(head, [cells(found) for found in sizes])])
    plot(sizes, "stages", SECONDS, DOCS / "images" / "matrix.png")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_matrix", description=__doc__)
    parser.add_argument("--page", action="store_true", help="all sizes, and write docs/scale.md")
    arguments = parser.parse_args()
    results = run(METHODS if arguments.page else METHODS[:2])
    if arguments.page:
        write_page(results["sizes"])


if __name__ == "__main__":
    main()
