"""fit: run one method of the table, which gives a map of features, a head or a network."""

import argparse
import dataclasses
import time

from expunge.config import load_config
from expunge.data.split import Split
from expunge.finetune.ray_shards import on_ray
from expunge.methods.fitting import fit, warm_up
from expunge.methods.inputs import FitInputs
from expunge.methods.seeding import other_seeds
from expunge.methods.unlearned import SEEDS
from expunge.stages import run
from expunge.system.errors import REFUSALS
from expunge.system.files import staged_dir, write_manifest
from expunge.system.monitor import write_cost
from expunge.system.paths import SPLIT, UNLEARNED, WORK
from expunge.system.progress import log_message
from expunge.training.launch import relearning_of


def main() -> None:
    """Run the stage `fit` for the method on the command line; a refusal is recorded and ends without an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    name = parser.parse_args().method
    config = load_config()
    table, clustered = config.fit, config.extract
    engine = on_ray(clustered.address, clustered.workers) if clustered.engine == "ray" else None
    relearning = None if config.train.engine == "local" else relearning_of(config, WORK / f"relearn-{name}")
    request = FitInputs.of_split(Split(SPLIT), engine, relearning)
    warm_up(name, table, request.classifier.card.training)
    refused, seconds = None, 0.0
    start = time.perf_counter()
    with staged_dir(UNLEARNED / name) as staging:
        try:
            others = other_seeds(name, table)
            unlearned = fit(name, request, table)
            seconds = time.perf_counter() - start
            for number, other in enumerate(others or [], 1):
                place = staging / SEEDS / str(number)
                place.mkdir(parents=True)
                fit(name, request, other).save(place)
                write_manifest(place, "expunge.stages.fit", method=name, settings=other[name])
            seeds = None if others is None else 1 + len(others)
            dataclasses.replace(unlearned, info={**unlearned.info, "fit_seeds": seeds}).save(staging)
        except REFUSALS as e:  # a refusal is a result about this method, not a failure of the run
            refused = str(e)
        write_manifest(staging, "expunge.stages.fit", method=name, settings=table[name], refused=refused)
    write_cost(f"fit-{name}", {"fit_s": round(seconds, 4)})
    log_message(f"fit {name}: refused: {refused}" if refused else f"fit {name}: {seconds:.3f} s")


if __name__ == "__main__":
    run(main)
