"""`make bench`: run every benchmark, print tables and changes since the last kept run, write reports/bench.json.

`--keep` appends the figures to history.jsonl, so that later runs on this kind of machine are compared with them.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path

import benchmarks
from benchmarks.history import HISTORY, keep, print_changes
from expunge.system.files import write_json

OUT = Path("reports/bench.json")


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name.startswith("bench_"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", choices=[[], *names()], help="these alone; all when left out")
    parser.add_argument("--keep", action="store_true", help=f"append the figures to {HISTORY.name}, by commit")
    arguments = parser.parse_args()
    chosen = arguments.only or names()
    results = {}
    for name in chosen:
        results[name.removeprefix("bench_")] = importlib.import_module(f"benchmarks.{name}").run()
        write_json(OUT, results)
    print(f"written to {OUT}")
    print_changes(results)
    if arguments.keep:
        keep(results)


if __name__ == "__main__":
    main()
