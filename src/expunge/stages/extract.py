"""extract: one forward pass of a model over every row, once."""

import argparse
import os

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.features.extract import Settings, extract
from expunge.files import read_manifest, staged_dir, write_manifest
from expunge.models.checkpoint import load_classifier
from expunge.paths import DATASET, FEATURES, MODELS, ORIGINAL, WORK
from expunge.progress import say
from expunge.stages import run
from expunge.usage import write_cost

PRODUCER = "expunge.stages.extract"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="original, or retrained/SEED")
    name = parser.parse_args().model
    out = FEATURES / name
    model = read_manifest(MODELS / name)
    cost: dict[str, object] = {}
    if model.get("skipped"):
        with staged_dir(out) as staging:
            write_manifest(staging, PRODUCER, skipped=True)
    elif (
        name != ORIGINAL
        and model["backbone_digest"] == read_manifest(FEATURES / ORIGINAL, verify=False)["model_digest"]
    ):
        say(f"extract: {name} has the original's frozen backbone, so its features too")
        with staged_dir(out) as staging:
            write_manifest(staging, PRODUCER, same_as=os.path.relpath(FEATURES / ORIGINAL, out))
    else:
        settings = Settings.of(load_config().features)
        cost = extract(load_classifier(MODELS / name), Dataset(DATASET), out, WORK / "features", settings)["seconds"]
    write_cost(f"extract-{name.replace('/', '-')}", {"shards": cost})


if __name__ == "__main__":
    run(main)
