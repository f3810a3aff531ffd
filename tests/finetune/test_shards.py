"""Tests of shards and slices above a cut: a deletion gives, bit for bit, what training without the rows gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.finetune.above import activations_alone
from expunge.finetune.relearn import Relearn
from expunge.finetune.shard_assignment import ShardAssignment, assign_shards
from expunge.finetune.shards import EarlierTraining, Engine, Trained, earlier_training, train_shards
from expunge.models.classifier import Classifier
from expunge.models.sharded import core_with_shards
from expunge.models.zoo import build
from expunge.system.errors import ConfigError, DataError

CUT, COUNT = "stage2", 240
RECIPE = Relearn(
    cut=CUT, epochs=1.0, batch_size=16, lr=0.1, targets="labels", precision="fp32", seed=5, start="public"
).get_params()


class Digits:
    """240 digits of the classes 0 to 3 for training, three each of 80 subjects, and one more for testing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        bunch = load_digits(n_class=4)
        self.arrays = {
            "images": np.round(bunch.images[: COUNT + 1] * (255 / 16)).astype(np.uint8)[..., None],
            "labels": bunch.target[: COUNT + 1],
            "ids": np.array([f"visit-{i:05d}" for i in range(COUNT + 1)]),
            "subjects": np.array([f"person-{i % 80}" for i in range(COUNT + 1)]),
            "split": np.array(["train"] * COUNT + ["test"]),
        }
        network = build("resnet-small", 4, (8, 8, 1), seed=3)
        self.public = directory / "public.safetensors"
        save_file({k: v.clone() for k, v in network.state_dict().items()}, self.public)
        self.dataset = self.without(np.empty(0, np.int64), "all")
        self.model = self.built()
        self.activations = activations_alone(self.model, self.dataset, CUT, directory / "work")
        self.labels = self.dataset.labels()[:COUNT]
        (directory / "forgotten").mkdir()
        (directory / "forgotten" / "key").write_bytes(bytes(range(32)))

    def built(self) -> Classifier:
        return build(
            "resnet-small", 4, (8, 8, 1), training="above", saw_forget_data=False, checkpoint=self.public, public=True
        )

    def without(self, gone: np.ndarray, name: str) -> Dataset:
        retained = np.setdiff1d(np.arange(COUNT + 1), gone)
        file = self.directory / f"{name}.npz"
        np.savez(file, **{k: v[retained] for k, v in self.arrays.items()})
        prepare("npz", self.directory / name, path=file, test_fraction=0.2, seed=0, raw_dir=self.directory / "raw")
        return Dataset(self.directory / name)

    def places(self, shards: int, slices: int) -> ShardAssignment:
        return assign_shards(self.dataset, np.arange(COUNT), self.directory / "forgotten", shards, slices)

    def trained(
        self,
        placed: ShardAssignment,
        rows: np.ndarray,
        earlier: Trained | None = None,
        engine: Engine | None = None,
    ) -> Trained:
        """Train from nothing, or from what an earlier training left."""
        retained = None
        if earlier is not None:
            known = earlier_training(earlier.classifier_, None)
            retained = EarlierTraining(known.parts, lambda s, r: earlier.states.get((s, r)) or known.state(s, r))
        return train_shards(self.model, self.activations, self.labels, rows, RECIPE, placed, retained, engine)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(tmp_path_factory.mktemp("shards"))


