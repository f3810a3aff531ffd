"""Run an extraction in processes that tests kill. The server that forks these processes imports this module once."""

from pathlib import Path

import torch

from expunge.data.dataset import Dataset
from expunge.features.extract import ExtractionSettings, extract
from expunge.models.zoo import build

SETTINGS = ExtractionSettings(batch_size=64, shard_rows=200, dtype="fp16")


def run(dataset_directory: str, root: str) -> None:
    torch.set_num_threads(1)
    dataset = Dataset(dataset_directory)
    extract(
        build("resnet-small", 10, dataset.image_shape, seed=1),
        dataset,
        Path(root) / "out",
        Path(root) / "work",
        SETTINGS,
    )
