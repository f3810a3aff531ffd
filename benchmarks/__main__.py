"""`make bench`: run every benchmark, print its table, write reports/bench.json."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path

import benchmarks
from expunge.system.files import write_json

OUT = Path("reports/bench.json")


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name.startswith("bench_"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", choices=[[], *names()], help="these alone; all when left out")
    chosen = parser.parse_args().only or names()
    results = {}
    for name in chosen:
        results[name.removeprefix("bench_")] = importlib.import_module(f"benchmarks.{name}").run()
        write_json(OUT, results)
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
