"""extract: run a model over every row, once, and store the features and their moments."""

import argparse
import os
import time
from pathlib import Path

from expunge.config import load_config
from expunge.stages import run
from expunge.system.files import read_manifest, staged_dir, write_manifest
from expunge.system.monitor import write_cost
from expunge.system.paths import DATASET, FEATURES, MODELS, ORIGINAL, WORK
from expunge.system.processors import cores
from expunge.system.progress import log_message

PRODUCER = "expunge.stages.extract"


def main() -> None:
    """Run the stage `extract` for the model on the command line; under torchrun all processes share the work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="original, or retrained/SEED")
    parser.add_argument("--repair", action="store_true", help="reuse the intact shards of the existing store")
    arguments = parser.parse_args()
    name = arguments.model
    out = FEATURES / name
    model = read_manifest(MODELS / name)
    first = os.environ.get("RANK", "0") == "0"  # the first process of torchrun, or the only one
    cost: dict[str, object] = {"shards": {}}
    if model.get("skipped"):
        if first:
            with staged_dir(out) as staging:
                write_manifest(staging, PRODUCER, skipped=True)
    elif (
        name != ORIGINAL
        and model["backbone_digest"] == read_manifest(FEATURES / ORIGINAL, verify=False)["model_digest"]
    ):
        log_message(f"extract: {name} has the frozen backbone of the original, so its features are reused")
        if first:
            with staged_dir(out) as staging:
                write_manifest(staging, PRODUCER, same_as=os.path.relpath(FEATURES / ORIGINAL, out))
    else:
        cost = fetch(MODELS / name, out, arguments.repair)
    if first:
        write_cost(f"extract-{name.replace('/', '-')}", cost)


def fetch(model: Path, out: Path, repair: bool) -> dict[str, object]:
    """Write the store `out` with the engine that params or torchrun select; return what it cost, seconds per shard.

    Times differ from run to run, so they are kept out of the store's manifest, whose digest DVC compares. torch is
    imported here because a model that has no features of its own does not need it.
    """
    from expunge.data.dataset import Dataset
    from expunge.features.cluster import on_ray
    from expunge.features.extract import Engine, Extraction, ExtractionSettings, extract
    from expunge.features.torchrun import Torchrun
    from expunge.models.checkpoint import load_classifier

    process = Torchrun.of(os.environ)
    config = load_config()
    asked = config.extract
    engine: Engine | None = None
    if process.world_size > 1:
        engine = process.make
    elif asked.engine == "ray":
        engine = on_ray(model, DATASET, asked.address, asked.workers)
    settings = ExtractionSettings.of(config.features, elsewhere=asked.engine == "ray")
    classifier, dataset = load_classifier(model), Dataset(DATASET, verify=process.rank == 0)
    if process.rank:
        process.make(
            Extraction(classifier, dataset, WORK / "features", settings, cores() // process.local_world_size or 1)
        )
        return {}
    tick = time.perf_counter()
    store = extract(classifier, dataset, out, WORK / "features", settings, engine, repair)
    seconds = time.perf_counter() - tick
    return {
        "engine": f"torchrun, {process.world_size} processes" if process.world_size > 1 else asked.engine,
        "settings": store["settings"],
        "choice": store["choice"],
        "rows": dataset.rows,
        "rows_made": store["rows_made"],  # fewer if training a head has extracted some
        "seconds": round(seconds, 3),
        "rows_per_s": round(store["rows_made"] / seconds, 1),
        "shards": store["seconds"],
    }


if __name__ == "__main__":
    run(main)
