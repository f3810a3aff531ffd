"""Drawing test rows by subject leaves every subject at least one training row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.source import test_rows_of_subjects as rows_of_subjects
from expunge.system.errors import DataError

rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80)


@given(rows, st.sampled_from([0.1, 0.2, 0.5]), st.integers(0, 99))
def test_every_subject_keeps_a_training_row(rows: list[tuple[int, int]], fraction: float, seed: int) -> None:
    labels, who = np.array([r[0] for r in rows]), [f"p{r[1]}" for r in rows]
    mask = rows_of_subjects(labels, who, fraction, seed)
    assert {w for w, test in zip(who, mask, strict=True) if not test} == set(who)
    for label in set(labels.tolist()):
        n = int((labels == label).sum())
        assert mask[labels == label].sum() <= max(round(fraction * n), 1)
    assert (mask == rows_of_subjects(labels, who, fraction, seed)).all()


def test_a_class_gives_the_fraction_where_its_subjects_have_enough_rows() -> None:
    labels, who = np.repeat([0, 1, 2], 50), [f"p{i // 5}" for i in range(100)] + [f"single{i}" for i in range(50)]
    mask = rows_of_subjects(labels, who, 0.2, 0)
    assert np.bincount(labels[mask], minlength=3).tolist() == [10, 10, 0]
    assert (mask != rows_of_subjects(labels, who, 0.2, 1)).any()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="give a number between 0 and 1"):
        rows_of_subjects(np.zeros(3), ["a", "b", "c"], fraction, 0)
