"""What the warm process saves: one request through `dvc repro` without and with it, on digits.

python -m benchmarks.bench_warm
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.bench_orchestration import ROOT, call, one_thread
from expunge.system.warm import SWITCH
from expunge.workspaces.workspace import lay_out

METHODS = ["logit-mask", "loft", "ru-linear"]
REQUESTS = 3  # of each kind; the median counts


def run() -> dict[str, Any]:
    """Return the seconds of requests that follow each other, without and with the warm process, and their ratio."""
    environment = one_thread()
    warm, cold = {n: v for n, v in environment.items() if n != SWITCH}, {**environment, SWITCH: "0"}
    with tempfile.TemporaryDirectory() as tmp:
        workspace = Path(tmp) / "workspace"
        lay_out(ROOT, workspace, (ROOT / "params.demo.yaml").read_text(encoding="utf-8"))
        seconds_of_request(workspace, 0, cold)  # trains the model
        seconds_of_request(workspace, 1, warm)  # starts the warm process
        seconds: dict[str, list[float]] = {"cold": [], "warm": []}
        for label in range(2, 2 + 2 * REQUESTS):  # in turns, so that other work on the machine slows both
            name, env = ("cold", cold) if label % 2 else ("warm", warm)
            seconds[name].append(seconds_of_request(workspace, label, env))
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    table = Table("", "seconds", title="a request for a class of digits, no reference")
    table.add_row("every stage imports its libraries", f"{medians['cold']:.1f}")
    table.add_row("stages fork from a warm process", f"{medians['warm']:.1f}")
    table.add_row("ratio", f"{medians['warm'] / medians['cold']:.2f}", style="bold")
    Console().print(table)
    return {"seconds": seconds, "ratio": medians["warm"] / medians["cold"]}


def seconds_of_request(workspace: Path, label: int, environment: dict[str, str]) -> float:
    """Change the request in params.yaml to the class `label`, and return the seconds of `dvc repro`."""
    file = workspace / "params.yaml"
    params = yaml.safe_load(file.read_text(encoding="utf-8"))
    params["split"]["classes"], params["methods"], params["reference"] = [label], METHODS, "skip"
    file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    start = time.perf_counter()
    call([sys.executable, "-m", "dvc", "repro"], workspace, environment)
    return time.perf_counter() - start


if __name__ == "__main__":
    run()
