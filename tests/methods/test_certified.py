"""Tests of certified removal: it draws secret noise, and its budget carries over from run to run."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from expunge.ledger.forgotten import ForgottenRows
from expunge.methods.fitting import fit
from expunge.methods.spending import FILE, spent_before
from expunge.system.errors import DataError, QualityError
from expunge.system.files import read_json

TABLE = {"certified-removal": {"l2": 1e-2, "sigma": 3.0}}


@pytest.fixture
def few(fit_inputs, tmp_path):
    """Return a request for three rows, whose backbone never saw them, in a workspace that has forgotten nothing yet."""
    classifier = copy.deepcopy(fit_inputs.classifier)
    classifier.card = dataclasses.replace(classifier.card, saw_forget_data=False)
    train = np.union1d(fit_inputs.retain_rows, fit_inputs.forget_rows)
    removed = train[[5, 300, 700]]
    return dataclasses.replace(
        fit_inputs,
        classifier=classifier,
        forget_rows=removed,
        retain_rows=np.setdiff1d(train, removed),
        forget_classes=[],
        forgotten_dir=tmp_path / "forgotten",
    )


def test_every_run_draws_other_noise_and_adds_to_what_was_spent(few):
    first, second = (fit("certified-removal", few, TABLE) for _ in range(2))
    assert not torch.equal(first.head.weight, second.head.weight)
    one, two = first.info["certified"], second.info["certified"]
    assert one["holds"] is True and two["holds"] is True
    listed = read_json(few.forgotten_dir / FILE)["releases"]
    assert [r["rows"] for r in listed] == [3, 3]
    assert two["epsilon_spent"] == pytest.approx(sum(r["epsilon"] for r in listed))
    assert two["delta"] == pytest.approx(2 * one["delta"]) and two["releases"] == 2
    assert one["delta"] == pytest.approx(0.1 / len(few.train_rows))


def test_a_spent_budget_refuses_and_lists_nothing_more(few):
    found = fit("certified-removal", few, TABLE).info["certified"]
    table = {"certified-removal": {**TABLE["certified-removal"], "epsilon": 1.2 * found["epsilon_spent"]}}
    before = (few.forgotten_dir / FILE).read_bytes()
    with pytest.raises(QualityError, match="train the head again"):
        fit("certified-removal", few, table)
    assert (few.forgotten_dir / FILE).read_bytes() == before


def test_nothing_is_claimed_where_earlier_spending_is_unknown(few):
    alone = fit("certified-removal", dataclasses.replace(few, forgotten_dir=None), TABLE).info["certified"]
    assert alone["holds"] is None and "no folder" in alone["why"]
    ForgottenRows(few.forgotten_dir, "sha256:" + "0" * 64, ["a"]).register()
    for _ in range(2):  # the second run finds a list, but it began too late
        found = fit("certified-removal", few, TABLE).info["certified"]
        assert found["holds"] is None and "before releases were recorded" in found["why"]


def test_delta_of_all_releases_stays_below_one_row(few):
    table = {"certified-removal": {**TABLE["certified-removal"], "delta": 0.6 / len(few.train_rows)}}
    assert fit("certified-removal", few, table).info["certified"]["holds"] is True
    found = fit("certified-removal", few, table).info["certified"]
    assert found["holds"] is None and "must be below 1/n" in found["why"]


def test_a_damaged_list_is_named(few):
    few.forgotten_dir.mkdir()
    (few.forgotten_dir / FILE).write_text("{}")
    with pytest.raises(DataError, match=r"certified\.json: cannot be read as a list of releases"):
        spent_before(few.forgotten_dir)
