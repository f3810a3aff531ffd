"""retrain: train a model as the original, without the forgotten rows or on corrected labels, to compare with."""

import argparse
from pathlib import Path
from typing import Any

from expunge.config import Config, load_config
from expunge.stages import run
from expunge.system.files import staged_dir, write_manifest
from expunge.system.monitor import write_cost
from expunge.system.paths import DATASET, FEATURES, MODELS, ORIGINAL, SPLIT, WORK, retrained


def main() -> None:
    """Run the stage `retrain` for the seed on the command line; with `reference: skip` it trains nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    seed = parser.parse_args().seed
    config = load_config()
    out = MODELS / retrained(seed)
    cost: dict[str, Any] = {}
    if config.reference == "skip":
        with staged_dir(out) as staging:
            write_manifest(staging, "expunge.stages.retrain", skipped=True)
    else:
        cost = retrain(config, seed, out)
    write_cost(f"retrain-{seed}", cost)


def retrain(config: Config, seed: int, out: Path) -> dict[str, Any]:
    """Write the model `out` and return what it cost.

    torch is imported here, because a run without references does not need it.
    """
    from expunge.data.dataset import Dataset
    from expunge.data.split import Split
    from expunge.features.store import FeatureStore
    from expunge.models.classifier import FROZEN
    from expunge.training.recipe import make_classifier

    store = FeatureStore(FEATURES / ORIGINAL) if config.model.training in FROZEN else None
    dataset, split = Dataset(DATASET), Split(SPLIT)
    if split.corrections is not None:
        dataset = dataset.with_labels(split.labels(dataset.labels()))
    return make_classifier(config, dataset, split.training_rows, seed, out, WORK, store)


if __name__ == "__main__":
    run(main)
