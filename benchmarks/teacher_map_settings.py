"""Settings of `teacher-map`, chosen on the classes that docs/relearn.md's tables do not forget.

python -m benchmarks.teacher_map_settings

Run it where `make results` ran. A model is retrained without each of the seven classes first, minutes each. The choice,
among settings that take less than 5 seconds: the smallest mean KL to those models; of settings as near to the smallest
as two runs of one are, that with the nearest probe.
"""

from __future__ import annotations

import sys
import time
from itertools import product

import numpy as np

from benchmarks.relearn_table import Case, Line
from expunge.config import load_config
from expunge.methods.fitting import fit, warm_up
from expunge.methods.table import METHODS

ORIGINAL, CLASSES, RETRAINED = 1, (1, 2, 3, 4, 6, 7, 8), 1
TEACHERS = ((0.2, 64), (0.2, 128))  # passes, batch size; 0.3 passes take 5 seconds and more
SHARES, WEIGHTS = (0.25, 0.5, 0.75, 1.0), (1.0, 3.0, 10.0)
MOST_SECONDS, NEAR_KL = 5.0, 0.005
PROBE = "probe on z' %"
COLUMNS = ("kl", "js", "agreement", PROBE, "member %", "retained test %", "seconds")
Setting = tuple[float, int, float, float]


def lines(case: Case) -> dict[Setting, Line]:
    """A line for each setting. A teacher is made once and counted in each."""
    found = {}
    table = {name: dict(settings or {}) for name, settings in load_config().fit.items()}
    warm_up("teacher-map", table, case.request.classifier.card.training)
    for passes, batch_size in TEACHERS:
        after = {**table["teacher-map"]["after"], "epochs": passes, "batch_size": batch_size}
        table["teacher"] = {**after, "max_drop": 1.0}  # a teacher is not shipped, so the guard does not judge it
        start = time.perf_counter()
        teacher = fit("teacher", case.request, table)
        teacher_s = time.perf_counter() - start
        for share, weight in product(SHARES, WEIGHTS):
            settings = {"teacher_share": share, "feature_weight": weight}
            start = time.perf_counter()
            unlearned = METHODS["teacher-map"].fit("teacher-map", case.request, settings, teacher)
            seconds = teacher_s + time.perf_counter() - start
            found[passes, batch_size, share, weight] = case.measured(unlearned, seconds)
    return found


def show(cells: list[str], line: Line) -> None:
    print(f"| {' | '.join(cells)} | " + " | ".join(f"{line[key]:.3f}" for key in COLUMNS) + " |", flush=True)


def mean(several: list[Line]) -> Line:
    """Of seconds the median: other work on the machine costs single fits a lot."""
    middle = {key: np.median if key == "seconds" else np.mean for key in COLUMNS}
    return {key: float(middle[key]([line[key] for line in several])) for key in COLUMNS}


def main() -> None:
    every, retrained = [], []
    for forgotten in CLASSES:
        case = Case(ORIGINAL, forgotten, (RETRAINED,))
        retrained.append(case.line(case.references[0])[PROBE])
        every.append(lines(case))
        best = min(every[-1].items(), key=lambda item: item[1]["kl"])
        print(f"class {forgotten}: {best}", file=sys.stderr, flush=True)
    means = {setting: mean([found[setting] for found in every]) for setting in every[0]}
    print("| passes | batch | teacher_share | feature_weight | " + " | ".join(COLUMNS) + " |\n|" + "---|" * 11)
    for setting, line in sorted(means.items(), key=lambda item: item[1]["kl"]):
        show([f"{value:g}" for value in setting], line)
    quick = {setting: line for setting, line in means.items() if line["seconds"] <= MOST_SECONDS}
    least = min(line["kl"] for line in quick.values())
    near = {setting: line for setting, line in quick.items() if line["kl"] <= least + NEAR_KL}
    print("chosen:", min(near, key=lambda setting: abs(near[setting][PROBE] - float(np.mean(retrained)))))


if __name__ == "__main__":
    main()
