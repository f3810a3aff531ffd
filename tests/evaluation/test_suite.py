"""Metamorphic tests of the whole evaluation on Gaussian classes, of which one is forgotten."""

from __future__ import annotations

import json
import time
from functools import cache
from typing import Any

import numpy as np
import pytest

from expunge.evaluation import gates, measuring
from expunge.evaluation.claims import verdict_of
from expunge.evaluation.measuring import Outputs
from expunge.evaluation.rows import choose_rows
from expunge.evaluation.suite import controls_of, evaluate

CLASSES, DIM, ROWS, GONE = 5, 12, 4000, 2


class World:
    """Train and test rows of Gaussian classes, and models that differ in the class they lack and in their seed."""

    def __init__(self, whole_class: bool = True) -> None:
        rng = np.random.default_rng(0)
        self.centres = rng.normal(size=(CLASSES, DIM)) * 0.7
        self.labels = rng.integers(0, CLASSES, ROWS)
        self.x = self.centres[self.labels] + rng.normal(size=(ROWS, DIM))
        train = np.arange(ROWS) < ROWS * 3 // 4
        removed = self.labels == GONE if whole_class else rng.random(ROWS) < 0.2
        self.forget = train & removed
        self.part = np.where(train, np.where(removed, "forget", "retain"), "test_retain")
        if whole_class:
            self.part[~train & removed] = "test_forget"
        self.original = self.model(1, np.zeros(CLASSES))
        without = np.where(np.arange(CLASSES) == GONE, -12.0, 0.0) if whole_class else np.zeros(CLASSES)
        self.retrained = [self.model(s, without) for s in (2, 3, 4)]

    def model(self, seed: int, bias: np.ndarray) -> Outputs:
        noise = np.random.default_rng(seed).normal(size=(ROWS, DIM)) * 0.03
        z = (self.x + noise).astype(np.float32)
        logits = z @ self.centres.T - 0.5 * (self.centres**2).sum(axis=1) + bias
        return Outputs(logits.astype(np.float32), z)

    def evaluate(self, candidate: Outputs, retrained: list[Outputs], seed: int = 0) -> dict[str, Any]:
        return evaluate(candidate, self.original, retrained, self.labels, self.part, seed)

    @cache  # noqa: B019 (the world lives as long as the module)
    def controls(self, count: int) -> dict[str, Any]:
        return controls_of(self.original, self.retrained[:count], self.labels, self.part) if count else {}

    def judge(self, candidate: Outputs, count: int = 3) -> dict[str, Any]:
        mine = self.evaluate(candidate, self.retrained[:count])
        return verdict_of(mine, self.controls(count), count, clean_references=True)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def failed(result: dict[str, Any]) -> set[str]:
    return {g["path"] for g in result["gates"] if g["refuted"]}


def test_identical_models_are_no_distance_apart(world: World) -> None:
    got = world.evaluate(world.retrained[0], [world.retrained[0]])
    for name in ("forget", "test"):
        divergence = {k: got["divergence"][name][k] for k in ("kl", "js", "agreement", "activation_distance")}
        assert divergence == {"kl": 0.0, "js": 0.0, "agreement": 1.0, "activation_distance": 0.0}
    assert got["gap"] == {"mean": 0.0, "tow": 1.0}
    assert got["representation"]["cka"]["retrained"] == 1.0
    assert got["membership"]["rmia_auc"] == 0.5


def test_a_further_retrained_model_is_not_refuted(world: World) -> None:
    fresh = world.model(9, np.where(np.arange(CLASSES) == GONE, -12.0, 0.0))
    result = world.judge(fresh)
    assert failed(result) == set() and result["utility"] == "kept" and result["control"] is None


