"""train: the original classifier, on every training row, or the checkpoint as it comes."""

import numpy as np

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.paths import DATASET, MODELS, ORIGINAL, WORK
from expunge.recipe import make_classifier
from expunge.stages import run
from expunge.usage import write_cost


def main() -> None:
    config = load_config()
    dataset = Dataset(DATASET)
    rows = np.flatnonzero(dataset.splits() == "train")
    cost = make_classifier(config, dataset, rows, config.train.seed, MODELS / ORIGINAL, WORK)
    write_cost("train", cost)


if __name__ == "__main__":
    run(main)
