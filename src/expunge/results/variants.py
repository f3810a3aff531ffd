"""The experiments: each is a params file with some changes, run once per training seed in its own workspace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from expunge.system.paths import SUMMARY
from expunge.system.progress import log_message
from expunge.workspaces.workspace import lay_out, params_with, reproduce

HOME = Path(".expunge/results")
# The retrained models of training seed s have the seeds 100 + s, 200 + s and 300 + s, so that no two models share their
# initial weights.
RETRAIN_SEEDS = (100, 200, 300)


@dataclass(frozen=True)
class Variant:
    """An experiment: the file `params` with `changes`, section by section.

    It runs with the methods in `also` and without those in `without`.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    params: str = "params.yaml"

    def params_text(self, root: Path, seed: int) -> str:
        """Text of params.yaml for one seed. Raises ConfigError for a change of a key that the file does not have."""
        params = params_with(root / self.params, self.changes)
        params["methods"] = [name for name in (*params["methods"], *self.also) if name not in self.without]
        params["train"]["seed"] = seed
        params["retrain"]["seeds"] = [first + seed for first in RETRAIN_SEEDS]
        return yaml.safe_dump(params, sort_keys=False)

    def workspace(self, root: Path, seed: int) -> Path:
        """Return the folder in which the experiment runs with one seed."""
        return root / HOME / self.name / str(seed)


VARIANTS = (
    Variant("class", "Fashion-MNIST, small ResNet, forget class 5 (sandal)", (1, 2, 3), also=("relearn-two",)),
    Variant(
        "random",
        "Fashion-MNIST, small ResNet, forget a random 10 % of the training rows",
        (1, 2, 3),
        {"split": {"selector": "random", "fraction": 0.1}},
        also=("relearn-two",),
        # pour-p forgets only classes, and teacher-map has no effect on rows (docs/relearn.md).
        without=("pour-p", "teacher-map"),
    ),
    Variant(
        "frozen",
        "Fashion-MNIST, EfficientNet-Lite0 of ImageNet with a linear head, forget class 5 (sandal)",
        (1,),  # head and reference are the unique optima of convex problems, so the seed has no effect
        {
            "model": {"name": "efficientnet-lite0", "training": "head", "saw_forget_data": False},
            "activations": {"cuts": []},
            "methods": ["logit-mask", "loft", "ru-linear", "leace", "pour-p", "head-refit"],
            "fit": {"loft": {"choose": {"rank": [400]}}},
            "shadow": {"heads": 64},
        },
    ),
    Variant(
        "networks",
        "digits, small ResNet, forget class 5, attacked with 64 whole networks a side",
        (1,),
        {"methods": ["logit-mask", "ru-linear", "teacher-map", "relearn"], "shadow": {"networks": 64}},
        params="params.demo.yaml",
    ),
)


def run_variants(root: Path, variants: Sequence[Variant]) -> None:
    """Run the stages that are missing or out of date, as DVC determines.

    Raises ExpungeError if a stage fails; the next run continues from there.
    """
    for variant, seed in _runs(variants):
        log_message(f"results: {variant.name}, training seed {seed}")
        workspace = variant.workspace(root, seed)
        lay_out(root, workspace, variant.params_text(root, seed), cache=root / HOME / "cache")
        reproduce(root, workspace, "compare")


def finished(root: Path, variant: Variant) -> dict[int, Path]:
    """Workspaces of the runs that have a summary, by training seed."""
    workspaces = {seed: variant.workspace(root, seed) for seed in variant.seeds}
    return {seed: path for seed, path in workspaces.items() if (path / SUMMARY).is_file()}


def _runs(variants: Sequence[Variant]) -> Iterator[tuple[Variant, int]]:
    return ((variant, seed) for variant in variants for seed in variant.seeds)
