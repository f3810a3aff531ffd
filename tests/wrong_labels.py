"""Lay out a workspace of digits with wrong labels and a ridge head on a public network, for tests of corrections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from expunge.models.zoo import build
from tests.pipeline import lay_out


def write_wrong_digits(root: Path, count: int) -> list[str]:
    """Write 800 digits and public weights below `root`, and return the ids of the rows with wrong labels.

    The first `count` of the 47 threes in the training rows are labelled as nines.
    """
    lay_out(root)
    network = build("resnet-small", 10, (8, 8, 1), seed=3)
    save_file({k: v.clone() for k, v in network.state_dict().items()}, root / "public.safetensors")
    bunch = load_digits()
    labels, split = bunch.target[:800].copy(), np.where(np.arange(800) % 5 == 4, "test", "train")
    wrong = np.flatnonzero((labels == 3) & (split == "train"))[:count]
    labels[wrong] = 9
    images = np.round(bunch.images[:800] * (255 / 16)).astype(np.uint8)[..., None]
    ids = np.array([f"visit-{i:05d}" for i in range(800)])
    np.savez(root / "data/source/digits.npz", images=images, labels=labels, ids=ids, split=split)
    return [str(i) for i in ids[wrong]]


def use_digits_with_ridge(params: dict) -> None:
    """Set the params of these data and of a ridge head that `exact` corrects bit for bit."""
    params["data"].update(source="npz", path="data/source/digits.npz")
    params["split"].update(validation=0.1)
    params["model"].update(training="ridge", checkpoint="public.safetensors", saw_forget_data=False)
    params["train"]["head"] = {"ridge": 0.1, "quantum": 2.0**-12}
    params["activations"]["cuts"] = []
    params["retrain"]["seeds"] = [1]
    params["fit"]["exact"] = {}
    params.update(methods=["logit-mask", "exact"], reference="retrain")
