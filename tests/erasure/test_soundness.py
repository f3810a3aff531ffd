"""Tests that no false certificate is signed: each known way to get one is tried and refused with its reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.data.prepare import open_source, prepare
from expunge.data.writer import write_dataset
from expunge.erasure import evidence, soundness
from expunge.erasure.batches import Batches, Step
from expunge.erasure.candidate import Candidate
from expunge.erasure.certificate import verify
from expunge.erasure.lifecycle import Lifecycle
from expunge.erasure.requests import Store
from expunge.erasure.selection import Selection
from expunge.erasure.states import State
from expunge.ledger import ledger as ledger_module
from expunge.ledger.clock import set_back
from expunge.ledger.keys import public_key
from expunge.ledger.ledger import Ledger
from expunge.methods.outputs import check_retrained
from expunge.models.checkpoint import load_classifier
from expunge.system.errors import CheckpointError, ExpungeError, LedgerError, RequestError
from expunge.system.files import read_json, write_json, write_manifest
from expunge.training.full import build_classifier
from tests.erasure.promoted_batch import GONE, TODAY, finish, life, promoted, request_for
from tests.pipeline import change, dvc
from tests.sweep import people_workspace

# Changes to a finished run before it is judged.


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("judged") / "workspace", symlinks=True))


@pytest.fixture
def workspace(run, monkeypatch) -> Iterator[Path]:
    """Yield the workspace of the run. Lock file, models, reports, evaluations and params are restored afterwards."""
    places = ("dvc.lock", "models", "reports", "data/evaluation", "params.yaml")
    monkeypatch.chdir(run)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    backup = run.with_name("kept")
    backup.mkdir()
    for name in places:
        (backup / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if Path(name).is_dir() else shutil.copy2)(name, backup / name)
    yield run
    for name in places:
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)
        shutil.move(backup / name, name)
    shutil.rmtree(backup)


def edited_metric() -> None:
    """Change one digit and keep size and times of the file, so that DVC does not notice."""
    file = Path("reports/evaluation/loft.json")
    before, text = file.stat(), file.read_text()
    at = text.index('"accuracy"') + text[text.index('"accuracy"') :].index("0.") + 2
    file.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size and file.read_text() != text


def swapped_weights() -> None:
    """Replace the original's weights by retrained ones, with a new manifest, so that the files are consistent."""
    place = Path("models/original")
    manifest = read_json(place / "manifest.json")
    shutil.copy("models/retrained/1/model.safetensors", place)
    for key in ("schema", "files"):
        manifest.pop(key)
    write_manifest(place, manifest.pop("producer"), **manifest)
    load_classifier(place)


def evaluation_of_another() -> None:
    shutil.rmtree("data/evaluation/loft")
    shutil.copytree("data/evaluation/logit-mask", "data/evaluation/loft")


def edited_summary() -> None:
    summary = read_json("reports/summary.json")
    for block in summary["methods"].values():
        if "verdict" in block:
            block["verdict"]["claims"]["exact"] = "shown"
    write_json("reports/summary.json", summary)


