"""Shadow heads on cached features: the run's methods applied to many heads, each trained on half of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from expunge.core import FeatureMap, LinearHead, PourP
from expunge.core.logit_mask import mask_classes
from expunge.data.schema import FORGET, RETAIN, TEST_RETAIN
from expunge.data.split import Split
from expunge.evaluation.rows import thinned
from expunge.evaluation.shadow_heads import HeadRecipe, ShadowHeads, complementary_halves, train_heads
from expunge.evaluation.shadow_scores import ShadowMargins, against, floor
from expunge.features.store import FeatureStore
from expunge.methods.unlearned import UnlearnedModel
from expunge.system.progress import log_message

FORGET_ROWS, POPULATION_ROWS = 10_000, 2_000

# A map is put before every head as this run fitted it. These methods change the head, so they run for every head.
THE_MAP = "the map of this run before every head"
STEPS_ON_THE_HEAD = {
    "logit-mask": "the mask on every head",
    "pour-p": "fitted to every head",
    "head-refit": "heads of their own, trained on halves of the retained rows behind the map of this run",
}
NOT_COVERED = "its step on the head is not repeated for every head"
BELOW_THE_HEAD = "it changes weights below the head, which heads on cached features cannot show"


@dataclass(frozen=True)
class FittedEntry:
    """An entry of `methods` in params: its method, its settings, and the result that the run fitted.

    `keeps_head`: the result reads its features with the head of the original model.
    """

    method: str
    settings: Mapping[str, Any]
    unlearned: UnlearnedModel
    keeps_head: bool

    @classmethod
    def of(
        cls, name: str, table: Mapping[str, Mapping[str, Any]], unlearned: UnlearnedModel, original: LinearHead
    ) -> FittedEntry:
        """The entry `name` of `table`, the section `fit` of params; `original` is the head of the original model."""
        settings = {key: value for key, value in table[name].items() if key not in ("method", "after")}
        head = unlearned.head
        keeps_head = torch.equal(head.weight, original.weight) and torch.equal(head.bias, original.bias)
        return cls(table[name].get("method", name), settings, unlearned, keeps_head)

    @property
    def why_not(self) -> str | None:
        """Why shadow heads cannot represent this entry, or None if they can."""
        if self.unlearned.classifier is not None:
            return BELOW_THE_HEAD
        return None if self.unlearned_by else NOT_COVERED

    @property
    def unlearned_by(self) -> str | None:
        """What is done to every shadow head, or None if the entry's step on the head cannot be repeated."""
        return STEPS_ON_THE_HEAD.get(self.method, THE_MAP if self.keeps_head else None)