def same(one: Trained, two: Trained) -> bool:
    """Return whether the weights, the description and the states after each step are equal."""
    a, b = one.classifier_.state_dict(), two.classifier_.state_dict()
    assert a.keys() == b.keys() and one.states.keys() == two.states.keys()
    steps = all(torch.equal(v, two.states[k][name]) for k, state in one.states.items() for name, v in state.items())
    return steps and all(torch.equal(a[k], b[k]) for k in a) and one.classifier_.card == two.classifier_.card


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 3])
def test_a_dataset_that_never_had_the_rows_gives_the_same(digits: Digits, slices: int) -> None:
    """The other dataset has its own ids, labels and activations, and places its rows with the same key."""
    placed = digits.places(3, slices)
    removed = np.flatnonzero(np.isin(digits.arrays["subjects"][:COUNT], ["person-7", "person-31"]))
    whole = digits.trained(placed, np.arange(COUNT))
    deleted = digits.trained(placed, np.setdiff1d(np.arange(COUNT), removed), whole)
    other = digits.without(removed, f"less-{slices}")
    model, rows = digits.built(), np.arange(other.rows - 1)
    activations = activations_alone(model, other, CUT, digits.directory / f"work-{slices}")
    own = assign_shards(other, rows, digits.directory / "forgotten", 3, slices)
    again = train_shards(model, activations, other.labels()[rows], rows, RECIPE, own)
    assert same(deleted, again) and not same(deleted, whole)
    assert set(deleted.again) == set(placed.shard[removed].tolist()) and set(again.again) == {0, 1, 2}
    first = {s: int(placed.slice[removed][placed.shard[removed] == s].min()) for s in deleted.again}
    assert deleted.again == first  # each shard from the earliest slice that held a deleted row


def test_shards_that_hold_none_of_the_rows_are_not_trained(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = digits.places(4, 1)
    whole = digits.trained(placed, np.arange(COUNT))
    removed = np.flatnonzero(placed.shard == 2)[:2]
    trained: list[int] = []
    fit = Relearn.fit
    monkeypatch.setattr(Relearn, "fit", lambda self, *a, **k: trained.append(len(a[3])) or fit(self, *a, **k))
    digits.trained(placed, np.setdiff1d(np.arange(COUNT), removed), whole)
    assert trained == [int((placed.shard == 2).sum()) - 2]


@pytest.mark.parametrize(
    "what",
    ["a class", "a shard"]
    + [
        pytest.param(w, marks=pytest.mark.slow)
        for w in ("a class of a shard", "a slice", "nearly a shard", "everybody")
    ],
)
def test_what_a_request_can_empty(digits: Digits, what: str) -> None:
    placed = digits.places(3, 2)
    in_shard, labels = placed.shard == 1, digits.labels
    removed = {
        "a class of a shard": in_shard & (labels == 2),
        "a class": labels == 2,
        "a shard": in_shard,
        "a slice": in_shard & (placed.slice == 0),
        "nearly a shard": in_shard & (np.arange(COUNT) != np.flatnonzero(in_shard)[3]),
        "everybody": np.isin(np.arange(COUNT), [np.flatnonzero(placed.shard == s)[0] for s in range(3)]),
    }[what]
    whole = digits.trained(placed, np.arange(COUNT))
    left = np.flatnonzero(~removed)
    deleted = digits.trained(placed, left, whole)
    assert same(deleted, digits.trained(placed, left))
    head = deleted.classifier_.head.weight.detach().reshape(4, 3, 4)
    own = head[torch.arange(4), :, torch.arange(4)]  # the share of each shard in the answer for a class
    assert torch.allclose(own.sum(1), torch.ones(4)) and head.count_nonzero() == own.count_nonzero()
    if what in ("a shard", "nearly a shard"):
        assert not own[:, 1].any() and torch.equal(own[:, 0], own[:, 2])
    if what == "a class of a shard":
        assert own[2].tolist() == [0.5, 0.0, 0.5] and own[1, 1] == pytest.approx(1 / 3)
    if what == "everybody":
        assert set(deleted.again) == {0, 1, 2}
    images = digits.dataset.images(left)
    with torch.no_grad():
        answers = deleted.classifier_(images).argmax(1).numpy()
    assert what != "a class" or not (answers == 2).any()


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 3), st.integers(1, 2),
    st.lists(st.sets(st.integers(0, 79), min_size=1, max_size=12), min_size=2, max_size=2),
)  # fmt: skip
def test_requests_in_any_order_end_at_the_same_bits(
    digits: Digits, shards: int, slices: int, requests: list[set[int]]
) -> None:
    placed = digits.places(shards, slices)
    whole = digits.trained(placed, np.arange(COUNT))
    ends = []
    for order in (requests, requests[::-1]):
        at, left = whole, np.arange(COUNT)
        for people in order:
            left = left[~np.isin(left % 80, list(people))]
            at = digits.trained(placed, left, at)
        ends.append(at)
    assert same(*ends) and same(ends[0], digits.trained(placed, left))


