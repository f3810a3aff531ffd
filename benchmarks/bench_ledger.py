"""What a request costs when the ledger and the request store hold many that were completed before it.

python -m benchmarks.bench_ledger           (after 1 and 10 requests)
python -m benchmarks.bench_ledger --page    (after 1 to 1,000, and writes the table and the figure of docs/scale.md)

Each size is a fresh workspace in a process of its own. One person is taken in, verified and deleted there with the code
of the package: everything but the stages of the pipeline, which do not read the ledger.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.page import DOCS, plot, write_section
from expunge.report.tables import markdown_table
from tests.erasure import load

COMPLETED = (1, 10, 100, 1000)
# What an operator does, by its name in tests/erasure/load.py.
SECONDS = {
    "intake to batch": "to a batch",
    "write to the ledger": "publish",
    "request list --all": "request list --all",
    "request show": "request show",
    "ledger verify": "ledger verify",
    "sweep to certificate": load.FINISH,
}


def measure(completed: int) -> dict[str, float]:
    """Processor seconds of every step of one request after `completed` others."""
    with tempfile.TemporaryDirectory() as tmp:
        carry_out(Path(tmp) / "first", 1)  # imports
        return {"completed": completed, **carry_out(Path(tmp) / "measured", completed)}


def carry_out(root: Path, completed: int) -> dict[str, float]:
    store, url = load.workspace(root, completed, waiting=1)
    found = {}
    for name, work in load.steps(root, store, url, waiting=1).items():
        began = time.process_time()
        work()
        found[name] = time.process_time() - began
    store.engine.dispose()
    return found


def run(sizes: Sequence[int] = COMPLETED[:2]) -> dict[str, Any]:
    """Measure one request after each number of completed ones."""
    results = [in_own_process(completed) for completed in sizes]
    table = Table("completed before", *SECONDS, title="Processor seconds of one request")
    for found in results:
        table.add_row(*cells(found))
    Console().print(table)
    return {"sizes": results}


def in_own_process(completed: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_ledger", "--case", str(completed)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def cells(found: dict[str, float]) -> list[str]:
    return [f"{found['completed']:,}", *(f"{found[key]:.3f}" for key in SECONDS.values())]


def write_page(sizes: Sequence[dict[str, float]]) -> None:
    """Write the table and the figure of docs/scale.md."""
    table = markdown_table(["completed before", *SECONDS], [cells(found) for found in sizes])
    write_section(DOCS / "scale.md", "ledger", [table])
    plot(sizes, "completed", SECONDS, DOCS / "images" / "ledger.png")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_ledger", description=__doc__)
    parser.add_argument("--page", action="store_true", help="all sizes, and write docs/scale.md")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case)))
        return
    results = run(COMPLETED if arguments.page else COMPLETED[:2])
    if arguments.page:
        write_page(results["sizes"])


if __name__ == "__main__":
    main()