@dataclass(frozen=True)
class ShadowRows:
    """Features and labels of the rows that every head is trained or scored on.

    `forget_at`: positions of the scored forgotten rows among those of `train`.
    """

    train: tuple[np.ndarray, np.ndarray]
    retain: tuple[np.ndarray, np.ndarray]
    forget: tuple[np.ndarray, np.ndarray]
    population: tuple[np.ndarray, np.ndarray]
    forget_at: np.ndarray
    whole_classes: list[int]

    @classmethod
    def of(cls, store: FeatureStore, split: Split, seed: int) -> ShadowRows:
        """Select the rows. The population consists of test rows of retained classes; `seed` thins large sets."""
        labels, rng = store.column("label"), np.random.default_rng(seed)

        def at(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return store.z(rows), labels[rows]

        retain, forget = split.rows(RETAIN), split.rows(FORGET)
        train, scored = np.union1d(retain, forget), thinned(split.scored_rows(FORGET), FORGET_ROWS, rng)
        population = thinned(split.rows(TEST_RETAIN), POPULATION_ROWS, rng)
        at_forget = np.searchsorted(train, scored)
        return cls(at(train), at(retain), at(scored), at(population), at_forget, split.request["whole_classes"])


def attack_heads(
    rows: ShadowRows, entries: Mapping[str, FittedEntry], heads: int, classes: int, epochs: int | None, seed: int
) -> dict[str, Any]:
    """Train shadow heads and attack every entry that changes only the head or adds a map.

    `heads` (an even number) heads learn from halves of all training rows, with every row in half of them, and are then
    unlearned. As many heads learn from halves of the retained rows. For each scored row only the unlearned heads that
    had it count.
    """
    recipe = HeadRecipe() if epochs is None else HeadRecipe(epochs=epochs)
    halves = complementary_halves(len(rows.train[0]), heads, seed)
    log_message(
        f"shadow: training {heads} heads on halves of {len(rows.train[0]):,} rows, and {heads} on halves of the "
        "retained rows"
    )
    train = _Trainer(classes, recipe)
    before = train(*rows.train, heads, seed, halves)
    retrained = _side(train(*rows.retain, heads, seed + 1), rows, None)
    had, group = halves[:, rows.forget_at], heads // 2

    def attacked(entry: FittedEntry) -> dict[str, Any]:
        side = _unlearn(entry, before, rows, had, train, seed + 2)
        return {"unlearned_by": entry.unlearned_by, **against(side, retrained, group, seed)}

    return {
        "models": {"trained": heads, "retrained": heads, "had_each_row": heads // 2, "per_group": group},
        "rows": {"forget": len(rows.forget[0]), "population": len(rows.population[0])},
        "recipe": asdict(recipe),
        "references": {
            "original": against(_side(before, rows, None, had), retrained, group, seed),
            "retrained": floor(retrained, seed),
        },
        "methods": {name: attacked(entry) for name, entry in entries.items() if entry.why_not is None},
        "not_covered": {name: entry.why_not for name, entry in entries.items() if entry.why_not is not None},
    }


@dataclass(frozen=True)
class _Trainer:
    classes: int
    recipe: HeadRecipe

    def __call__(
        self, z: np.ndarray, labels: np.ndarray, heads: int, seed: int, member: np.ndarray | None = None
    ) -> ShadowHeads:
        return train_heads(
            z,
            labels,
            heads,
            saw_forget_data=False,
            seed=seed,
            classes=self.classes,
            recipe=self.recipe,
            member=member,
        )


def _side(
    heads: ShadowHeads, rows: ShadowRows, map_: FeatureMap | None, had: np.ndarray | None = None
) -> ShadowMargins:
    forget, population = (heads.margins(_mapped(map_, z), labels) for z, labels in (rows.forget, rows.population))
    return ShadowMargins(forget, population, had)


def _mapped(map_: FeatureMap | None, z: np.ndarray) -> np.ndarray:
    return z if map_ is None else map_(torch.from_numpy(z)).float().numpy()


def _unlearn(
    entry: FittedEntry, before: ShadowHeads, rows: ShadowRows, had: np.ndarray, train: _Trainer, seed: int
) -> ShadowMargins:
    """Margins of the heads after unlearning, which is done as `FittedEntry.unlearned_by` says."""
    map_ = entry.unlearned.map
    match entry.method:
        case "head-refit":
            z, labels = rows.retain
            return _side(train(_mapped(map_, z), labels, len(before.weight) // 2, seed), rows, map_)
        case "logit-mask":
            masked = entry.unlearned.info["masked"]
            heads = _each(before, lambda head: mask_classes(head, masked)) if masked else before
            return _side(heads, rows, None, had)
        case "pour-p":
            pour = PourP(**entry.settings)
            heads = _each(before, lambda head: pour.fit(head, rows.whole_classes).map_.fold_into(head))
            return _side(heads, rows, None, had)
        case _:
            return _side(before, rows, map_, had)


def _each(heads: ShadowHeads, change: Callable[[LinearHead], LinearHead]) -> ShadowHeads:
    """Apply `change` to every head."""
    changed = [
        change(LinearHead(torch.from_numpy(w), torch.from_numpy(b)))
        for w, b in zip(heads.weight, heads.bias, strict=True)
    ]
    weight, bias = (np.stack([getattr(head, name).numpy() for head in changed]) for name in ("weight", "bias"))
    return ShadowHeads(weight, bias, heads.member)
