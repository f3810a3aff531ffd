"""Test successive requests on models that allow exact deletion: heads, layers above a cut, and shards of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.methods.fitting import fit
from expunge.models.checkpoint import digest_of_tensors, load_classifier
from expunge.reproduce.continued import LastProduct
from expunge.reproduce.rounds import HOME, PRODUCTS, requests_of, run_rounds
from expunge.reproduce.rounds_page import exact_claims
from expunge.system.files import read_manifest
from tests.exact_workspace import inputs, train

ROUNDS = [{"rows": 1, "seed": 1}, {"classes": [3]}, {"rows": 1, "seed": 3}]
SHARDED = {"shards": 4, "ridge-sharded": 3}
WHAT = {
    "ridge-sharded": "ridge: 3 of 3 heads changed",
    "head": "softmax: Newton-CG",
    "above": "above: trained again from public weights",
    "shards": "above: 1 of 4 shards trained again",
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("above", "shards"))) for kind in WHAT],
)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """Run all rounds in a workspace of digits, and yield the kind of training and the results, in its directory."""
    with chdir(tmp_path_factory.mktemp("rounds")):
        train(request.param)
        yield request.param, run_rounds(load_config(), ROUNDS)


def exact_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = found["methods"]["exact"]
    return entries


def test_every_exact_mode_answers_all_rounds(ran: tuple[str, Any]) -> None:
    training, found = ran
    entries = exact_of(found)
    assert all(entry["exact"]["holds"] is True for entry in entries), entries
    assert entries[-1]["exact"]["procedure"].startswith(WHAT[training])
    threes = [entry["requests"][1]["accuracy"] for entry in entries[1:]]
    assert threes == [0.0, 0.0]
    if training != "shards":  # one pass over the 350 rows of a shard learns too little
        assert found["methods"]["original"][-1]["requests"][1]["accuracy"] > 0.5 < entries[-1]["test"]
    changed = [entry["exact"]["changed"] for entry in entries]
    if training == "shards":  # it goes on from its last product, so that the third round trains one shard
        assert changed == [1, SHARDED[training], 1]
    elif training in SHARDED:
        assert changed == [1, SHARDED[training], SHARDED[training]]
    else:
        assert changed == [None] * len(ROUNDS)
    text = exact_claims(found)
    assert "`exact`: the claim holds after 3 of 3 rounds." in text and WHAT[training] in text
    assert ("Shards changed, by round: 1, " in text) == (training in SHARDED)


def test_shards_that_go_on_have_the_bits_of_all_requests_at_once(ran: tuple[str, Any]) -> None:
    """A product of another round, or a damaged one, is not continued from. The result is the same, with more work."""
    training, found = ran
    product = PRODUCTS / "exact"
    if training != "shards":
        assert not product.exists()
        return
    gone = np.sort(np.concatenate([r.rows for r in requests_of(Dataset("data/dataset"), ROUNDS)]))
    together = inputs(gone)
    at_once = fit("exact", together, {"exact": {}}).classifier
    assert at_once is not None
    digest = digest_of_tensors(at_once.state_dict())
    assert digest_of_tensors(load_classifier(product).state_dict()) == digest
    for number in (2, 3):  # a run that was killed in the second round has neither file
        Path(HOME / f"{number}-exact.json").unlink()
    again = exact_of(run_rounds(load_config(), ROUNDS))
    assert digest_of_tensors(load_classifier(product).state_dict()) == digest
    assert [e["exact"]["changed"] for e in again] == [1, 4, 1]
    assert [e["test"] for e in again] == [e["test"] for e in exact_of(found)]
    last = LastProduct(product, read_manifest(product)["round"], "next")
    assert last.start(together).model_dir == product
    assert LastProduct(product, "another round", "next").start(together) is together
    weights = product / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert last.start(together) is together
