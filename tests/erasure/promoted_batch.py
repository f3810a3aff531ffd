"""A batch of requests in a small workspace, up to its promotion, so that tests can begin with the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import chdir
from datetime import date
from pathlib import Path

from expunge.data.dataset import Dataset
from expunge.erasure import soundness
from expunge.erasure.batches import Batch, Batches, Step
from expunge.erasure.intake import COLUMNS
from expunge.erasure.lifecycle import Lifecycle
from expunge.erasure.requests import ErasureRequest, Store, new_id
from expunge.erasure.selection import select
from expunge.erasure.states import State
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.ledger import Ledger
from expunge.report.tables import takes
from expunge.system.paths import FORGOTTEN
from tests.sweep import people_workspace

TODAY = date(2026, 3, 2)
RECEIVED = date(2026, 2, 20)
GONE = [2, 3, 17]
PRODUCT = {"model": "expunge-people", "version": "4", "method": "relearn", "claims": "outputs"}
METRIC = {"metric": "accuracy on forgotten rows", "claim": "outputs", "value": 0.91, "original": 1.0, "retrained": 0.9}
RUN = {
    "procedure": {
        "method": "relearn",
        "settings": {"cut": "stage1"},
        "versions": {"python": "3.11", "torch": "2.13.0"},
    },
    "source": {"git_commit": "0" * 40, "git_dirty": "false", "dvc_lock": "sha256:10c"},
    "batch_request": "sha256:ba7c4",
    "forgotten": {"train": 24, "left": 168},
    "validation": {"dataset": True, "features": True, "split": True},
    "metrics": [{**METRIC, "share": "10% [-5%, 20%]", "margin": "inside", "outcome": "passed"}],
    "claim": {
        "shown": "outputs",
        "utility": "kept",
        "claims": {"outputs": "shown", "features": "cannot tell", "backbone": "refuted", "exact": "cannot tell"},
        "says": "As a <retrained> one.",
        "reference": "1 retrained",
        "caution": takes({"references": {"retrained": {"seeds": 1}}}).strip(),
        "not_claimed": ["backbone: refuted."],
    },
}


def request_for(store: Store, root: Path, people: list[int], received: date = RECEIVED) -> ErasureRequest:
    """Return a verified request for all rows of `people`, whose list is in data/requests, but not tracked by DVC."""
    id_ = new_id(received)
    file = Path("data/requests") / f"{id_}.csv"
    names = [people_workspace.person(i) for i in people]
    (root / file).write_text("".join(f"{line}\n" for line in [*COLUMNS["subjects"], *names]))
    request = store.add(
        id_, "subjects", names, received=received, basis="GDPR Art. 17(1)(b)", who="ann", file=file.as_posix()
    )
    return store.verify(request.id, "ben", "letter seen", {"found": 10 * len(people)})


def promoted(
    store: Store, root: Path, people: Sequence[list[int]] = (GONE[:2], GONE[2:])
) -> tuple[Batch, list[ErasureRequest]]:
    """Return a batch at the step `collect` with a request for each group of people, and its requests.

    No process holds its lease.
    """
    requests = [request_for(store, root, group) for group in people]
    batches = Batches(store, "nightly")
    batch = batches.claim(TODAY)
    assert batch is not None
    each = {r.id: {"train": 8, "test": 2, "accuracy": {"original": 1.0, "product": 0.9}} for r in requests}
    with chdir(root):
        dataset = Dataset("data/dataset")
        chosen = select(store, requests, dataset, ForgottenRows(FORGOTTEN))
        rows = soundness.fingerprints(store, dataset, chosen.of)
    facts = {"product": PRODUCT, "run": {**RUN, "each": each}, "rows": rows}
    batch = batches.at(
        batch, Step.approval, facts, State.awaiting_approval, "verdict", event_facts={"claims": "outputs"}
    )
    approved = {"approved_by": "cem", "approved_because": "as good as retrained"}
    batch = batches.at(batch, Step.promote, approved, State.running, "approval", "as good as retrained", "cem")
    batch = batches.at(batch, Step.collect, {"promotion": "sha256:9", "instead_of": "3"})
    batches.release(batch)
    return batch, requests


def no_pipeline(stages: object = (), force: bool = False) -> None:
    raise AssertionError("nothing is to be computed any more")


def life(root: Path, store: Store) -> Lifecycle:
    return Lifecycle(store, Ledger(Path("ledger.jsonl")), who="nightly", pipeline=no_pipeline, log=lambda _: None)


def finish(root: Path, url: str) -> str:
    """Carry out the remaining steps of the batch, and return its state."""
    with chdir(root):
        store = Store.open(url)
        try:
            return life(root, store).advance(TODAY).state
        finally:
            store.engine.dispose()
