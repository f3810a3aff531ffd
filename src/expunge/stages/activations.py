"""activations: training images behind a cut inside the backbone, once per model; every later request starts there."""

import numpy as np

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.errors import DataError
from expunge.files import staged_dir, write_manifest
from expunge.finetune.cut import fetch_activations
from expunge.models.checkpoint import load_classifier
from expunge.paths import ACTIVATIONS, DATASET, MODELS, ORIGINAL
from expunge.stages import run


def main() -> None:
    cuts = load_config().activations.cuts
    rows: dict[str, int] = {}
    with staged_dir(ACTIVATIONS) as staging:
        if cuts:
            dataset, classifier = Dataset(DATASET), load_classifier(MODELS / ORIGINAL)
            train = np.flatnonzero(dataset.splits() == "train")
            images = dataset.images(train)
            if isinstance(images, list):
                raise DataError(
                    f"{DATASET}: images differ in size; relearning needs one size: set activations.cuts: []"
                )
            for cut in cuts:
                fetch_activations(classifier, images, cut, staging / f"{cut}.npy")
                rows[f"{cut}.npy"] = len(train)
        write_manifest(staging, "expunge.stages.activations", rows=rows)


if __name__ == "__main__":
    run(main)
