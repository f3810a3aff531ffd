"""The experiments: each is params.yaml with a few changes, run once per training seed in a workspace of its own."""

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
RETRAIN_SEEDS = (100, 200, 300)  # training seed s has retrained models of seeds 100 + s ... : none shares its start


@dataclass(frozen=True)
class Variant:
    """`changes` go over the file `params`, section by section; `without` are methods that do not apply."""

    name: str
    title: str
    seeds: tuple[int, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    params: str = "params.yaml"

    def params_text(self, root: Path, seed: int) -> str:
        """The params.yaml of one seed. Raises ConfigError for a change of a key that the file does not have."""
        params = params_with(root / self.params, self.changes)
        params["methods"] = [name for name in params["methods"] if name not in self.without]
        params["train"]["seed"] = seed
        params["retrain"]["seeds"] = [first + seed for first in RETRAIN_SEEDS]
        return yaml.safe_dump(params, sort_keys=False)

    def workspace(self, root: Path, seed: int) -> Path:
        return root / HOME / self.name / str(seed)


VARIANTS = (
    Variant("class", "Fashion-MNIST, small ResNet, forget class 5 (sandal)", (1, 2, 3)),
    Variant(
        "random",
        "Fashion-MNIST, small ResNet, forget a random 10 % of the training rows",
        (1, 2, 3),
        {"split": {"selector": "random", "fraction": 0.1}},
        without=("pour-p", "teacher-map"),  # one forgets classes, the other does nothing for rows: docs/relearn.md
    ),
    Variant(
        "frozen",
        "Fashion-MNIST, EfficientNet-Lite0 of ImageNet with a linear head, forget class 5 (sandal)",
        (1,),  # head and reference are the one optimum of a convex problem: a seed changes nothing
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
    """Run what is missing or out of date; DVC knows. Raises ExpungeError when a stage fails; a next run goes on."""
    for variant, seed in _runs(variants):
        log_message(f"results: {variant.name}, training seed {seed}")
        workspace = variant.workspace(root, seed)
        lay_out(root, workspace, variant.params_text(root, seed), cache=root / HOME / "cache")
        reproduce(root, workspace, "compare")


def finished(root: Path, variant: Variant) -> dict[int, Path]:
    """Training seed -> workspace of the runs that have a summary."""
    workspaces = {seed: variant.workspace(root, seed) for seed in variant.seeds}
    return {seed: path for seed, path in workspaces.items() if (path / SUMMARY).is_file()}


def _runs(variants: Sequence[Variant]) -> Iterator[tuple[Variant, int]]:
    return ((variant, seed) for variant in variants for seed in variant.seeds)