CHANGES: dict[str, tuple[Callable[[], object], str]] = {
    "an edited metric": (
        edited_metric,
        r"reports/evaluation/loft.json: changed since the stage evaluate@loft wrote it",
    ),
    "exchanged weights": (swapped_weights, r"models/original: changed since the stage train wrote it"),
    "the evaluation of another": (
        evaluation_of_another,
        r"data/evaluation/loft: changed since the stage evaluate@loft",
    ),
    "an edited summary": (edited_summary, r"reports/summary.json: changed since the stage compare wrote it"),
    "a file that is gone": (
        lambda: shutil.rmtree("models/unlearned/loft"),
        r"models/unlearned/loft: gone since .* fit",
    ),
    "no lock": (lambda: Path("dvc.lock").unlink(), r"dvc.lock: no such file"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_results_that_are_not_those_of_the_run_are_refused(how, workspace):
    soundness.results()
    break_it, says = CHANGES[how]
    break_it()
    with pytest.raises(RequestError, match=says) as refused:
        soundness.results()
    assert "dvc repro" in str(refused.value)


def test_an_edited_result_that_was_committed_is_refused(workspace):
    edited_metric()
    os.utime("reports/evaluation/loft.json")
    dvc(workspace, "commit", "--force", "evaluate@loft")
    with pytest.raises(RequestError, match=r"reports/evaluation: not what the stage compare read when it ran"):
        soundness.results()


def test_entries_of_a_method_that_was_taken_out_do_not_count(workspace):
    change(workspace, lambda p: p["methods"].remove("relearn"))
    shutil.rmtree("models/unlearned/relearn")
    names = {f.stage for f in soundness.found_differences()}
    assert "fit@relearn" not in names and "evaluate@relearn" not in names


def judged(run: Path) -> tuple[Store, Lifecycle]:
    """Return the store and the lifecycle of a batch at the step `judge`, for the class that the run forgot."""
    for name in ("records", "ledger.jsonl", "ledger.head.json"):
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)
    store = Store.open()
    classes = load_config().split.classes
    request = store.add("R-20260220-0a1b2c", "classes", [], classes=classes, received=TODAY, basis="", who="ann")
    store.verify(request.id, "ben", "", {})
    batches = Batches(store, "nightly")
    batches.release(batches.at(batches.claim(TODAY), Step.judge, {}))
    return store, life(run, store)


def test_a_run_is_judged_only_on_its_own_results(workspace):
    store, runner = judged(workspace)
    metric = Path("reports/evaluation/loft.json").read_bytes()
    edited_metric()
    with pytest.raises(RequestError, match="so no certificate can be based on it"):
        runner.advance(TODAY)
    assert runner.batches.current().step == Step.judge and store.get("R-20260220-0a1b2c").state == State.running
    Path("reports/evaluation/loft.json").write_bytes(metric)
    assert runner.advance(TODAY).state == "awaiting approval"
    assert runner.batches.current().facts["rows"].keys() == {"R-20260220-0a1b2c"}
    store.engine.dispose()


@pytest.mark.parametrize("method", ["loft", "retrained"])
def test_near_copies_that_stay_are_named_whichever_model_is_certified(method, workspace):
    """Rows that nobody requested may be near copies under other ids; a model trained without the rows knows them."""
    summary = read_json("reports/summary.json")
    summary["request"] |= {"duplicates_left_in_retain": 2, "near_duplicates": {"left_in_retain": 3}}
    write_json("reports/summary.json", summary)
    train = Dataset("data/dataset").splits() == "train"
    run = evidence.of_run(Candidate("m", "1", method, "outputs"), Selection({}, train, np.zeros(len(train), bool)))
    told = [line for line in run["claim"]["not_claimed"] if "among the retained rows" in line]
    assert [line[:1] for line in told] == ["2", "3"] and "a near-duplicate" in told[1]


# False records of what models were trained on.


def record_of(directory: str, **changes: object) -> None:
    manifest = read_json(f"{directory}/manifest.json")
    write_json(f"{directory}/manifest.json", {**manifest, "trained_on": {**manifest["trained_on"], **changes}})


def test_the_record_of_training_names_its_rows_by_digest(workspace):
    from expunge.data.split import Split, request_digest

    split, dataset = Split("data/split"), Dataset("data/dataset")
    ids = dataset.sample_ids()
    for name, rows in (
        ("original", np.flatnonzero(dataset.splits() == "train")),
        ("retrained/1", split.rows("retain")),
    ):
        trained = read_json(f"models/{name}/manifest.json")["trained_on"]
        assert trained == {
            "dataset": dataset.digest, "rows": request_digest([ids[i] for i in rows], dataset.digest),
            "count": len(rows), "training": load_config().model.training,
        }  # fmt: skip


@pytest.mark.parametrize("what", ["on all rows", "on as many others", "nobody knows"])
def test_a_retrained_model_that_saw_the_forgotten_rows_is_refused(what, workspace):
    from expunge.data.split import Split

    soundness.models()
    original = read_json("models/original/manifest.json")["trained_on"]
    if what == "on all rows":
        record_of("models/retrained/1", rows=original["rows"], count=original["count"])
    elif what == "on as many others":
        record_of("models/retrained/1", rows=original["rows"])
    else:
        manifest = read_json("models/retrained/1/manifest.json")
        manifest.pop("trained_on")
        write_json("models/retrained/1/manifest.json", manifest)
    says = {
        "on all rows": "the split retains",
        "on as many others": "not trained on the rows",
        "nobody knows": "no record",
    }[what]
    with pytest.raises(CheckpointError, match=rf"models/retrained/1: .*{says}.* run `dvc repro`"):
        soundness.models()
    with pytest.raises(CheckpointError, match=says):
        check_retrained(Split("data/split"), load_config().retrain.seeds)


def test_a_model_that_says_it_never_saw_what_it_was_trained_on_is_refused(workspace):
    """Description and manifest are edited alike, but the record of the training in the manifest contradicts them."""
    place = Path("models/original")
    description = read_json(place / "model.json")
    assert description["card"]["training"] == "full"
    for edits in ({}, {"training": "head"}, {"training": "head", "recipe": None}):
        card = {**description["card"], "saw_forget_data": False, **edits}
        write_json(place / "model.json", {**description, "card": card})
        manifest = read_json(place / "manifest.json")
        for key in ("schema", "files"):
            manifest.pop(key)
        write_manifest(place, manifest.pop("producer"), **manifest)
        with pytest.raises(
            CheckpointError, match=r"models/original: saw_forget_data is false, but .* trained on .* rows"
        ):
            load_classifier(place)
        with pytest.raises(CheckpointError, match="saw_forget_data is false"):
            soundness.models()


def test_weights_that_were_trained_on_this_dataset_are_no_public_start(workspace, tmp_path):
    """The backbone of an earlier run is declared as one that never saw the rows."""
    shutil.copytree("models/original", tmp_path / "ours")
    weights = tmp_path / "ours/model.safetensors"

    def lie(params: dict) -> None:
        params["model"].update(training="head", saw_forget_data=False, checkpoint=str(weights))

    change(workspace, lie)
    with pytest.raises(CheckpointError, match=r"saw_forget_data is false, but these weights were trained on .* rows"):
        build_classifier(load_config(), Dataset("data/dataset"), 0)


# Rows that change between the verdict and the signature.


@pytest.fixture(scope="module")
def approved(tmp_path_factory) -> Path:
    root = people_workspace.workspace(tmp_path_factory.mktemp("approved") / "workspace", [5])
    store = Store.open(url_of(root))
    promoted(store, root)
    with chdir(root):
        store.publish(Ledger("ledger.jsonl"))
    store.engine.dispose()
    return root


@pytest.fixture
def root(approved, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(people_workspace.copy(approved, tmp_path / "workspace"))
    return tmp_path / "workspace"


def url_of(root: Path) -> str:
    return f"sqlite:///{root / 'records/requests.db'}"


def other_contents(root: Path, rows: list[int]) -> None:
    """Write the dataset again with other pictures in `rows`, whose ids stay."""
    with np.load(root / people_workspace.NPZ) as archive:
        arrays = dict(archive)
    arrays["images"][rows] ^= 255
    np.savez_compressed(root / people_workspace.NPZ, **arrays)
    write_dataset(
        root / "data/dataset",
        open_source("npz", root / people_workspace.NPZ, 0.2, 0),
        shard_rows=people_workspace.SHARD,
    )


def test_rows_that_changed_after_the_verdict_are_not_certified(root):
    other_contents(root, [10 * GONE[0]])
    with pytest.raises(RequestError, match=r"the rows of R-\w+-\w+ in data/dataset are not those .* starts over"):
        finish(root, url_of(root))
    store = Store.open(url_of(root))
    assert Batches(store, "").current().step == Step.prepare and not list(root.glob("records/certificates/*"))
    assert Dataset("data/dataset").rows == people_workspace.ROWS
    store.engine.dispose()


def test_a_change_of_other_rows_does_not_stop_a_certificate(root):
    other_contents(root, [10 * 9])
    assert finish(root, url_of(root)) == "completed"


def test_rows_that_changed_before_the_sweep_are_not_certified(root):
    store = Store.open(url_of(root))
    runner = life(root, store)
    batch = runner.steps[Step.collect](runner.batches.claim(TODAY))
    runner.batches.release(batch)
    before = (root / "data/dataset").rename(root / "data/before")
    other_contents(root, [10 * GONE[0], 10 * GONE[1]])
    with pytest.raises(RequestError, match=r"of 30 rows 2 have other contents and 0 are gone.*dvc checkout"):
        runner.advance(TODAY)
    shutil.rmtree("data/dataset")
    before.rename(root / "data/dataset")
    assert runner.advance(TODAY).state == "completed"
    store.engine.dispose()


def test_rows_that_came_back_before_the_signature_are_not_certified(root):
    """Somebody restores the dataset from a copy between the sweep and the signature."""
    store = Store.open(url_of(root))
    runner = life(root, store)
    shutil.copytree("data/dataset", "data/copy")
    batch = runner.steps[Step.sweep](runner.steps[Step.collect](runner.batches.claim(TODAY)))
    runner.batches.release(batch)
    shutil.rmtree("data/dataset")
    (root / "data/copy").rename(root / "data/dataset")
    with pytest.raises(RequestError, match=r"nothing is certified: .*erased"):
        runner.advance(TODAY)
    assert not list(root.glob("records/certificates/*"))
    store.engine.dispose()


def test_erased_rows_that_come_back_under_other_ids_are_found_by_their_content(root):
    """A source brings a picture of an erased person under an id, a person and a label of nobody."""
    with np.load(root / people_workspace.NPZ) as archive:
        arrays = dict(archive)
    assert finish(root, url_of(root)) == "completed"
    again = [*range(20), 10 * GONE[0]]
    arrays = {name: values[again] for name, values in arrays.items()}
    arrays["ids"][-1], arrays["subjects"][-1], arrays["labels"][-1] = "record-99999", "nobody", 2
    np.savez_compressed(root / "again.npz", **arrays)
    assert prepare("npz", root / "data/again", path=root / "again.npz")["rows_train"] == 16
    assert "record-99999" not in Dataset(root / "data/again").sample_ids()
    write_dataset(root / "data/old", open_source("npz", root / "again.npz", 0.2, 0), shard_rows=40)  # as on another day
    with pytest.raises(ExpungeError, match="data/old: contains 1 erased rows again"):
        Dataset(root / "data/old")


# A store and a ledger of different ages, because one was restored from a backup.

LEDGER_FILES = ("ledger.jsonl", "ledger.head.json")


def go_on(root: Path) -> None:
    """Add one more request to store and ledger."""
    store = Store.open(url_of(root))
    request_for(store, root, [7])
    store.publish(Ledger("ledger.jsonl"))
    store.engine.dispose()


def test_a_ledger_from_a_backup_is_found(root):
    """The old ledger agrees with its own signed head, so only the store shows that entries are missing."""
    (root / "backup").mkdir()
    for name in LEDGER_FILES:
        shutil.copy(name, root / "backup")
    go_on(root)
    newest = {name: Path(name).read_bytes() for name in LEDGER_FILES}
    for name in LEDGER_FILES:
        shutil.copy(root / "backup" / name, name)
    Ledger("ledger.jsonl").verify()
    with pytest.raises(LedgerError, match=r"was written once and is not in it\. .* no request is carried out"):
        finish(root, url_of(root))
    assert Path("ledger.jsonl").read_bytes() == (root / "backup/ledger.jsonl").read_bytes()  # nothing was added to it
    for name, content in newest.items():
        Path(name).write_bytes(content)
    assert finish(root, url_of(root)) == "completed"


@pytest.mark.parametrize("then", ["at once", "after another event of the same number"])
def test_a_store_from_a_backup_is_found(then, root):
    store = Store.open(url_of(root))
    request = request_for(store, root, [7])
    store.publish(Ledger("ledger.jsonl"))
    store.engine.dispose()
    shutil.copy("records/requests.db", root / "backup.db")
    store = Store.open(url_of(root))
    store.extend(request.id, 3, "ann", "many requests", TODAY)
    store.publish(Ledger("ledger.jsonl"))
    store.engine.dispose()
    newest = Path("records/requests.db").read_bytes()
    shutil.copy(root / "backup.db", "records/requests.db")
    if then == "at once":
        says = rf"lacks the event {request.id}/3 \(extension\).* from a backup. Restore its newest copy"
    else:
        store = Store.open(url_of(root))
        store.refuse(request.id, "ben", "not theirs")
        store.publish(Ledger("ledger.jsonl"))
        store.engine.dispose()
        says = rf"has the event {request.id}/3 as refusal .*, not as extension"
    with pytest.raises(RequestError, match=says):
        finish(root, url_of(root))
    assert not list(root.glob("records/certificates/*"))
    Path("records/requests.db").write_bytes(newest)
    if then == "at once":
        assert finish(root, url_of(root)) == "completed"


def test_an_empty_store_begins_anew_beside_the_ledger(root):
    """Where the store is lost for good, an empty one is the only way to continue."""
    Path("records/requests.db").unlink()
    store = Store.open(url_of(root))
    assert life(root, store).advance(TODAY).state == "nothing to do"
    store.engine.dispose()


# Clocks that were set back.


def set_clock(monkeypatch, by: timedelta) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + by

    monkeypatch.setattr(ledger_module, "datetime", Clock)


def test_a_clock_that_was_set_back_stands_in_the_certificate(root, monkeypatch):
    set_clock(monkeypatch, timedelta(days=-3))
    assert finish(root, url_of(root)) == "completed"
    file = next(root.glob("records/certificates/*/certificate.json"))
    warnings = verify(file, public_key(root))["clock"]
    assert warnings and "the clock was set back" in warnings[0] and "(sweep)" in " ".join(warnings)
    assert "the clock was set back" in file.with_suffix(".html").read_text()


def test_a_clock_that_goes_right_is_not_mentioned(root):
    assert finish(root, url_of(root)) == "completed"
    file = next(root.glob("records/certificates/*/certificate.json"))
    assert verify(file, public_key(root))["clock"] == []


def test_an_audit_reports_a_clock_that_was_set_back(workspace, monkeypatch, capsys):
    from expunge.cli import main

    for name in LEDGER_FILES:
        Path(name).unlink(missing_ok=True)
    ledger = Ledger("ledger.jsonl")
    ledger.append("note", {})
    set_clock(monkeypatch, timedelta(hours=-2))
    ledger.append("note", {})
    monkeypatch.setattr("sys.argv", ["expunge", "audit"])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr().out
    assert not ended.value.code and "has no champion yet." in output
    assert "Attention: ledger entry 2 (note)" in output and "the clock was set back" in output


def test_entries_with_a_time_before_their_predecessor_are_reported(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for days in (0, 2, 1, 2, 3):
        set_clock(monkeypatch, timedelta(days=days))
        ledger.append("note", {"days": days})
    warnings = set_back(ledger.entries())
    assert (
        list(warnings) == [3]
        and warnings[3].startswith("ledger entry 3 ")
        and "86,4" in warnings[3]
        and "entry 2" in warnings[3]
    )
    assert datetime.fromisoformat(ledger.entries()[0].time).tzinfo == UTC
    assert json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[2])["facts"] == {"days": 1}
    assert issubclass(LedgerError, ExpungeError)
