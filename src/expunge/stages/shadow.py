"""shadow: run the attacks that need many models, on heads or whole networks, if params ask for it and it is valid."""

import time
from typing import Any

from expunge.config import Config, load_config
from expunge.shadow import plan
from expunge.stages import run
from expunge.system.files import read_manifest, write_json
from expunge.system.monitor import write_cost
from expunge.system.paths import (
    COST,
    DATASET,
    FEATURES,
    MODELS,
    ORIGINAL,
    SHADOW,
    SHADOW_REPORT,
    SPLIT,
    UNLEARNED,
)
from expunge.system.progress import log_message


def of_heads(config: Config, left_out: list[str]) -> dict[str, Any]:
    """Attack with `shadow.heads` heads on stored features, and return the results without the methods `left_out`."""
    from expunge.core import LinearHead
    from expunge.data.dataset import Dataset
    from expunge.data.split import Split
    from expunge.features.store import FeatureStore
    from expunge.methods.unlearned import UnlearnedModel
    from expunge.models.checkpoint import load_classifier
    from expunge.shadow.heads import FittedEntry, ShadowRows, attack_heads

    asked = config.shadow
    classes = len(Dataset(DATASET, verify=False).class_names)
    fitted = [name for name in config.methods if name not in left_out]
    original = LinearHead.of(load_classifier(MODELS / ORIGINAL).head)
    entries = {
        name: FittedEntry.of(name, config.fit, UnlearnedModel.load(UNLEARNED / name), original) for name in fitted
    }
    rows = ShadowRows.of(FeatureStore(FEATURES / ORIGINAL), Split(SPLIT), asked.seed)
    return attack_heads(rows, entries, asked.heads, classes, asked.epochs, asked.seed)


def of_networks(config: Config) -> dict[str, Any]:
    """Attack with `shadow.networks` whole networks, and return the results."""
    from expunge.shadow.networks import Job, attack_networks
    from expunge.shadow.on_ray import make_on_ray

    job = Job.of_workspace(config)
    if config.extract.engine == "ray" and config.train.engine != "ray":  # else Ray shares each single training
        make_on_ray(job, config.shadow.networks)
    return attack_networks(job, config.shadow.networks)


def refused(config: Config) -> list[str]:
    """Return the methods of the run whose fit was refused."""
    return [name for name in config.methods if read_manifest(UNLEARNED / name).get("refused")]


def main() -> None:
    """Run the stage `shadow`."""
    config = load_config()
    decided = plan(config.model, config.shadow)
    left_out = refused(config) if decided.kind in ("heads", "networks") else []
    start = time.perf_counter()
    found: dict[str, Any] = {}
    if decided.kind == "heads":
        found = of_heads(config, left_out)
    elif decided.kind == "networks":
        found = of_networks(config)
    for name in left_out:
        found["methods"].pop(name, None)
        found["not_covered"][name] = "its fit was refused in this run"
    seconds = time.perf_counter() - start
    if decided.refused_because is not None:
        log_message(f"shadow: refused: {decided.refused_because}")
    write_json(SHADOW / "members.json", {"kind": decided.kind, "models": found.get("models")})
    write_json(SHADOW_REPORT, {**decided.to_json(), **found})
    if found:
        write_cost("shadow", {"shadow_s": round(seconds, 3)})
    else:  # no attack ran: write equal bytes every time, because DVC's run cache does not keep `persist` outputs
        write_json(COST / "shadow.json", {"shadow_s": 0.0})


if __name__ == "__main__":
    run(main)
