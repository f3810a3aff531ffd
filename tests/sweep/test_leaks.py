"""Test that ids of rows stay in the data: no params, lock file, MLflow run, model or report of a run holds one."""

from __future__ import annotations

import re
import subprocess

from expunge.data.dataset import Dataset
from expunge.sweep.id_scanner import IdScanner
from tests.pipeline import ROOT
from tests.sweep.byte_search import found

# The ids of rows in the sources that need no files.
IDS = re.compile(rb"(?:digit-\d{4}|train-\d{5}|test-\d{5})(?!\d)")


def test_the_pattern_matches_every_id(finished):
    assert all(IDS.fullmatch(i.encode()) for i in Dataset(finished / "data/dataset").sample_ids())


def test_no_id_leaves_the_data(finished):
    for name in ("params.yaml", "dvc.lock", "dvc.yaml", "mlflow.db"):
        assert (finished / name).is_file()
    assert (finished / "reports/data_docs").is_dir() and (finished / "mlartifacts").is_dir()
    assert {name.split("/")[1] for name in found(IDS, finished)} <= {"data", ".dvc", "src"}
    # In DVC's folder, the cached objects hold ids, and the entries of the run cache must not.
    assert not found(IDS, finished / ".dvc/cache/runs")


def test_no_id_is_committed_outside_code_and_its_words():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    names = [
        n for n in listed.decode().split("\0") if n and not n.startswith(("src/", "tests/", "docs/", "benchmarks/"))
    ]
    assert "params.yaml" in names
    leaks = [n for n in names if (ROOT / n).is_file() and IDS.search((ROOT / n).read_bytes())]
    assert leaks == []


def test_patterns_are_found_in_any_place_of_a_file(tmp_path):
    needles = IdScanner(["record-00012", "ann", "1234567", "Ωmega-person", "record-0001"])
    assert needles.distinct == 3  # Short ids and plain numbers are left out, because they occur by chance.
    assert needles.count(b"record-00012,record-000123;xrecord-00012 record-0001") == 3
    assert needles.count("x\0Ωmega-person\0".encode()) == 1 and needles.count(b"") == 0
    big = tmp_path / "big"
    for at in (0, (8 << 20) - 6, 8 << 20, (9 << 20) - 12):
        content = bytearray(b"." * (9 << 20))
        content[at : at + 12] = b"record-00012"
        big.write_bytes(content)
        assert needles.in_file(big) == 1, at
