"""Test corrections through the whole pipeline: 40 digits get new labels, by which every model is judged."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.ledger.forgotten import ForgottenRows, label_pair
from expunge.system.paths import DATASET, FORGOTTEN, SPLIT
from tests.pipeline import change, dvc
from tests.wrong_labels import use_digits_with_ridge, write_wrong_digits

pytestmark = pytest.mark.slow
ROWS = 40


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workspace of a finished correction.

    Of 800 digits, 40 of the 47 threes in the training rows were labelled as nines; the request corrects them.
    """
    home = tmp_path_factory.mktemp("corrected") / "workspace"
    wrong = write_wrong_digits(home, ROWS)
    with open(home / "data" / "requests" / "corrections.csv", "w", newline="") as f:
        csv.writer(f).writerows([["sample_id", "label"], *([i, 3] for i in wrong)])

    def edit(params: dict) -> None:
        use_digits_with_ridge(params)
        params["split"].update(selector="correct", file="data/requests/corrections.csv")
        params["shadow"].update(heads=0, networks=0)

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