@pytest.mark.slow
def test_the_chance_of_the_fit_widens_the_intervals(world: World) -> None:
    without = np.where(np.arange(CLASSES) == GONE, -12.0, 0.0)
    fresh = world.model(9, without)
    wild = [world.model(s, without + np.random.default_rng(s).normal(size=CLASSES)) for s in (10, 11)]

    def gates(other_fits: list[Outputs]) -> dict[str, dict[str, Any]]:
        block = evaluate(fresh, world.original, world.retrained, world.labels, world.part, other_fits=other_fits)
        return {g["path"]: g for g in block["judged"]["gates"]}

    once, same, spread = gates([]), gates([fresh, fresh]), gates(wild)
    assert same == once
    path = "divergence.forget.kl"
    kl = [evaluate(m, world.original, world.retrained, world.labels, world.part) for m in (fresh, *wild)]
    by_hand = np.std([block["divergence"]["forget"]["kl"] for block in kl], ddof=1)
    assert spread[path]["fit_spread"] == pytest.approx(float(by_hand)) and once[path]["fit_spread"] == 0.0
    assert spread[path]["value"] == once[path]["value"] and once[path]["power"] and once[path]["passed"]
    assert not spread[path]["power"]  # These values depend mostly on chance in the fit.


@pytest.mark.parametrize("count", [2, *(pytest.param(few, marks=pytest.mark.slow) for few in (0, 1))])
def test_with_too_few_retrained_models_no_claim_can_be_told(world: World, count: int) -> None:
    for candidate in (world.original, world.retrained[0]):
        result = world.judge(candidate, count)
        assert set(result["claims"].values()) == {"cannot tell"} and "3 are needed" in result["reasons"]["outputs"]


def test_the_original_is_refuted_and_recognised_as_a_control(world: World) -> None:
    result = world.judge(world.original)
    assert result["claims"]["outputs"] == "refuted" and result["control"] == "original"
    assert "accuracy.forget" in failed(result)


def test_hiding_the_class_is_recognised_as_a_control_and_shows_nothing(world: World) -> None:
    bias = np.where(np.arange(CLASSES) == GONE, -12.0, 0.0).astype(np.float32)
    result = world.judge(Outputs(world.original.logits + bias, world.original.z))
    assert result["control"] == "logit mask" and "shown" not in result["claims"].values()


@pytest.mark.slow
def test_flattened_outputs_on_forgotten_inputs_fail_as_over_forgetting(world: World) -> None:
    good = world.retrained[0]
    logits = np.where((world.labels == GONE)[:, None], 0.01 * good.logits, good.logits)
    result = world.judge(Outputs(logits, good.z))
    assert result["claims"]["outputs"] != "shown"


@pytest.mark.slow
def test_shuffled_features_do_not_pass_where_they_lie(world: World) -> None:
    good = world.retrained[0]
    silent = np.random.default_rng(0).permutation(good.z)
    assert world.judge(Outputs(good.logits, good.z, silent))["claims"]["features"] != "shown"
    assert world.judge(Outputs(good.logits, silent, good.z))["claims"]["backbone"] != "shown"


@pytest.mark.slow
def test_shuffling_the_rows_changes_nothing(world: World) -> None:
    order = np.random.default_rng(1).permutation(ROWS)

    def shuffled(m: Outputs) -> Outputs:
        return Outputs(m.logits[order], m.z[order], None if m.z_prime is None else m.z_prime[order])

    candidate = Outputs(world.original.logits, world.original.z, world.original.z * 0.5)
    expected = world.evaluate(candidate, world.retrained[:2])
    got = evaluate(
        shuffled(candidate),
        shuffled(world.original),
        [shuffled(r) for r in world.retrained[:2]],
        world.labels[order],
        world.part[order],
    )
    assert got == expected


@pytest.mark.slow
def test_the_block_is_json_without_nan_and_deterministic(world: World) -> None:
    a, b = (json.dumps(world.evaluate(world.original, world.retrained[:1]), allow_nan=False) for _ in range(2))
    assert a == b


@pytest.mark.slow
def test_relearning_is_instant_for_the_original_and_not_for_the_mask(world: World) -> None:
    masked = world.original.logits.copy()
    masked[:, GONE] = -np.inf
    relearn = [
        world.evaluate(m, [])["relearn"] for m in (world.original, Outputs(masked, world.original.z, world.original.z))
    ]
    assert relearn[0]["steps"] == 0
    assert relearn[1]["steps"] is None or relearn[1]["steps"] > 0
    assert relearn[0]["prototype_samples"] == relearn[1]["prototype_samples"]


