"""train: train the original classifier on every training row, or take the checkpoint unchanged."""

import numpy as np

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.stages import run
from expunge.system.monitor import write_cost
from expunge.system.paths import DATASET, MODELS, ORIGINAL, WORK
from expunge.training.cut_check import check_params
from expunge.training.recipe import make_classifier


def main() -> None:
    """Run the stage `train`."""
    config = load_config()
    check_params(config)  # fails on a wrong cut before training
    dataset = Dataset(DATASET)
    rows = np.flatnonzero(dataset.splits() == "train")
    cost = make_classifier(config, dataset, rows, config.train.seed, MODELS / ORIGINAL, WORK)
    write_cost("train", cost)


if __name__ == "__main__":
    run(main)
