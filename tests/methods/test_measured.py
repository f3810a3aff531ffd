"""Tests that measurements of the references are stored, and that stored ones equal new ones."""

from dataclasses import replace

import numpy as np
import pytest

from expunge.evaluation import measuring
from expunge.evaluation.measuring import Outputs
from expunge.evaluation.rows import choose_rows
from expunge.evaluation.suite import controls_of, evaluate
from expunge.methods import measured
from expunge.methods.measured import measure_references

ROWS, CLASSES = 600, 4


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, 6))
    labels = np.arange(ROWS) % CLASSES
    z = (centres[labels] + rng.normal(size=(ROWS, 6))).astype(np.float32)
    train, removed = np.arange(ROWS) < 400, labels == 2
    part = np.where(train, np.where(removed, "forget", "retain"), np.where(removed, "test_forget", "test_retain"))

    def model(seed, shift):
        own = z + np.random.default_rng(seed).normal(size=z.shape).astype(np.float32) * 0.1
        return Outputs((own @ centres.T + shift).astype(np.float32), own)

    forgotten = np.where(np.arange(CLASSES) == 2, -9.0, 0.0)
    return [model(0, 0.0), *(model(s, forgotten) for s in (1, 2, 3))], labels, part


def block(world, candidate, known):
    (original, *retrained), labels, part = world
    return evaluate(candidate, original, retrained, labels, part, measuring=known)


def test_the_block_is_the_same_whether_references_were_measured_now_before_or_in_a_file(world, tmp_path, monkeypatch):
    (original, *retrained), labels, part = world
    rows = choose_rows(labels, part, original.z, 0)
    candidate = Outputs(original.logits - 1, original.z, original.z * 2)
    expected = block(world, candidate, None)
    assert block(world, candidate, measure_references(rows, [original, *retrained], tmp_path)) == expected
    assert len(list(tmp_path.iterdir())) == 4
    count = []
    monkeypatch.setattr(measured.Measuring, "of", lambda self, m: count.append(m) or measuring.Measuring.of(self, m))
    known = measure_references(rows, [original, *retrained], tmp_path)
    monkeypatch.undo()
    assert not count and block(world, candidate, known) == expected
    assert controls_of(original, retrained, labels, part, measuring=known) == controls_of(
        original, retrained, labels, part
    )


def test_another_model_other_rows_or_other_code_is_measured_anew(world, tmp_path, monkeypatch):
    (original, *_), labels, part = world
    rows = choose_rows(labels, part, original.z, 0)

    def names(model, plan):
        measure_references(plan, [model], tmp_path)
        return {path.name for path in tmp_path.iterdir()}

    first = names(original, rows)
    assert names(replace(original, logits=original.logits + 1), rows) != first and len(first) == 1
    assert names(original, choose_rows(labels, part, original.z, 1)) != first
    assert names(replace(original, stages={"representation.stages.probe_1": np.ones(9)}), rows) != first
    assert names(original, rows) == first
    monkeypatch.setattr(measured, "code_version", lambda: "changed")
    assert names(original, rows) != first
