"""The result of a method: a map and a head on the original's features, or a classifier with weights of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from expunge.core import AffineMap, FeatureMap, LinearHead, identity, load_map
from expunge.models.checkpoint import DESCRIPTION, load_classifier, save_classifier
from expunge.models.classifier import Classifier
from expunge.system.files import read_json, read_manifest, write_json

# The shipped head has an affine map folded into it. The head that reads z' is kept for evaluation.
SHIPPED_HEAD, HEAD_ON_MAP, INFO = "head.safetensors", "head_on_map.safetensors", "fit.json"
SEEDS = "seeds"  # directory of the fits with other seeds, each in a subdirectory with its number, from 1


class DeletableHead(Protocol):
    """A head with the state needed for exact deletion: `core.RidgeHead`, `SoftmaxHead` or `finetune.HeadShards`."""

    def save(self, directory: Path) -> None:
        """Write the state into an existing directory."""


class ShardSteps(Protocol):
    """The states that training in shards left after each step (`finetune.shards.Trained`)."""

    def save_steps(self, directory: Path) -> None:
        """Write the states below `directory`, one file each."""


@dataclass(frozen=True)
class UnlearnedModel:
    """`logits = head(map(z))`, on the features of the original's backbone or of `classifier`'s where there is one."""

    map: FeatureMap
    head: LinearHead
    info: dict[str, Any] = field(default_factory=dict)
    classifier: Classifier | None = None
    exact_head: DeletableHead | None = None  # saved with its state, so that the next request can start from it
    steps: ShardSteps | None = None  # saved for the same reason

    @classmethod
    def of_classifier(
        cls, classifier: Classifier, info: dict[str, Any], steps: ShardSteps | None = None
    ) -> UnlearnedModel:
        """The result of a method that changed weights below the head; the map is the identity."""
        return cls(
            identity(classifier.card.feature_dim),
            LinearHead.of(classifier.head),
            info,
            classifier,
            steps=steps,
        )

    @property
    def shipped_head(self) -> LinearHead:
        """The head that is shipped: with an affine map folded in, so that it reads z, and otherwise the head on z'."""
        return self.map.fold_into(self.head) if isinstance(self.map, AffineMap) else self.head

    def logits(self, z: Tensor) -> Tensor:
        """Logits `(n, C)` of features `z (n, d)`, computed with the shipped head."""
        return self.shipped_head.logits(z if isinstance(self.map, AffineMap) else self.map(z))

    def save(self, directory: Path) -> None:
        """Write into a staged directory. The caller writes its manifest."""
        self.map.save(directory)
        self.head.save(directory / HEAD_ON_MAP)
        self.shipped_head.save(directory / SHIPPED_HEAD)
        write_json(directory / INFO, self.info)
        if self.classifier is not None:
            save_classifier(directory, self.classifier)
        if self.exact_head is not None:
            self.exact_head.save(directory)
        if self.steps is not None:
            self.steps.save_steps(directory)

    @classmethod
    def load(cls, directory: Path | str) -> UnlearnedModel:
        """Load what `save` wrote, without `exact_head` and `steps`.

        Raises ManifestError or CheckpointError, naming the damaged file.
        """
        directory = Path(directory)
        read_manifest(directory)
        classifier = load_classifier(directory) if (directory / DESCRIPTION).is_file() else None
        return cls(
            load_map(directory), LinearHead.load(directory / HEAD_ON_MAP), read_json(directory / INFO), classifier
        )
