from __future__ import annotations

import pytest

from expunge.erasure.forgotten import ForgottenRows
from expunge.errors import DataError

A, B, C = ("sha256:" + c * 64 for c in "abc")


def test_a_set_covers_its_subsets_and_nothing_else(tmp_path):
    ForgottenRows(tmp_path, A, ["1", "2"]).keep(A)
    ForgottenRows(tmp_path, B, ["3", "1", "2"]).keep(B)
    rows = ForgottenRows(tmp_path, C, ["2", "4"])  # at hand, not kept
    assert [rows.covers(later, A) for later in (A, B, C)] == [True, True, False]
    assert rows.covers(A, B) is False and rows.covers(C, B) is False
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a" * 64 + ".rows", "b" * 64 + ".rows"]


def test_what_is_not_known_is_not_guessed(tmp_path):
    rows = ForgottenRows(tmp_path, A, ["1"])
    assert rows.covers(A, B) is None and rows.covers(B, A) is None and rows.covers(B, B) is True
    assert rows.knows(A) and not rows.knows(B)


def test_ids_do_not_stand_in_the_file(tmp_path):
    rows = ForgottenRows(tmp_path, A, ["patient-0017", "patient-0018"])
    rows.keep(A)
    content = (tmp_path / ("a" * 64 + ".rows")).read_bytes()
    assert len(content) == 32 and b"0017" not in content


def test_a_damaged_set_is_named(tmp_path):
    rows = ForgottenRows(tmp_path, A, ["1"])
    rows.keep(A)
    (tmp_path / ("a" * 64 + ".rows")).write_bytes(b"x" * 15)
    with pytest.raises(DataError, match="not a set of row digests"):
        ForgottenRows(tmp_path).covers(B, A)
    with pytest.raises(DataError, match="not the digest"):
        rows.covers("../../etc/passwd", A)
