"""activations: compute the training rows' activations at cuts inside the backbone once per model, for all requests."""

from pathlib import Path
from typing import Any

from expunge.config import Config, load_config
from expunge.stages import run
from expunge.system.errors import DataError
from expunge.system.files import staged_dir, write_manifest
from expunge.system.paths import ACTIVATIONS, DATASET, MODELS, ORIGINAL, WORK


def fetch(config: Config, staging: Path) -> dict[str, Any]:
    """Write one file per cut and return the fields of the manifest. Raises DataError for images of different sizes."""
    from expunge.data.dataset import Dataset  # imports torch, which takes seconds
    from expunge.finetune.above import keep, train_rows
    from expunge.finetune.cut import fetch_activations
    from expunge.models.checkpoint import load_classifier
    from expunge.training.cut_check import resolve

    dataset, classifier = Dataset(DATASET), load_classifier(MODELS / ORIGINAL)
    train = train_rows(dataset)
    inputs = dataset.inputs(train)
    mixed = isinstance(inputs, list) and not isinstance(inputs[0], str)
    if mixed and set(config.activations.cuts) != {config.model.cut}:  # only `keep` takes one row at a time
        raise DataError(
            f"{DATASET}: images differ in size or in colour, but relearning needs one size and one kind; "
            "set activations.cuts: []"
        )
    cuts = resolve(config, classifier, len(train))
    lower = {}
    for cut in cuts:
        if cut == config.model.cut:  # the activations that the model was trained on
            lower[cut] = keep(classifier, dataset, cut, WORK, staging / f"{cut}.npy")
        else:
            fetch_activations(classifier, inputs, cut, staging / f"{cut}.npy")
    return {
        "rows": {f"{cut}.npy": len(train) for cut in cuts},
        "dataset_digest": dataset.digest,
        "lower": lower,  # digests of the layers below model.cut, by cut
    }


def main() -> None:
    """Run the stage `activations`; without cuts it writes a manifest and no activations."""
    config = load_config()
    with staged_dir(ACTIVATIONS) as staging:
        costs = fetch(config, staging) if config.activations.cuts else {}
        write_manifest(staging, "expunge.stages.activations", **costs)


if __name__ == "__main__":
    run(main)
