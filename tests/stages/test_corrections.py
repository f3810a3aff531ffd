"""Test corrections through the whole pipeline: 40 digits get new labels, by which every model is judged."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.ledger.forgotten import ForgottenRows, label_pair
from expunge.models.zoo import build
from expunge.system.paths import DATASET, FORGOTTEN, SPLIT
from tests.pipeline import change, dvc, lay_out

pytestmark = pytest.mark.slow
ROWS = 40


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workspace of a finished correction.

    Of 800 digits, 40 of the 47 threes in the training rows were labelled as nines; the request corrects them.
    """
    home = lay_out(tmp_path_factory.mktemp("corrected") / "workspace")
    network = build("resnet-small", 10, (8, 8, 1), seed=3)
    save_file({k: v.clone() for k, v in network.state_dict().items()}, home / "public.safetensors")
    bunch = load_digits()
    labels, split = bunch.target[:800].copy(), np.where(np.arange(800) % 5 == 4, "test", "train")
    wrong = np.flatnonzero((labels == 3) & (split == "train"))[:ROWS]
    labels[wrong] = 9
    images = np.round(bunch.images[:800] * (255 / 16)).astype(np.uint8)[..., None]
    ids = np.array([f"visit-{i:05d}" for i in range(800)])
    np.savez(home / "data" / "source" / "digits.npz", images=images, labels=labels, ids=ids, split=split)
    with open(home / "data" / "requests" / "corrections.csv", "w", newline="") as f:
        csv.writer(f).writerows([["sample_id", "label"], *([ids[i], 3] for i in wrong)])

    def edit(params: dict) -> None:
        params["data"].update(source="npz", path="data/source/digits.npz")
        params["split"].update(selector="correct", file="data/requests/corrections.csv", validation=0.1)
        params["model"].update(training="ridge", checkpoint="public.safetensors", saw_forget_data=False)
        params["train"]["head"] = {"ridge": 0.1, "quantum": 2.0**-12}
        params["activations"]["cuts"] = []
        params["retrain"]["seeds"] = [1]
        params["shadow"].update(heads=0, networks=0)
        params["fit"]["exact"] = {}
        params.update(methods=["logit-mask", "exact"], reference="retrain")

    change(home, edit)
    (home / "log.txt").write_text(dvc(home, "repro"))
    return home


@pytest.fixture(scope="module")
def summary(corrected: Path) -> dict:
    return json.loads((corrected / "reports" / "summary.json").read_text())


def test_models_are_judged_by_the_new_labels(summary: dict) -> None:
    assert summary["request"]["selector"] == "correct" and summary["request"]["forget_rows"] == ROWS
    accuracy = {n: summary["references"][n]["accuracy"]["forget"] for n in ("original", "retrained")}
    exact = summary["methods"]["exact"]
    assert accuracy["original"] < 0.2 and accuracy["retrained"] == exact["accuracy"]["forget"] > 0.8
    assert exact["divergence"]["forget"]["kl"] < 1e-6 and exact["verdict"]["claims"]["exact"] == "shown"
    assert summary["methods"]["logit-mask"]["accuracy"]["forget"] == accuracy["original"]
    assert exact["relearn"]["steps"] is None
    assert summary["selected"] == "exact"


def test_the_report_says_corrected(corrected: Path) -> None:
    reports = corrected / "reports"
    page = (reports / "report.html").read_text()
    assert "<h1>Correct the labels of 40 of 640 training rows</h1>" in page
    card, results = (reports / "model_card.md").read_text(), (reports / "results.md").read_text()
    assert "## What was corrected" in card and "40 of 640 training rows were to get other labels." in results
    for text in (page, card, results):
        assert "forgotten" not in text.lower()


def test_ids_and_labels_stay_in_data_files(corrected: Path) -> None:
    ids = np.array(Dataset(corrected / DATASET).sample_ids())[Split(corrected / SPLIT).rows("forget")]
    assert len(ids) == ROWS and ids[0].startswith("visit-")
    shown = [corrected / "params.yaml", corrected / "dvc.lock", *(corrected / "reports").rglob("*.*")]
    for file in (f for f in shown if f.is_file()):
        assert b"visit-" not in file.read_bytes(), file
    lock = yaml.safe_load((corrected / "dvc.lock").read_text())
    assert lock["stages"]["split"]["params"]["params.yaml"]["split"]["file"] == "data/requests/corrections.csv"


def test_a_corrected_version_is_registered_and_not_taken_for_an_erasure(corrected: Path) -> None:
    assert json.loads((corrected / "reports" / "registration.json").read_text())["method"] == "exact"
    dataset, split = Dataset(corrected / DATASET), Split(corrected / SPLIT)
    ids = [dataset.sample_ids()[i] for i in split.rows("forget").tolist()]
    # What later versions must not be taught are the old labels. No row counts as forgotten.
    registered, request = ForgottenRows(corrected / FORGOTTEN), split.request["digest"]
    assert not registered.mask(request, dataset.sample_ids()).any()
    assert registered.mask(request, [label_pair(i, "9") for i in ids]).all()
    assert not registered.mask(request, [label_pair(i, "3") for i in ids]).any()
