"""The last product of `exact` in shards above a cut, from which the next round continues.

Each round answers all requests so far. Starting from the original, `exact` would train the shards of all earlier
requests again in every round. Starting from its own last product it trains only the shards of the new request, as a
request does whose predecessor is served. The weights are the same bits, because a step is reused only where its rows
and the digest of its weights are those recorded (finetune/shards.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.models.sharded import core_with_shards
from expunge.system.errors import CheckpointError, ManifestError
from expunge.system.files import read_manifest, staged_dir, write_manifest

PRODUCER = "expunge.reproduce.continued"


def continues(inputs: FitInputs, name: str, table: Mapping[str, Any]) -> bool:
    """Whether the entry `name` of `table`, the section `fit` of params, deletes exactly from shards above a cut."""
    method = (table.get(name) or {}).get("method", name)
    return method == "exact" and core_with_shards(inputs.classifier) is not None


@dataclass(frozen=True)
class LastProduct:
    """The product of the last round in `directory`; `before` and `now` are the keys of that round and of this one."""

    directory: Path
    before: str
    now: str

    def start(self, inputs: FitInputs) -> FitInputs:
        """Return `inputs` with the product of the round before as the model.

        If there is none, or it is damaged, `inputs` are returned as they are: the original leads to the same result.
        """
        try:
            if read_manifest(self.directory).get("round") != self.before:
                return inputs
            return replace(inputs, classifier=load_classifier(self.directory), model_dir=self.directory)
        except (ManifestError, CheckpointError):
            return inputs

    def keep(self, unlearned: UnlearnedModel) -> None:
        """Replace the directory by this model, the product of this round."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with staged_dir(self.directory) as staging:
            unlearned.save(staging)
            write_manifest(staging, PRODUCER, round=self.now)