def test_relearning_and_class_geometry_are_gates_with_the_values_that_the_block_shows(world: World) -> None:
    candidate = Outputs(world.original.logits, world.original.z, world.original.z * 0.5)
    block = world.evaluate(candidate, world.retrained)
    blocks = {g["path"]: g for g in block["judged"]["gates"]}
    curve = block["relearn"]["curve"]
    assert blocks["relearn.area"]["claim"] == "features" and blocks["membership.class_geometry"]["claim"] == "outputs"
    assert blocks["relearn.area"]["value"] == block["relearn"]["area"] == pytest.approx(float(np.mean(curve)))
    assert blocks["membership.class_geometry"]["value"] == block["membership"]["class_geometry"]
    random_rows = World(whole_class=False)
    paths = {g["path"] for g in random_rows.judge(random_rows.original)["gates"]}
    assert "relearn.area" in paths and "membership.class_geometry" not in paths


@pytest.mark.slow
def test_a_control_learns_again_from_its_own_answers(world: World) -> None:
    """The mask relearns from its own masked logits, although its features are the original's.

    Class geometry is equal for both, because it ignores the forgotten class's column.
    """
    area = {name: {g["path"]: g["value"] for g in found} for name, found in world.controls(3).items()}
    assert area["logit mask"]["relearn.area"] < area["original"]["relearn.area"]
    assert area["logit mask"]["membership.class_geometry"] == area["original"]["membership.class_geometry"]
    masked = np.array(world.original.logits, np.float64)
    masked[:, GONE] = -1e4
    block = world.evaluate(Outputs(masked, world.original.z), world.retrained)
    assert area["logit mask"]["relearn.area"] == block["relearn"]["area"]


def test_random_rows_are_probed_for_membership(world: World) -> None:
    rows = World(whole_class=False)
    got = rows.evaluate(rows.original, rows.retrained[:1])
    assert got["representation"]["target"] == "forgotten or never seen"
    assert got["representation"]["probe_z"] == pytest.approx(0.5, abs=0.1)
    assert got["accuracy"]["test_forget"] is None
    assert got["membership"]["class_geometry"] is None
    assert got["membership"]["loss_auc"] == pytest.approx(0.5, abs=0.06)
    assert got["relearn"]["prototype_samples"] is None


def test_memorised_rows_show_in_every_attack_on_random_forgetting() -> None:
    rows = World(whole_class=False)
    m = rows.original
    leaking = m.logits + 6.0 * np.eye(CLASSES)[rows.labels] * np.isin(rows.part, ["forget", "retain"])[:, None]
    got = rows.evaluate(Outputs(leaking.astype(np.float32), m.z), rows.retrained[:1])["membership"]
    assert got["loss_auc"] > 0.7
    assert got["rmia_auc"] > 0.7
    assert got["mia_lr_member"] > 0.6
    assert got["retain_loss_auc"] > 0.7


@pytest.mark.parametrize("missing", ["forget", "test_forget", "test_retain", "retain"])
def test_a_part_without_rows_gives_none_and_no_error(world: World, missing: str) -> None:
    keep = world.part != missing

    def cut(m: Outputs) -> Outputs:
        return Outputs(m.logits[keep], m.z[keep])

    got = evaluate(
        cut(world.original), cut(world.original), [cut(world.retrained[0])], world.labels[keep], world.part[keep]
    )
    assert got["accuracy"][missing] is None
    json.dumps(got, allow_nan=False)


def test_one_seeded_plan_serves_all_models_and_its_halves_do_not_overlap(world: World) -> None:
    plan = choose_rows(world.labels, world.part, world.original.z, seed=3)
    again = choose_rows(world.labels, world.part, world.original.z, seed=3)
    other = choose_rows(world.labels, world.part, world.original.z, seed=4)
    assert plan.probe_train is not None and plan.probe_test is not None
    assert again.probe_train is not None and other.probe_train is not None
    np.testing.assert_array_equal(plan.probe_train[0], again.probe_train[0])
    assert not np.array_equal(plan.probe_train[1], other.probe_train[1])
    learned, scored = np.concatenate(plan.probe_train), np.concatenate(plan.probe_test)
    assert not np.intersect1d(learned, scored).size
    assert (world.labels[plan.probe_test[0]] == GONE).all() and (world.labels[plan.probe_test[1]] != GONE).all()
    assert plan.whole_classes


