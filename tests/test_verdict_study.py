"""Test one trial of the calibration study: no model that forgot nothing passes, and a finished trial is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.evaluation.measuring import probe_rows
from expunge.evaluation.rows import choose_rows
from expunge.results import verdict_table
from expunge.results.study_models import StudyRecipe, order_of, start, train
from expunge.results.study_page import page, summarise
from expunge.results.study_trials import (
    NEGATIVE,
    RETRAINED,
    Measure,
    ModelOutputs,
    forgotten,
    judge_trial,
    load_networks,
    train_trial,
)
from expunge.results.verdict_study import load, records, run_trials


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("study")
    run_trials(load("digits"), [0], home)
    return home


def test_no_control_is_passed_and_the_retrained_model_is_not_refuted(home):
    found = records(home, "digits")
    assert {r["candidate"] for r in found} == {RETRAINED, *NEGATIVE}
    for r in found:
        shown = [claim for claim, state in r["claims"].items() if state == "shown"]
        if r["candidate"] in NEGATIVE:
            assert not shown, r
        if r["size"] in ("1", "5"):
            assert set(r["claims"].values()) == {"cannot tell"}
    original = [r for r in found if r["candidate"] == "original" and r["size"] in ("600", "class")]
    assert all(r["claims"]["outputs"] == "refuted" for r in original)
    fresh = [r["claims"]["outputs"] for r in found if r["candidate"] == RETRAINED]
    assert "refuted" not in fresh
    text = page({"digits": summarise(found)})
    assert "| lookup list | 0 / 0 |" in text and "| `accuracy.forget` |" in text


@pytest.mark.slow
def test_a_finished_trial_is_not_run_again(home):
    files = {f: f.stat().st_mtime_ns for f in (home / "digits").iterdir()}
    run_trials(load("digits"), [0], home)
    assert {f: f.stat().st_mtime_ns for f in (home / "digits").iterdir()} == files


def test_stored_weights_are_judged_the_same_again(home):
    networks = load_networks(home / "digits" / "weights-0000.safetensors")
    again = list(judge_trial(load("digits"), 0, networks, ("100",)))
    stored = [r for r in records(home, "digits") if r["size"] == "100"]
    assert [r["claims"] for r in again] == [r["claims"] for r in stored]


def test_a_model_trained_in_a_batch_equals_one_trained_alone():
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(60, 5)).astype(np.float32)), torch.from_numpy(rng.integers(0, 3, 60))
    recipe = StudyRecipe(hidden=8, steps=20, batch_size=10, lr=1e-2)
    orders = torch.from_numpy(np.stack([order_of(np.arange(60), 200, np.random.default_rng(s)) for s in (1, 2, 3)]))
    together = train(start([1, 2, 3], 5, 3, 8), x, y, orders, recipe)
    alone = train(start([2], 5, 3, 8), x, y, orders[1:2], recipe)
    for a, b in zip(together.weights, alone.weights, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-5)


def test_requests_are_drawn_anew_per_trial_and_classes_in_turn():
    data = load("digits")
    assert not np.array_equal(forgotten(data, "20", 0), forgotten(data, "20", 1))
    assert set(data.y[forgotten(data, "class", 13)]) == {3}


def test_trained_weights_are_stored_whole_or_not_at_all(tmp_path):
    file = tmp_path / "weights.safetensors"
    data = load("digits")
    small = type(data)(data.name, data.x, data.y, data.train, StudyRecipe(4, 1, 8, 1e-3))
    train_trial(small, 0, file)
    assert [f.name for f in tmp_path.iterdir()] == [file.name] and len(load_networks(file)) == 2 + 6 * 4 + 6


def test_features_that_models_share_are_probed_once_with_the_same_values(monkeypatch):
    rng = np.random.default_rng(0)
    labels, part = np.arange(400) % 4, np.repeat(["retain", "forget", "test_retain"], [150, 100, 150])
    z, other = rng.normal(size=(2, 400, 6))
    logits = rng.normal(size=(2, 400, 4))
    rows = choose_rows(labels, part, z, 0)
    models = [ModelOutputs(logits[0], z, z), ModelOutputs(logits[1], z, z), ModelOutputs(logits[0], z, other)]
    alone = [Measure(rows)(m).alone for m in models]
    calls = []
    monkeypatch.setattr(
        "expunge.results.study_trials.probe_rows", lambda *given, run=probe_rows: (calls.append(1), run(*given))[1]
    )
    together = Measure(rows)
    for model, expected in zip(models, alone, strict=True):
        found = together(model).alone
        assert found.keys() == expected.keys()
        for path, values in found.items():
            np.testing.assert_array_equal(values, expected[path])
    assert len(calls) == 4  # There are two feature arrays and two kinds of probe.


def test_the_table_of_the_first_verdict_passes_nothing_that_forgot_nothing(home, capsys):
    verdict_table.main(["--data", "digits", "--trials", "1", "--home", str(home)])
    lines = dict(line.strip("| \n").split(" | ", 1) for line in capsys.readouterr().out.splitlines()[2:] if line)
    few = [text for what, text in lines.items() if "one retrained model" in what or "one other" in what]
    assert len(few) == 2 and all(text.count("cannot tell 1 of 1") == 3 for text in few)
    wrong = [what for what in lines if what.startswith(("the untouched", "a lookup list", "untouched backbone"))]
    assert len(wrong) == 3 and not any("shown" in lines[what].split(" | ")[1] for what in wrong)
    assert "may serve in 0 of 6" in lines["LEACE with `reference: skip`"]
    assert "a claim shown of 0 of 2" in lines["head refit on a backbone that saw the rows"]


@pytest.mark.parametrize("per_model", [False, True])
def test_the_gradients_are_those_of_autograd(per_model):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(60, 5)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 3, (2, 60)))
    y = y if per_model else y[0]
    recipe = StudyRecipe(hidden=8, steps=4, batch_size=20, lr=1e-2)
    orders = torch.from_numpy(np.stack([order_of(np.arange(60), 80, np.random.default_rng(s)) for s in (1, 2)]))
    begun = start([1, 2], 5, 3, 8)
    for i in range(2):
        network = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        own = [w[i].T.reshape(p.shape) for w, p in zip(begun.weights, network.parameters(), strict=True)]
        network.load_state_dict(dict(zip(network.state_dict(), own, strict=True)))
        optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
        for step, rows in enumerate(orders[i].split(20)):
            optimizer.param_groups[0]["lr"] = recipe.lr * (1 - step / 4)
            labels = (y[i] if per_model else y)[rows]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[rows]), labels).backward()
            optimizer.step()
        found = train(begun, x, y, orders, recipe).one(i)
        for w, p in zip(found.weights, network.parameters(), strict=True):
            torch.testing.assert_close(w[0].T.reshape(p.shape), p.detach(), rtol=1e-5, atol=1e-6)
