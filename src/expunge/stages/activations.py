"""activations: training rows behind a cut inside the backbone, once per model; every later request starts there."""

from pathlib import Path

from expunge.config import Config, load_config
from expunge.stages import run
from expunge.system.errors import DataError
from expunge.system.files import staged_dir, write_manifest
from expunge.system.paths import ACTIVATIONS, DATASET, MODELS, ORIGINAL


def fetch(config: Config, staging: Path) -> dict[str, int]:
    """Write one file a cut; return their rows. Raises DataError for images of different sizes."""
    import numpy as np  # torch comes along: seconds that a run without cuts has no use for

    from expunge.data.dataset import Dataset
    from expunge.finetune.cut import fetch_activations
    from expunge.models.checkpoint import load_classifier
    from expunge.training.cut_check import resolve

    dataset, classifier = Dataset(DATASET), load_classifier(MODELS / ORIGINAL)
    train = np.flatnonzero(dataset.splits() == "train")
    inputs = dataset.inputs(train)
    if isinstance(inputs, list) and not isinstance(inputs[0], str):
        raise DataError(f"{DATASET}: images differ in size; relearning needs one size: set activations.cuts: []")
    cuts = resolve(config, classifier, len(train))
    for cut in cuts:
        fetch_activations(classifier, inputs, cut, staging / f"{cut}.npy")
    return {f"{cut}.npy": len(train) for cut in cuts}


def main() -> None:
    config = load_config()
    with staged_dir(ACTIVATIONS) as staging:
        rows = fetch(config, staging) if config.activations.cuts else {}
        write_manifest(staging, "expunge.stages.activations", rows=rows)


if __name__ == "__main__":
    run(main)