def test_wrong_input_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="candidate model's outputs must have 4000 rows"):
        world.evaluate(Outputs(world.original.logits[:5], world.original.z), [])
    with pytest.raises(ValueError, match="unknown part 'train'"):
        choose_rows(np.zeros(2, int), np.array(["train", "forget"]), np.zeros((2, 1)), 0)


@pytest.mark.slow
def test_seventy_thousand_rows_take_less_than_a_few_minutes() -> None:
    rng = np.random.default_rng(0)
    n, d, classes = 70_000, 128, 10
    labels, centres = rng.integers(0, classes, n), rng.normal(size=(classes, d)).astype(np.float32) * 0.3
    part = np.where(np.arange(n) < 60_000, "train", "test")
    part = np.where(
        part == "train", np.where(labels == 5, "forget", "retain"), np.where(labels == 5, "test_forget", "test_retain")
    )
    z = [centres[labels] + rng.standard_normal((n, d), dtype=np.float32) for _ in range(3)]
    models = [Outputs(x @ centres.T, x) for x in z]
    start = time.process_time()
    evaluate(Outputs(models[0].logits, models[0].z, models[0].z * 0.5), models[1], models[2:], labels, part)
    assert time.process_time() - start < 180  # ten on an idle machine


@pytest.mark.slow
def test_probes_at_every_stage_are_gates_of_the_backbone_and_let_it_be_shown(world: World) -> None:
    """The probe of the added stage is right on all rows of the original and on few rows of retrained models."""
    rng = np.random.default_rng(1)

    def with_stage(model: Outputs, share: float) -> Outputs:
        success = rng.permutation(np.arange(800) < share * 800).astype(np.float64)
        return Outputs(model.logits, model.z, model.z_prime, {"representation.stages.probe_1": success})

    original, retrained = with_stage(world.original, 1.0), [with_stage(r, 0.05) for r in world.retrained]
    controls = controls_of(original, retrained, world.labels, world.part)

    def judged(candidate: Outputs) -> dict[str, Any]:
        return verdict_of(
            evaluate(candidate, original, retrained, world.labels, world.part), controls, 3, clean_references=True
        )

    clean = judged(with_stage(world.model(9, np.where(np.arange(CLASSES) == GONE, -12.0, 0.0)), 0.05))
    assert next(g for g in clean["gates"] if g["path"].endswith("probe_1"))["passed"]
    assert clean["claims"]["backbone"] == "shown"
    assert judged(original)["claims"]["backbone"] == "refuted"
    assert "every stage" not in clean["reasons"]["backbone"]
    without = world.judge(world.retrained[0])
    assert without["claims"]["backbone"] != "shown"


@pytest.mark.slow
def test_alignment_refutes_the_original_and_shows_nothing(world: World) -> None:
    gates = {g["path"]: g for g in world.judge(world.original)["gates"]}
    for path in ("representation.alignment_z", "representation.alignment_z_prime"):
        assert not gates[path]["power"] and gates[path]["rows_needed"] is None
    block = world.evaluate(Outputs(world.original.logits, world.original.z, world.original.z[:, :4]), world.retrained)
    assert 0 < block["representation"]["alignment_z"] < block["representation"]["alignment_z_prime"] < 1
    assert "membership.cmia" in gates
    rows = World(whole_class=False)
    assert "membership.cmia" not in {g["path"] for g in rows.judge(rows.original)["gates"]}


@pytest.mark.slow
def test_features_that_did_not_move_are_measured_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that replaces only the head leaves z unchanged.

    The block is the same whether the mapped features are a copy of z or are not given at all.
    """
    measured = []

    def counted(z: Any, rows: Any) -> Any:
        measured.append(z)
        return gates.aligned(z, rows)

    original = world.original
    same = Outputs(original.logits[:, ::-1].copy(), original.z.copy(), original.z.copy())
    moved = Outputs(same.logits, original.z, original.z + 1)
    expected = evaluate(Outputs(same.logits, original.z), original, [], world.labels, world.part)
    monkeypatch.setattr(measuring, "aligned", counted)
    assert evaluate(same, original, [], world.labels, world.part) == expected and len(measured) == 1
    evaluate(moved, original, [], world.labels, world.part)
    assert len(measured) == 3
