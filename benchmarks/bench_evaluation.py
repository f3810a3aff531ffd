"""Where the time goes when one method is evaluated: per family of metrics, and the functions that take longest.

python -m benchmarks.bench_evaluation
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bench_shadow_heads import CLASSES, features
from expunge.evaluation import measuring, membership, representation, suite
from expunge.evaluation.measuring import Measuring, Outputs
from expunge.evaluation.rows import choose_rows
from expunge.evaluation.shadow_heads import train_heads
from expunge.evaluation.suite import evaluate

FORGOTTEN = 5
FAMILIES = {
    "measure": "values per row: accuracy, loss, MIA-LR, linear probes",
    "_divergence": "divergences",
    "_membership": "other attacks",
    "_representation": "kNN and CKA",
    "_relearn": "relearning",
    "_gap": "gaps",
    "_per_class": "per class",
    "_intervals": "intervals",
}
FUNCTIONS: dict[ModuleType, tuple[str, ...]] = {
    membership: ("mia_lr_rows", "mia_svc", "rmia_scores", "class_geometry_rows", "loss_auc", "auc"),
    representation: ("linear_probe_rows", "knn_rows", "linear_cka", "relearned_rows", "prototype_samples"),
    suite: ("row_difference", "auc_difference"),
}


def outputs(rows: int, dim: int) -> tuple[list[Outputs], np.ndarray, np.ndarray]:
    """Original, retrained and unlearned outputs of linear heads on Gaussian classes; labels; parts, 6/7 training."""
    z, labels = features(rows, dim)
    train, forgotten = np.arange(rows) < rows * 6 // 7, labels == FORGOTTEN
    parts = np.where(train, np.where(forgotten, "forget", "retain"), np.where(forgotten, "test_forget", "test_retain"))

    def head(of: np.ndarray) -> Any:
        found = train_heads(z[of], labels[of], 2, saw_forget_data=False, seed=0, classes=CLASSES)
        return z @ found.weight[0].T + found.bias[0]

    original, retrained = head(train), head(train & ~forgotten)
    masked = original.copy()
    masked[:, FORGOTTEN] = -1e4
    direction = z[train & forgotten].mean(axis=0) - z[train & ~forgotten].mean(axis=0)
    direction /= np.linalg.norm(direction)
    projected = z - np.outer(z @ direction, direction).astype(np.float32)
    return [Outputs(original, z), Outputs(retrained, z), Outputs(masked, z, projected)], labels, parts


@contextmanager
def timed(module: ModuleType, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add up the time spent in `module.name` while the context lasts."""
    original: Callable[..., Any] = getattr(module, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - start

    setattr(module, name, wrapped)
    try:
        yield
    finally:
        setattr(module, name, original)


def once(
    models: list[Outputs], labels: np.ndarray, parts: np.ndarray, modules: dict[ModuleType, tuple[str, ...]]
) -> Any:
    """(total seconds, seconds by name) of one evaluation, with the original and the retrained model measured before."""
    seconds: dict[str, float] = defaultdict(float)
    original, retrained, candidate = models
    known = Measuring(choose_rows(labels, parts, original.z, 0, None))
    for model in (original, retrained):
        known.of(model)
    with ExitStack() as stack:
        for module, names in modules.items():
            for name in names:
                stack.enter_context(timed(module, name, seconds))
        start = time.perf_counter()
        evaluate(candidate, original, [retrained], labels, parts, seed=0, measuring=known)
        return time.perf_counter() - start, dict(seconds)


def run(small: bool = False) -> dict[str, Any]:
    """Target: one method with cached features in 1 s; `small` takes a tenth of the rows."""
    rows, dim = (7_000, 32) if small else (70_000, 128)
    once(*outputs(2_000, 8), {})  # imports are not what is measured
    models, labels, parts = outputs(rows, dim)
    of_suite = tuple(name for name in FAMILIES if name != "measure")
    total, families = once(models, labels, parts, {suite: of_suite, measuring: ("measure",)})
    _, functions = once(models, labels, parts, FUNCTIONS)
    title = f"Evaluation of one method, {rows:,} x {dim}: {total:.1f} s"
    by_family = Table("family", "s", "share", title=title)
    for name, seconds in sorted(families.items(), key=lambda item: -item[1]):
        by_family.add_row(FAMILIES[name], f"{seconds:.2f}", f"{seconds / total:.0%}")
    by_function = Table("function", "s", title="The functions that take longest")
    for name, seconds in sorted(functions.items(), key=lambda item: -item[1]):
        by_function.add_row(name, f"{seconds:.2f}")
    Console().print(by_family, by_function)
    return {
        "threads": torch.get_num_threads(),
        "rows": rows,
        "dim": dim,
        "total_s": total,
        "families_s": families,
        "functions_s": functions,
    }


if __name__ == "__main__":
    run()
