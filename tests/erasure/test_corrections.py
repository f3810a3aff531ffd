"""Test a correction as a request through the whole pipeline: intake, run, promotion, sweep, certificate, next request.

In 800 digits, 40 threes of the training rows are labelled as nines. Thirty and then five of them are corrected, and
seven other rows are erased afterwards. Every model starts from what the request before it left.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from expunge.data.corrected import CorrectedLabels
from expunge.data.dataset import Dataset
from expunge.data.tombstones import home
from expunge.system.paths import DATASET
from tests.erasure.test_in_a_row import erase, expunge
from tests.pipeline import ENVIRONMENT, change, dvc
from tests.wrong_labels import use_digits_with_ridge, write_wrong_digits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
WRONG, FIRST = 40, 30


def workspace(root: Path) -> tuple[Path, list[str]]:
    """Return a workspace of digits on which nothing ran yet, and the ids of the rows with wrong labels."""
    wrong = write_wrong_digits(root, WRONG)

    def edit(params: dict) -> None:
        use_digits_with_ridge(params)
        params["split"]["duplicates"] = "include"

    change(root, edit)
    return root, wrong


def correct(root: Path, ids: list[str], place: Path, label: str = "3") -> dict:
    """Carry out a request for other labels from intake to certificate, and return the certificate's body."""
    place.write_text("sample_id,label\n" + "".join(f"{i},{label}\n" for i in ids))
    return erase(root, "--correct", str(place))


def labels_of(root: Path) -> dict[str, str]:
    dataset = Dataset(root / DATASET)
    return {i: dataset.class_names[y] for i, y in zip(dataset.sample_ids(), dataset.labels().tolist(), strict=True)}


def audited(root: Path, request: str) -> dict:
    return json.loads(expunge(root, "certificate", "audit", f"records/certificates/{request}", "--encode", "--json"))


def trained_anew(root: Path) -> dict:
    """Return the tensors of the head that the train stage makes from the present dataset."""
    other = root.parent / f"{root.name}-anew"
    shutil.copytree(root, other, ignore=shutil.ignore_patterns("mlartifacts", "cache"))
    command = [sys.executable, "-m", "expunge.stages.train"]
    subprocess.run(command, cwd=other, env=ENVIRONMENT, check=True, capture_output=True)
    weights = load_file(other / "models/original/model.safetensors")
    shutil.rmtree(other)
    return weights


@pytest.mark.long
def test_labels_are_corrected_for_good_and_the_next_requests_start_from_them(tmp_path):
    root, wrong = workspace(tmp_path / "workspace")
    first, second, others = wrong[:FIRST], wrong[FIRST:35], ["visit-00001", "visit-00002", *wrong[35:]]
    body = correct(root, first, tmp_path / "first.csv")
    request, found = body["request"], body["unlearning"]
    assert request["kind"] == "labels" and request["asked"] == FIRST
    assert found["corrected"] == {"labels": FIRST} and found["forgotten"] == {"train": 0, "left": 640}
    assert found["model"]["method"] == "exact" and found["exact"]["holds"] and body["sweep"]["left"] == []
    assert found["this_request"]["accuracy"]["product"] > found["this_request"]["accuracy"]["original"]
    purged = {(e["where"], e["what"]): e["count"] for e in body["sweep"]["purged"]}
    assert purged["data/dataset", "labels"] == purged["data/source/digits.npz", "labels"] == FIRST
    assert purged["data/features/original", "labels"] == FIRST
    page = (root / "records/certificates" / request["id"] / "certificate.html").read_text()
    assert "Certificate of correction" in page and "forgotten rows" not in page and "were forgotten" not in page

    # The labels are new wherever a later run may read them, and the model is the one that training on them gives.
    assert {labels_of(root)[i] for i in first} == {"3"} and {labels_of(root)[i] for i in second} == {"9"}
    with np.load(root / "data/source/digits.npz") as source:
        assert set(source["labels"][np.isin(source["ids"], first)]) == {3}
    report = audited(root, request["id"])
    assert report["agrees"] and report["same_bits"] and report["corrects"] and report["dataset_as_certified"]
    now, anew = load_file(root / "models/original/model.safetensors"), trained_anew(root)
    assert all(np.array_equal(v, anew[k]) for k, v in now.items())
    assert all(i.encode() not in (root / "ledger.jsonl").read_bytes() for i in first)
    entries = [json.loads(line)["facts"] for line in (root / "ledger.jsonl").read_text().splitlines()]
    assert [e["labels_replaced"] for e in entries if "labels_replaced" in e] == [FIRST]
    assert [e["corrects"] for e in entries if "corrects" in e] == [str(FIRST)]
    assert not list((root / "data/requests").glob("R-*")) and (home(root) / "labels.parquet").stat().st_mode & 0o77 == 0

    # A source that brings the old labels back does not bring them into the dataset.
    with np.load(root / "data/source/digits.npz") as source:
        arrays = dict(source)
    arrays["labels"][np.isin(arrays["ids"], first)] = 9
    np.savez(root / "data/source/digits.npz", **arrays)
    dvc(root, "repro", "prepare")
    assert {labels_of(root)[i] for i in first} == {"3"} and len(CorrectedLabels.read(home(root))) == FIRST
    assert json.loads(expunge(root, "sweep", "--apply", "--json"))["left"] == []
    with np.load(root / "data/source/digits.npz") as source:
        assert set(source["labels"][np.isin(source["ids"], first)]) == {3}

    later = correct(root, second, tmp_path / "second.csv")
    assert later["unlearning"]["exact"]["holds"] and {labels_of(root)[i] for i in [*first, *second]} == {"3"}
    assert later["unlearning"]["model"]["instead_of"] == found["model"]["version"] and later["sweep"]["left"] == []
    rows = tmp_path / "rows.txt"
    rows.write_text("\n".join(others))
    erasure = erase(root, "--ids", str(rows))
    assert erasure["unlearning"]["exact"]["holds"] and erasure["unlearning"]["forgotten"] == {"train": 7, "left": 633}
    assert {labels_of(root)[i] for i in [*first, *second]} == {"3"} and not set(others) & set(labels_of(root))
    assert audited(root, erasure["request"]["id"])["agrees"]
    now, anew = load_file(root / "models/original/model.safetensors"), trained_anew(root)
    assert all(np.array_equal(v, anew[k]) for k, v in now.items())
    dvc(root, "repro")  # the nightly run, of the request in params.yaml
    expunge(root, "ledger", "verify")
