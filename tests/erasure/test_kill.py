"""Tests that a completion may be killed at any moment: the next process continues, and no step is lost or repeated.

The moments are drawn with a seed from the file events and database statements of an undisturbed completion.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from expunge.data.dataset import Dataset
from expunge.erasure.certificate import verify
from expunge.erasure.database import EVENTS, PERSONAL, transaction
from expunge.erasure.requests import Store
from expunge.erasure.states import State
from expunge.ledger.keys import public_key
from expunge.ledger.ledger import Ledger
from expunge.system.errors import ExpungeError
from expunge.system.files import digest_of
from tests import killing
from tests.erasure.promoted_batch import GONE, finish, promoted
from tests.sweep import people_workspace

ROUNDS = 30


def url_of(root: Path) -> str:
    return f"sqlite:///{root / 'records/requests.db'}"


def in_a_child(root: Path, until: int) -> tuple[int, int]:
    """Run a completion in a child process that is killed at its `until`-th event (0: never).

    Statements of the database count as events, too. Returns the exit status and the number of events.
    """

    def complete() -> None:
        assert finish(root, url_of(root)) == "completed"

    return killing.in_a_child(complete, until, lambda _, path: str(root) in os.path.abspath(path))


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """Return a workspace with two requests that are approved and promoted. Nothing is erased yet."""
    root = people_workspace.workspace(tmp_path_factory.mktemp("kill") / "workspace", [5])
    store = Store.open(url_of(root))
    promoted(store, root)
    with chdir(root):
        store.publish(Ledger(Path("ledger.jsonl")))
    store.engine.dispose()
    return root


@pytest.fixture(scope="module")
def events(before, tmp_path_factory) -> int:
    """Return the number of events in an undisturbed completion."""
    root = Path(shutil.copytree(before, tmp_path_factory.mktemp("kill") / "undisturbed"))
    status, count = in_a_child(root, 0)
    assert status == 0 and count > 300
    check(root, before)
    return count


def check(root: Path, before: Path, url: str | None = None) -> None:
    """Assert everything that must hold after a completion, however often it was interrupted.

    `url`: the request store; that in the workspace if omitted.
    """
    store = Store.open(url or url_of(root))
    requests = store.all()
    assert [r.state for r in requests] == [State.completed] * 2 and all(r.told for r in requests)
    # Store and ledger have every event exactly once. The chain is whole and its head is signed.
    ledger, key = Ledger(root / "ledger.jsonl"), public_key(root)
    assert ledger.verify(store.entries()) == len(ledger.entries())
    names = [e.facts["event"] for e in ledger.entries()]
    with transaction(store.engine) as c:
        rows = c.execute(EVENTS.select()).all()
        assert not any(c.execute(table.select()).all() for table in PERSONAL)
    assert sorted(names) == sorted(f"{r.about}/{r.number}" for r in rows) and len(set(names)) == len(names)
    kinds = Counter(e.kind for e in ledger.entries())
    assert kinds == {
        "intake": 2, "verification": 2, "scheduling": 2, "run": 2, "verdict": 2, "approval": 2, "sweep": 1,
        "completion": 2,
    }  # fmt: skip
    for request in requests:
        path = root / "records/certificates" / request.id / "certificate.json"
        body = verify(path, key)
        assert (
            body["sweep"]["left"] == []
            and {"where": "data/dataset", "what": "rows", "count": 30, "kind": "erased"} in body["sweep"]["found"]
        )
        assert store.events(request.id)[-1].facts["certificate"] == digest_of(body)
    # The requested rows are gone, all others are kept, and no list of a request is left.
    old, new = Dataset(before / "data/dataset"), Dataset(root / "data/dataset")
    erased = {people_workspace.person(i) for i in GONE}
    others = [
        i
        for i, s in zip(old.sample_ids(), old.table(["subject"])["subject"].to_pylist(), strict=True)
        if s not in erased
    ]
    assert new.sample_ids() == others and new.rows == old.rows - 30
    left = [p for p in root.rglob("*") if p.is_file() and any(g.encode() in p.read_bytes() for g in erased)]
    assert (
        left == []
        and not list((root / "data/requests").glob("R-*"))
        and not list((root / ".expunge/erasure").iterdir())
    )
    store.engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_killed_at_any_moment(seed, before, events, tmp_path):
    root = Path(shutil.copytree(before, tmp_path / "workspace"))
    rng = np.random.default_rng(seed)
    for _ in range(int(rng.integers(1, 4))):  # up to three processes are killed one after another
        status, _ = in_a_child(root, int(rng.integers(1, events + 1)))
        if not os.WIFSIGNALED(status):  # less was left to do than the drawn number of events
            assert status == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        # After each kill the ledger is valid, and a request that counts as completed really is.
        with chdir(root):
            ledger = Ledger(Path("ledger.jsonl"))
            ledger.verify()
            store = Store.open(url_of(root))
            for request in store.all([State.completed]):
                assert verify(Path("records/certificates") / request.id / "certificate.json", public_key())
                assert Dataset("data/dataset").rows == people_workspace.ROWS - 30
            store.engine.dispose()
    state = finish(root, url_of(root))
    assert state in ("completed", "nothing to do")
    check(root, before)


def test_the_check_sees_what_is_wrong(before, events, tmp_path):
    """`check` must fail if an event is in the ledger twice or a certificate was changed."""
    root = Path(shutil.copytree(before, tmp_path / "workspace"))
    assert in_a_child(root, 0)[0] == 0
    check(root, before)
    with chdir(root):
        Ledger(Path("ledger.jsonl")).append("completion", {"event": "R-1/7"})
    with pytest.raises(AssertionError):
        check(root, before)
    other = Path(shutil.copytree(before, tmp_path / "other"))
    assert in_a_child(other, 0)[0] == 0
    path = next((other / "records/certificates").glob("*/certificate.json"))
    document = json.loads(path.read_text())
    document["certificate"]["sweep"]["found"] = []
    path.write_text(json.dumps(document))
    with pytest.raises(ExpungeError):
        check(other, before)
