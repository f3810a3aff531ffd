"""Tests of the life of a request, on the command line and in the library, in a small workspace with DVC.

No model is trained: the pipeline is replaced by functions that do only what a test needs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from expunge.data.dataset import Dataset
from expunge.data.prepare import open_source
from expunge.data.writer import write_dataset
from expunge.erasure.batches import Step
from expunge.erasure.lifecycle import Lifecycle
from expunge.erasure.requests import Store
from expunge.erasure.states import State
from expunge.ledger.keys import public_key
from expunge.ledger.ledger import Ledger
from expunge.system.errors import RequestError
from expunge.system.files import write_json
from tests.erasure.promoted_batch import TODAY
from tests.sweep import people_workspace
from tests.verdicts import verdict_with


def bytes_below(root: Path) -> bytes:
    """Return names and contents of records, ledger, params and the files for git: all but the data and their cache."""
    places = [root / "records", root / ".dvc", *root.glob("*.*"), *root.glob("data/requests/*.dvc")]
    found = [p for place in places for p in ([place] if place.is_file() else place.rglob("*")) if p.is_file()]
    return b"".join(p.name.encode() + p.read_bytes() for p in found if ".dvc/cache" not in p.as_posix())


@pytest.mark.slow
def test_a_request_goes_from_intake_to_refusal_on_the_command_line(root, expunge, tmp_path):
    source = tmp_path / "mine.txt"
    source.write_text(people_workspace.person(3) + "\n")
    assert expunge("request", "add", "--subject-file", str(source), "--received", "2026-13-01").status == 2
    assert "future" in expunge("request", "add", "--subject-file", str(source), "--received", "2999-01-01").err
    assert "exactly one of these" in expunge("request", "add").err
    added = expunge("request", "add", "--subject-file", str(source), "--received", "2026-01-31", "--basis", "Art. 17")
    assert added.status == 0 and "1 subjects, due 2026-02-28" in added.out, added.err
    id_ = added.out.partition(":")[0]

    again = expunge("request", "add", "--subject-file", str(source))
    assert again.status == 2 and f"request {id_}" in again.err and "nothing was added" in again.err
    lists = sorted(p.name for p in (root / "data/requests").iterdir())
    assert lists == [f"{id_}.csv", f"{id_}.csv.dvc"]  # the list of the refused second request was removed
    assert (root / "data/requests" / f"{id_}.csv").stat().st_mode & 0o077 == 0
    shown = expunge("request", "list").out
    assert id_ in shown and "overdue" in shown
    late = expunge("request", "extend", id_, "--reason", "too late")
    assert late.status == 2 and "only be extended before" in late.err

    verified = expunge("request", "verify", id_, "--reason", "letter seen", "--by", "ben")
    assert verified.status == 0 and "verified, 10 rows" in verified.out, verified.err
    history = expunge("request", "show", id_).out
    assert "letter seen" in history and "ben" in history and "found=10" in history
    assert b"subject-003" not in bytes_below(root)

    assert expunge("request", "refuse", id_, "--reason", " ").status == 2
    refused = expunge("request", "refuse", id_, "--reason", "a duty to keep them")
    assert refused.status == 0 and "may complain" in refused.out
    assert "its key is destroyed" in expunge("request", "show", id_).out
    assert not (root / "data/requests" / f"{id_}.csv").exists() and b"subject-003" not in bytes_below(root)
    assert "chain is whole and its head is signed" in expunge("ledger", "verify").out
    for kind in ("intake", "verification", "refusal"):
        assert kind in expunge("ledger", "show").out
    assert expunge("request", "list").out.count("R-") == 0 and id_ in expunge("request", "list", "--all").out
    assert expunge("request", "run").out.startswith("nothing to do")


def test_an_intake_that_fails_leaves_no_list(root, expunge, tmp_path, monkeypatch):
    (root / ".dvc").rename(root / "no-dvc")
    (tmp_path / "mine.txt").write_text(people_workspace.person(3) + "\n")
    failed = expunge("request", "add", "--subject-file", str(tmp_path / "mine.txt"))
    assert failed.status == 2 and "dvc add " in failed.err and "not inside of a DVC repository" in failed.err
    assert not list((root / "data/requests").iterdir()) and Store.open().all() == []
    assert (root / "records/requests.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("name", "said"), [("mine.txt", "value 2 has 10,000,000 characters"), ("mine.csv", "line 2")])
def test_a_list_with_an_endless_line_is_refused_at_intake(name, said, root, expunge, tmp_path):
    (tmp_path / name).write_text(people_workspace.person(3) + "\n" + "x" * 10_000_000 + "\n")
    refused = expunge("request", "add", "--subject-file", str(tmp_path / name))
    assert refused.status == 2 and said in refused.err and "xxx" not in refused.err
    assert not list((root / "data/requests").iterdir()) and Store.open().all() == []


def test_a_bad_list_stops_no_other_request(root, expunge, tmp_path):
    """An earlier version could take in a list that the reader of CSV refuses."""
    (root / "data/requests/R-20260101-ffffff.csv").write_text("subject,salt\n" + "x" * 10_000_000 + ",\n")
    (tmp_path / "ids.txt").write_text("record-00004\n")
    id_ = expunge("request", "add", "--ids", str(tmp_path / "ids.txt")).out.partition(":")[0]
    assert "verified, 1 rows" in expunge("request", "verify", id_).out
    looked = expunge("sweep", "--ids", str(tmp_path / "ids.txt"), "--json")
    assert looked.status == 0, looked.err
    findings = [n["what"] for n in json.loads(looked.out)["not_purgeable"] if n["where"] == "data/requests"]
    assert len(findings) == 1 and "field larger than field limit" in findings[0] and "R-2026" not in findings[0]


@pytest.mark.slow
def test_a_request_is_met_already_where_all_of_its_rows_were_erased(root, expunge, tmp_path):
    """A class or a list of ids is refused if an earlier request erased all of its rows.

    If only a part of its rows was erased, the request is carried out.
    """
    dataset = Dataset("data/dataset")
    ids = [i for i, label in zip(dataset.sample_ids(), dataset.labels(), strict=True) if label == 2]
    (tmp_path / "gone.txt").write_text("".join(f"{i}\n" for i in ids))
    assert expunge("sweep", "--ids", str(tmp_path / "gone.txt"), "--apply").status == 0
    (tmp_path / "again.txt").write_text("".join(f"{i}\n" for i in ids[:3]))
    (tmp_path / "part.txt").write_text(f"{ids[3]}\nrecord-00004\n")
    (tmp_path / "never.txt").write_text("nobody\nrecord-00004\n")

    def verified(*asked: str):
        id_ = expunge("request", "add", *asked).out.partition(":")[0]
        return expunge("request", "verify", id_)

    for asked in (["--classes", "2"], ["--ids", str(tmp_path / "again.txt")]):
        met = verified(*asked)
        assert met.status == 2 and "met already" in met.err and "expunge request refuse R-" in met.err
    assert all(r.state == State.received for r in Store.open().all())
    assert "verified, 1 rows" in verified("--ids", str(tmp_path / "part.txt")).out
    assert "1 of 2 ids are not in the dataset" in verified("--ids", str(tmp_path / "never.txt")).err


def test_most_of_the_data_is_erased_only_on_purpose(root, expunge):
    """A request for two of three classes may name by mistake the classes that are to stay."""
    id_ = expunge("request", "add", "--classes", "0,1").out.partition(":")[0]
    refused = expunge("request", "verify", id_)
    assert refused.status == 2 and f"request {id_} is for 160 of 240 rows, more than half" in refused.err
    assert "expunge request add --more-than-half" in refused.err and Store.open().get(id_).state == State.received
    assert expunge("request", "refuse", id_, "--reason", "a mistake").status == 0
    meant = expunge("request", "add", "--classes", "0,1", "--more-than-half").out.partition(":")[0]
    assert "verified, 160 rows" in expunge("request", "verify", meant).out


def test_a_list_that_was_put_there_by_hand_is_noticed(root, expunge):
    (root / "data/requests/R-20260101-ffffff.csv").write_text("subject\nsubject-003\n")
    shown = expunge("request", "list").out
    assert "R-20260101-ffffff.csv belongs to no request" in shown and "subject-003" not in shown


def test_the_md5_of_a_list_cannot_be_guessed(root):
    """Random salts make the file of the same ids differ each time."""
    from expunge.erasure.intake import values_of, write_values

    written = []
    for name in ("a.csv", "b.csv"):
        write_values(Path("data/requests") / name, "ids", ["record-1", 'a,b\n"c"'])
        written.append((root / "data/requests" / name).read_bytes())
        assert values_of(Path("data/requests") / name, "ids") == ["record-1", 'a,b\n"c"']
    assert written[0] != written[1]


def taken_in(store: Store, root: Path, tmp_path: Path, ids: list[str]) -> str:
    from expunge.erasure.intake import take_in

    (tmp_path / "ids.txt").write_text("".join(f"{i}\n" for i in ids))
    request = take_in(store, ids=tmp_path / "ids.txt", basis="", received=TODAY, today=TODAY, who="ann")
    return store.verify(request.id, "ben", "", {}).id


def life(store: Store, pipeline) -> Lifecycle:
    return Lifecycle(store, Ledger("ledger.jsonl"), who="nightly", pipeline=pipeline, log=lambda _: None)


def test_a_request_for_test_rows_alone_needs_no_model(root, tmp_path):
    """Every fifth row is for testing, so no model was trained on it, but it is erased from the data all the same."""
    from expunge.erasure.certificate import verify

    store = Store.open()
    id_ = taken_in(store, root, tmp_path, ["record-00004", "record-00009"])
    asked = []
    outcome = life(store, lambda stages=(), force=False: asked.append(list(stages))).advance(TODAY)
    assert outcome.state == "completed" and asked == [["prepare", "validate-dataset"]]
    ids = Dataset("data/dataset").sample_ids()
    assert len(ids) == people_workspace.ROWS - 2 and "record-00004" not in ids
    body = verify(Path("records/certificates") / id_ / "certificate.json", public_key())
    assert body["unlearning"] is None and body["sweep"]["left"] == []
    page = (root / "records/certificates" / id_ / "certificate.html").read_text()
    assert "no model had to forget" in page
    assert not list((root / "data/requests").glob("*")) and not store.has_key(id_)


def test_rows_that_became_test_rows_after_training_are_not_certified_as_untrained(root, tmp_path):
    """The data were divided anew since the original was trained: its features say that it read the row."""
    store = Store.open()
    taken_in(store, root, tmp_path, ["record-00003", "record-00004"])
    with np.load(people_workspace.NPZ) as archive:
        arrays = dict(archive)
    arrays["split"][3] = "test"
    np.savez_compressed(people_workspace.NPZ, **arrays)
    source = open_source("npz", people_workspace.NPZ, 0.2, 0)
    write_dataset("data/dataset", source, shard_rows=people_workspace.SHARD)
    runner = life(store, lambda stages=(), force=False: None)
    with pytest.raises(RequestError, match="1 of the 2 requested rows are test rows now, but the original was trained"):
        runner.advance(TODAY)
    assert runner.batches.current().step == Step.prepare and not list(Path("records").glob("certificates/*"))
    assert Dataset("data/dataset").rows == people_workspace.ROWS


def split_only(stages=(), force=False) -> None:
    """Stand in for the pipeline: make the real split, and write a summary in which nothing qualified."""
    if stages:
        return
    from expunge.stages import split

    split.main()
    block = {"verdict": {**verdict_with((), refuted=("outputs",)), "why": "Utility kept; refuted: outputs."}}
    write_json("reports/summary.json", {"selected": None, "methods": {"loft": block}})
    write_json("reports/registration.json", {"model": "m", "content": "sha256:1", "method": None})
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {}\n")


@pytest.mark.slow
def test_a_request_that_no_method_can_honour_is_refused_with_reasons(without_reference, tmp_path):
    store = Store.open()
    id_ = taken_in(store, without_reference, tmp_path, ["record-00001", "record-00004"])
    params = Path("params.yaml").read_bytes()
    outcome = life(store, split_only).advance(TODAY)
    assert outcome.state == "refused"
    request = store.get(id_)
    assert "'outputs' was shown of no method (loft: Utility kept; refuted: outputs." in request.reason
    assert "reference: skip" in request.reason and not store.has_key(id_)
    assert Path("params.yaml").read_bytes() == params and not list(Path("data/requests").glob("*.csv"))
    assert Ledger("ledger.jsonl").entries()[-1].kind == "refusal"
    assert Dataset("data/dataset").rows == people_workspace.ROWS


@pytest.mark.slow
def test_the_pipeline_is_given_exactly_the_training_rows(without_reference, tmp_path):
    from expunge.config import load_config
    from expunge.erasure.intake import values_of

    store = Store.open()
    taken_in(store, without_reference, tmp_path, ["record-00001", "record-00004", "record-00007"])
    seen = {}

    def look(stages=(), force=False) -> None:
        if not stages:
            config = load_config().split
            seen.update(selector=config.selector, ids=values_of(Path(config.file), "ids"))
            raise RequestError("a stage failed")

    runner = life(store, look)
    with pytest.raises(RequestError, match="a stage failed"):
        runner.advance(TODAY)
    assert seen == {"selector": "ids", "ids": ["record-00001", "record-00007"]}
    batch = runner.batches.current()
    assert batch.step == Step.run and batch.open

    def forgets_others(stages=(), force=False) -> None:
        """Change the list, as if somebody did while the pipeline ran."""
        if not stages:
            Path(load_config().split.file).write_text("record-00002\n")
            split_only()

    with pytest.raises(RequestError, match="forgot other rows than were asked for"):
        life(store, forgets_others).advance(TODAY)
    assert runner.batches.current().step == Step.prepare
    # The next run continues the same batch with its params.
    assert life(store, split_only).advance(TODAY).batch == batch.id


def test_nothing_is_erased_where_canaries_are_planted(root, tmp_path):
    store = Store.open()
    taken_in(store, root, tmp_path, ["record-00001"])
    (root / "data/dataset/canaries.parquet").write_bytes(b"")
    with pytest.raises(RequestError, match="canaries are planted here"):
        life(store, split_only).advance(TODAY)


def test_a_run_that_cannot_go_on_is_given_up(root, tmp_path):
    store = Store.open()
    params = Path("params.yaml").read_bytes()
    id_ = taken_in(store, root, tmp_path, ["record-00001"])

    def fails(stages=(), force=False) -> None:
        raise RequestError("a stage failed")

    runner = life(store, fails)
    with pytest.raises(RequestError, match="a stage failed"):
        runner.advance(TODAY)
    with pytest.raises(RequestError, match="reject the run first"):
        store.refuse(id_, "ann", "no")
    with pytest.raises(RequestError, match="is at step prepare"):
        runner.approve("cem", "yes")
    runner.reject("cem", "the source is away")
    assert store.get(id_).state == State.scheduled and Path("params.yaml").read_bytes() == params
    assert store.refuse(id_, "ann", "gone for good").state == State.refused


def awaiting(store: Store, root: Path, tmp_path: Path):
    """Return a request and the lifecycle of its batch, which waits for approval with the facts of a judged run."""
    from tests.erasure.promoted_batch import PRODUCT, RUN

    id_ = taken_in(store, root, tmp_path, ["record-00001"])
    runner = life(store, split_only)
    batch = runner.batches.claim(TODAY)
    batch = runner.steps[Step.prepare](batch)
    facts = {"product": PRODUCT, "run": {**RUN, "each": {id_: {"train": 1, "test": 0}}}}
    runner.batches.release(runner.batches.at(batch, Step.approval, facts, State.awaiting_approval, "verdict"))
    return id_, runner


@pytest.mark.slow
def test_a_rejected_run_leaves_its_requests_due(root, tmp_path):
    store = Store.open()
    params = Path("params.yaml").read_bytes()
    id_, runner = awaiting(store, root, tmp_path)
    assert Path("params.yaml").read_bytes() != params
    assert runner.advance(TODAY).state == "awaiting approval"  # without an answer it goes on waiting
    with pytest.raises(RequestError, match="a reason is needed"):
        runner.reject("cem", " ")
    runner.reject("cem", "retained accuracy is too low")
    assert store.get(id_).state == State.scheduled and store.get(id_).batch is None and store.has_key(id_)
    assert Path("params.yaml").read_bytes() == params and runner.batches.current() is None
    assert [p.name for p in Path("data/requests").glob("*.csv")] == [f"{id_}.csv"]
    assert store.events(id_)[-1].kind == "rejection" and store.events(id_)[-1].who == "cem"
    with pytest.raises(RequestError, match="no run waits"):
        runner.approve("cem", "after all")


def test_an_approval_is_given_once_and_kept(root, tmp_path):
    store = Store.open()
    id_, runner = awaiting(store, root, tmp_path)
    runner.approve("cem", "as good as retrained")
    with pytest.raises(RequestError, match="no run waits"):
        runner.approve("dan", "me too")
    event = store.events(id_)[-1]
    assert (event.kind, event.who, event.state) == ("approval", "cem", "running")
    last = Ledger("ledger.jsonl").entries()[-1]
    assert last.kind == "approval" and last.facts["version"] == "4" and last.facts["reason"] == "as good as retrained"
