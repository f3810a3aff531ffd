"""Tests that settings are chosen on held-out rows, among fits that never saw these rows."""

import dataclasses

import numpy as np
import pytest
import torch

from expunge.core import Moments
from expunge.data.split import Split
from expunge.methods.fitting import fit
from expunge.methods.selection import CandidateScore, best, candidates, choose_settings, judge
from expunge.system.errors import CollapseError, ConfigError


def test_candidates_are_every_combination_of_the_listed_values():
    assert candidates({"a": [1, 2], "b": ["x"]}, "fit.m") == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    with pytest.raises(ConfigError, match=r"fit\.m\.choose\.a is 3; list the values"):
        candidates({"a": 3}, "fit.m")


def test_validation_rows_are_a_share_of_forgotten_and_of_retained_rows(finished):
    split = Split(finished / "data/split")
    for part in ("retain", "forget"):
        rows = split.rows(part)
        assert split.validation_mask[rows].sum() == len(rows) // 10
    assert (
        not split.validation_mask[split.rows("test_retain")].any()
        and not split.validation_mask[split.rows("test_forget")].any()
    )


def test_fits_of_the_selection_never_see_validation_rows(fit_inputs):
    """Moments, class counts and class means must equal those that are computed directly from the other rows."""
    seen = []

    def fitted(part, settings):
        seen.append(part)
        return fit("loft", part, {"loft": {"rank": 16}})

    choose_settings("loft", fit_inputs, {"rank": [16]}, fitted, 0.03)
    (part,) = seen
    rows = np.setdiff1d(fit_inputs.retain_rows, fit_inputs.validation_rows)
    z = torch.from_numpy(fit_inputs.store.z(rows))
    torch.testing.assert_close(part.retain.cov(), Moments.of(z).cov(), rtol=1e-8, atol=1e-10)
    assert part.retain.n == len(rows) and not np.isin(part.forget_rows, fit_inputs.validation_rows).any()
    train = np.concatenate([rows, part.forget_rows])
    labels, z = fit_inputs.labels[train], fit_inputs.store.z(train).astype(np.float64)
    for c in range(10):
        assert part.class_counts[c] == (labels == c).sum()
        np.testing.assert_allclose(part.class_means[c], z[labels == c].mean(axis=0), atol=1e-9)


def test_the_best_is_taken_and_the_record_says_how_all_fared(fit_inputs):
    table = {"loft": {"choose": {"rank": [1, 32]}, "solver": "exact"}}
    unlearned = fit("loft", fit_inputs, table)
    record = unlearned.info["chosen"]
    by_rank = {c["settings"]["rank"]: c for c in record["candidates"]}
    assert by_rank[1]["retained_lost"] > by_rank[32]["retained_lost"] + 0.1  # one direction cannot hold nine classes
    assert record["taken"] == {"rank": 32} and unlearned.info["rank"] == 32
    assert unlearned.map(fit_inputs.z_retain[:5]).equal(
        fit("loft", fit_inputs, {"loft": {"rank": 32}}).map(fit_inputs.z_retain[:5])
    )


def test_scores_of_candidates_equal_a_computation_by_hand():
    y, gone_y = torch.tensor([0, 1, 1]), torch.tensor([2, 2])
    before = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 2.0, 0]])
    after = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0]])
    judged = judge({}, lambda: (after, torch.tensor([[0, 0, 3.0], [3.0, 0, 0]])), (before, gone_y), y)
    e = np.exp(3.0)
    assert judged.forgotten_left == pytest.approx((e / (e + 2) + 1 / (e + 2)) / 2)
    assert judged.retained_lost == pytest.approx(1 / 3)
    p = torch.softmax(before[1], 0)
    assert judged.retained_kl == pytest.approx(float((p[1] - p[0]) * 2.0 / 3))
    refused = judge({}, lambda: (_ for _ in ()).throw(CollapseError("flat")), (before, gone_y), y)
    assert refused.refused == "flat"


def test_requests_for_rows_take_the_first_value_of_each_setting(fit_inputs):
    rows = dataclasses.replace(fit_inputs, forget_classes=[])
    record = fit("loft", rows, {"loft": {"choose": {"rank": [16, 32]}}}).info["chosen"]
    assert record["taken"] == {"rank": 16} and "names rows" in record["why_first"]


@pytest.mark.slow
def test_settings_of_methods_that_change_the_network_are_chosen_by_its_own_logits(fit_inputs):
    table = {"ssd": {"choose": {"alpha": [2.0, 20.0, 1e9]}, "max_drop": 1.0}}
    unlearned = fit("ssd", fit_inputs, table)
    low, high, none = unlearned.info["chosen"]["candidates"]
    assert low["retained_lost"] > high["retained_lost"] and "selects no weight" in none["refused"]
    least = min((low, high), key=lambda c: c["forgotten_left"] + c["retained_lost"])
    assert unlearned.classifier is not None and unlearned.info["chosen"]["taken"] == least["settings"]
    held = np.intersect1d(fit_inputs.forget_rows, fit_inputs.validation_rows)
    part = dataclasses.replace(
        fit_inputs,
        retain_rows=np.setdiff1d(fit_inputs.retain_rows, fit_inputs.validation_rows),
        forget_rows=np.setdiff1d(fit_inputs.forget_rows, held),
        left_out=fit_inputs.validation_rows,
    )
    network = fit("ssd", part, {"ssd": {"alpha": 20.0, "max_drop": 1.0}}).classifier
    with torch.no_grad():
        shares = torch.softmax(network(fit_inputs.dataset.inputs(held)).double(), 1)
    left = shares[np.arange(len(held)), fit_inputs.labels[held]].mean()
    assert high["forgotten_left"] == pytest.approx(float(left), rel=1e-5)


def test_a_candidate_that_the_guard_would_refuse_is_taken_only_if_all_would_be():
    scores = [CandidateScore({"a": 1}, 0.0, 0.08, 0.1), CandidateScore({"a": 2}, 0.14, 0.01, 0.1)]
    assert best(scores, "fit.m", 0.03)[0] == {"a": 2}
    assert best(scores, "fit.m", 0.005)[0] == best(scores, "fit.m", 0.1)[0] == {"a": 1}


def test_a_candidate_whose_logits_are_not_finite_is_refused():
    nan = torch.full((2, 3), float("nan"))
    judged = judge({}, lambda: (nan, nan), (torch.zeros(2, 3), torch.tensor([1, 1])), torch.tensor([0, 2]))
    assert judged.refused == "its logits are not finite"