def test_weights_that_are_not_those_recorded_are_trained_again(digits: Digits) -> None:
    placed = digits.places(2, 2)
    whole = digits.trained(placed, np.arange(COUNT))
    fine = digits.trained(placed, np.arange(COUNT))
    core = core_with_shards(fine.classifier_)
    assert core is not None
    core.uppers[1].head.bias.data[0] += 1e-3  # as if somebody had fine-tuned it
    del fine.states[(0, 0)]  # as if this state were lost
    again = digits.trained(placed, np.arange(COUNT), fine)
    assert again.again == {0: 0, 1: 1} and same(again, whole)


def test_no_rows_are_refused(digits: Digits) -> None:
    with pytest.raises(DataError, match=r"none of the 3 shards has the 2 rows"):
        digits.trained(digits.places(3, 1), np.empty(0, np.int64))


def test_a_row_is_seen_as_often_with_slices_as_without(digits: Digits) -> None:
    """As in SISA, R steps of 2 e / (R + 1) passes each look at about as many rows as e passes over all of them."""
    looked = {}
    for slices in (1, 4):
        result = digits.trained(digits.places(1, slices), np.arange(COUNT))
        looked[slices] = {int(p["slice"]) for p in result.history_}
    assert looked == {1: {0}, 4: {0, 1, 2, 3}}


@pytest.mark.slow
def test_ray_tasks_give_the_same_bytes(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster has two processes on this machine. A request starts tasks only for the shards that it touches."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # Ray would require a token here, and from all later tests
    from expunge.finetune.ray_shards import on_ray

    placed, engine = digits.places(4, 2), on_ray(None, 2)
    on_cluster = digits.trained(placed, np.arange(COUNT), engine=engine)
    alone = digits.trained(placed, np.arange(COUNT))
    assert same(on_cluster, alone) and on_cluster.again == alone.again == dict.fromkeys(range(4), 0)
    assert [h["loss"] for h in on_cluster.history_] == [h["loss"] for h in alone.history_]
    assert "4 shards to train, at most 2 Ray tasks at a time" in capsys.readouterr().err
    for result, name in ((on_cluster, "one"), (alone, "two")):
        (tmp_path / name).mkdir()
        result.save_steps(tmp_path / name)
    assert {p.name: p.read_bytes() for p in (tmp_path / "one/steps").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "two/steps").iterdir()
    }

    left = np.setdiff1d(np.arange(COUNT), np.flatnonzero(placed.shard == 1)[:2])
    deleted = digits.trained(placed, left, on_cluster, engine)
    assert same(deleted, digits.trained(placed, left)) and set(deleted.again) == {1}
    assert "1 shards to train, at most 1 Ray tasks at a time" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"extract\.workers: 3 workers need as many CPUs, but the cluster has 2"):
        _too_many(digits, placed)
    with pytest.raises(ConfigError, match="no Ray cluster answers at 'nowhere'"):
        digits.trained(placed, np.arange(COUNT), engine=on_ray("nowhere", None))


def _too_many(digits: Digits, placed: ShardAssignment) -> None:
    from ray.cluster_utils import Cluster

    from expunge.finetune.ray_shards import on_ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        digits.trained(placed, np.arange(COUNT), engine=on_ray(cluster.address, 3))
    finally:
        cluster.shutdown()
