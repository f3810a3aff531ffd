"""Test the erasure of rows whose labels were corrected before.

The correction does not count as an erasure, and the sweep also removes the corrected labels of the erased rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from expunge.data.dataset import Dataset
from expunge.data.split import Split, split
from expunge.sweep import sweep
from expunge.sweep.lineage import covering
from expunge.sweep.targets import Targets
from tests.sweep import people_workspace

CORRECTED = [3, 50, 51, 130]  # These are training rows, with the labels 0, 2, 0 and 1.
ERASED = 50


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = people_workspace.workspace(tmp_path / "workspace", [2])
    file = root / "data/requests/labels.csv"
    file.write_text("sample_id,label\n" + "".join(f"record-{i:05d},{(i + 1) % 3}\n" for i in CORRECTED))
    (root / "data/requests/one.txt").unlink()
    split(Dataset(root / "data/dataset"), root / "data/split", selector="correct", file=file)
    return root


def test_a_correction_does_not_cover_an_erasure(root: Path) -> None:
    targets = Targets.find(root, [f"record-{ERASED:05d}"], [], keep=False)
    assert covering(targets) == []


def test_labels_of_erased_rows_go_and_the_others_stay_with_their_rows(root: Path) -> None:
    before = Split(root / "data/split").labels(Dataset(root / "data/dataset").labels())
    sweep(root, rows=[f"record-{ERASED:05d}"], apply=True)
    dataset, after = Dataset(root / "data/dataset"), Split(root / "data/split")
    assert after.corrections is not None and after.corrections.rows.tolist() == [3, 50, 129]
    assert np.array_equal(after.labels(dataset.labels()), np.delete(before, ERASED))
    left = (root / "data/requests/labels.csv").read_text()
    assert f"record-{ERASED:05d}" not in left
    assert "record-00003,1" in left and "record-00130,2" in left
