"""Test the draw of the rows that are measured."""

import numpy as np

from expunge.evaluation.exposure import CanaryRows
from expunge.evaluation.rows import measured_rows

PART = np.array(["retain"] * 500 + ["forget"] * 20 + ["test_retain"] * 100)


def test_a_part_with_few_rows_is_measured_whole():
    among = np.arange(len(PART)) % 2 == 0
    assert (measured_rows(PART, among, 0, most=250) == among).all()


def test_of_a_large_part_some_are_drawn_without_preference():
    among = np.arange(len(PART)) % 5 > 0
    draws = np.array([measured_rows(PART, among, seed, most=40) for seed in range(300)])
    assert not draws[:, ~among].any()
    assert (draws[:, :500].sum(axis=1) == 40).all() and (draws[:, 520:].sum(axis=1) == 40).all()
    assert draws[:, 500:520][:, among[500:520]].all()
    rate = draws[:, :500][:, among[:500]].mean(axis=0)  # 40 of 400 in 300 draws: standard error 0.017
    assert abs(rate - 0.1).max() < 0.1


def test_the_draw_depends_on_the_seed_alone():
    among = np.ones(len(PART), bool)
    first, again, other = (measured_rows(PART, among, seed, most=40) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_canaries_are_measured_beyond_the_limit_but_not_if_they_are_held_out():
    among = np.ones(len(PART), bool)
    among[7] = False
    canaries = CanaryRows(np.array([3, 7]), np.array([0, 0]), np.array([11]), np.array([1]))
    found = measured_rows(PART, among, 0, canaries.rows, most=1)
    assert found[[3, 11]].all() and not found[7]
