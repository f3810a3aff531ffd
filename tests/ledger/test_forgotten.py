"""Tests of the stored sets of forgotten rows: which requests they cover, and that they do not reveal ids."""

from __future__ import annotations

import pytest

from expunge.ledger.forgotten import ForgottenRows
from expunge.system.errors import DataError

A, B, C = ("sha256:" + c * 64 for c in "abc")


def test_a_set_covers_its_subsets_and_nothing_else(tmp_path):
    ForgottenRows(tmp_path, A, ["1", "2"]).keep(A)
    ForgottenRows(tmp_path, B, ["3", "1", "2"]).keep(B)
    rows = ForgottenRows(tmp_path, C, ["2", "4"])  # in memory only
    assert [rows.covers(later, A) for later in (A, B, C)] == [True, True, False]
    assert rows.covers(A, B) is False and rows.covers(C, B) is False
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a" * 64 + ".rows", "b" * 64 + ".rows", "key"]


def test_an_unknown_request_covers_nothing(tmp_path):
    rows = ForgottenRows(tmp_path, A, ["1"])
    assert rows.covers(A, B) is None and rows.covers(B, A) is None and rows.covers(B, B) is True
    assert rows.knows(A) and not rows.knows(B)


def test_ids_do_not_stand_in_the_file(tmp_path):
    rows = ForgottenRows(tmp_path, A, ["patient-0017", "patient-0018"])
    rows.keep(A)
    content = (tmp_path / ("a" * 64 + ".rows")).read_bytes()
    assert len(content) == 32 and b"0017" not in content
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_without_the_key_an_id_cannot_be_tested(tmp_path):
    for name in ("one", "two"):
        ForgottenRows(tmp_path / name, A, ["patient-0017"]).keep(A)
    one, two = (tmp_path / name / f"{'a' * 64}.rows" for name in ("one", "two"))
    assert one.read_bytes() != two.read_bytes()
    assert ForgottenRows(tmp_path / "one").among(["patient-0018", "patient-0017"]).tolist() == [False, True]
    (tmp_path / "one" / "key").write_bytes(b"short")
    with pytest.raises(DataError, match="5 bytes where a key has 32"):
        ForgottenRows(tmp_path / "one").among(["patient-0017"])


def test_a_request_still_covers_itself_after_its_rows_were_erased(tmp_path):
    ForgottenRows(tmp_path, A, ["1", "2"]).keep(A)
    ForgottenRows(tmp_path, B, ["1"]).keep(B)
    swept = ForgottenRows(tmp_path, A, [])  # the split no longer has the rows
    assert swept.covers(A, B) is True and swept.knows(A)


def test_a_damaged_set_is_named(tmp_path):
    rows = ForgottenRows(tmp_path, A, ["1"])
    rows.keep(A)
    (tmp_path / ("a" * 64 + ".rows")).write_bytes(b"x" * 15)
    with pytest.raises(DataError, match="not a set of row digests"):
        ForgottenRows(tmp_path).covers(B, A)
    with pytest.raises(DataError, match="not the digest"):
        rows.covers("../../etc/passwd", A)
