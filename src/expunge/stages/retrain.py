"""retrain: the same recipe on retained rows only; every metric is read beside this model's."""

import argparse

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.features.store import FeatureStore
from expunge.models.classifier import FROZEN
from expunge.stages import run
from expunge.system.files import staged_dir, write_manifest
from expunge.system.monitor import write_cost
from expunge.system.paths import DATASET, FEATURES, MODELS, ORIGINAL, SPLIT, WORK, retrained
from expunge.training.recipe import make_classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    seed = parser.parse_args().seed
    config = load_config()
    out = MODELS / retrained(seed)
    cost = {}
    if config.reference == "skip":
        with staged_dir(out) as staging:
            write_manifest(staging, "expunge.stages.retrain", skipped=True)
    else:
        store = FeatureStore(FEATURES / ORIGINAL) if config.model.training in FROZEN else None
        cost = make_classifier(config, Dataset(DATASET), Split(SPLIT).rows("retain"), seed, out, WORK, store)
    write_cost(f"retrain-{seed}", cost)


if __name__ == "__main__":
    run(main)
