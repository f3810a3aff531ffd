"""Remove erased rows from every store that holds them, and report what is left.

May import config, core, data, features, finetune, ledger, methods, models, system and tracking.
Start with the function `sweep` here. Its steps:

    find     find rows by id and by content in all stores; a dry run changes nothing
    stage    write new shards, and the tombstones, beside the old ones
    commit   write the journal (one file); from here on the new state counts
    swap     replace the old files by the staged ones
    collect  update dvc.lock, caches, remotes and registry; each step can be repeated
    look     search all stores again

A process that is killed before the commit leaves the old state. One that is killed after it leaves a state that no
stage reads, and the next sweep finishes it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.config import Config, load_config
from expunge.data.tombstones import ROWS, home
from expunge.sweep import inputs, lineage, outputs, texts
from expunge.sweep.journal import JOURNAL, Journal
from expunge.sweep.report import NotPurgeable, Residue, ResidueKind, SweepReport
from expunge.sweep.storage import Storage, objects
from expunge.sweep.targets import Targets
from expunge.system.errors import DataError

__all__ = ["NotPurgeable", "Residue", "SweepReport", "sweep"]

# Stages that extract features and activations again after the original's backbone was replaced.
AGAIN = (("extract", "original"), ("activations",))


def sweep(root: Path, rows: Iterable[str] = (), *, subjects: Iterable[str] = (), apply: bool = False) -> SweepReport:
    """Erase `rows` (ids) and all rows of `subjects` from the workspace `root` and every store that it uses.

    Rows that were erased earlier and have come back are erased too; without `rows` the call only repairs. After a crash
    the next call with `apply` finishes the sweep. `apply=False` is a dry run. Raises DataError, before anything is
    changed, for rows that never were in the dataset.
    """
    root = Path(root).resolve()
    with _alone(root):
        return _sweep(root, list(rows), list(subjects), apply)


def _sweep(root: Path, rows: list[str], subjects: list[str], apply: bool) -> SweepReport:
    config = load_config(root / "params.yaml")
    report = SweepReport(apply)
    pending = Journal.of(root)
    if pending is not None:
        if not apply:
            raise DataError(f"{root / JOURNAL}: a sweep was interrupted; run `expunge sweep --apply` to finish it")
        pending.finish()
        report.did(Residue(*residue) for residue in pending.notes["found"])
        _collect(Storage(root), config, pending, report)
    targets = Targets.find(root, rows, subjects, keep=apply)
    storage = Storage(root)
    with lineage.opened(root, config) as registry:
        covered = lineage.covering(targets)
        if not apply:
            _put(report, _found(targets, None, config))
            _put(report, _in_texts(targets, registry, False))
            _put(report, _of_models(targets, registry, covered, config, False))
            if storage.in_use:
                _put(report, storage.check())
            _report_copies(targets, report)
            return report
        if _changes(targets, config):
            # Ask DVC before staging: a staged file beside an input changes the folder that a stage depends on.
            fresh = storage.fresh() if storage.in_use else []
            _put(report, _in_texts(targets, registry, True), purged=True)
            journal = Journal(root)
            _put(report, _found(targets, journal, config), purged=True)
            _put(report, lineage.products(targets, covered, journal), purged=True)
            finding = lineage.original(targets, registry, covered, config.sweep.original)
            again = False
            if isinstance(finding, Residue):
                report.did([finding])
                again = lineage.replace_original(targets, registry, covered, journal)
            elif finding is not None:
                report.not_purgeable.append(finding)
            journal.swap(home(root) / ROWS).write_bytes(targets.tombstones.to_bytes())
            # The tombstones are swapped first: they keep every stage from reading outputs that are not swapped yet.
            journal.swaps.insert(0, journal.swaps.pop())
            journal.notes = {
                "fresh": fresh,
                "covered": covered,
                "again": again,
                "found": [[r.where, r.what, r.count] for r in report.purged],
            }
            journal.commit()
            journal.finish()
            _collect(storage, config, journal, report)
        elif len(targets.tombstones):
            _put(report, _stray(storage, registry, report), purged=True)
    _look_again(storage, config, report)
    _report_copies(targets, report)
    return report


def _found(targets: Targets, journal: Journal | None, config: Config) -> Iterator[inputs.Found]:
    """Yield the places that hold rows to erase; with a journal, also stage their new state."""
    for sweeper in outputs.SWEEPERS:
        yield from sweeper(targets, journal)
    yield from inputs.source(targets, journal, config.data)
    yield from inputs.requests(targets, journal)
    yield from inputs.work(targets, journal)


def _changes(targets: Targets, config: Config) -> bool:
    """Return whether any store holds a row to erase."""
    return any(isinstance(found, Residue) for found in _found(targets, None, config))


def _in_texts(targets: Targets, registry: lineage.Registry | None, apply: bool) -> Iterator[inputs.Found]:
    yield from texts.reports(targets, apply)
    yield from texts.mlflow(targets, apply)
    yield from texts.prefect(targets, apply)
    yield from texts.ids_in_history(targets)
    if registry is not None:
        yield from lineage.examples(targets, registry, apply)


def _of_models(
    targets: Targets, registry: lineage.Registry | None, covered: list[str], config: Config, apply: bool
) -> Iterator[inputs.Found]:
    if (finding := lineage.original(targets, registry, covered, config.sweep.original)) is not None:
        yield finding
    yield from lineage.products(targets, covered, None)
    if registry is not None and targets.erased.any():
        policy = config.sweep.versions if apply or config.sweep.versions == "keep" else "look"
        yield from lineage.versions(registry, covered, policy)


def _stray(storage: Storage, registry: lineage.Registry | None, report: SweepReport) -> Iterator[inputs.Found]:
    """Collect garbage when the data holds no row to erase: caches and registry may have regained erased content."""
    if storage.in_use and any(True for _ in storage.check()):
        storage.collect(report)
    if registry is not None and any(True for _ in lineage.garbage(registry, [], False)):
        yield from lineage.garbage(registry, [], True)


def _collect(storage: Storage, config: Config, journal: Journal, report: SweepReport) -> None:
    """Run the steps after the swaps. Each one may already have been done, in whole or in part."""
    root = storage.root
    if journal.notes["again"]:
        for stage in AGAIN:
            _run_stage(root, *stage)
    if storage.in_use:
        storage.commit(journal.notes["fresh"], [*journal.swaps, *journal.drops])
        storage.collect(report)
    with lineage.opened(root, config) as registry:
        if registry is not None:
            covered = journal.notes["covered"]
            _put(report, lineage.versions(registry, covered, config.sweep.versions), purged=True)
            _put(report, lineage.garbage(registry, [], True), purged=True)
    journal.close()


def _look_again(storage: Storage, config: Config, report: SweepReport) -> None:
    """Repeat the first search on the present state, and report what it still finds as left."""
    root = storage.root
    targets = Targets.find(root, (), (), keep=False)
    again = SweepReport(False)
    _put(again, _found(targets, None, config))
    if storage.in_use:
        _put(again, storage.check())
        report.not_purgeable += texts.history(targets, objects(storage.cache))
    with lineage.opened(root, config) as registry:
        if registry is not None:
            _put(again, lineage.garbage(registry, [], False))
    report.left += again.found
    known = {entry.where for entry in report.not_purgeable}
    report.not_purgeable += [entry for entry in again.not_purgeable if entry.where not in known]


def _report_copies(targets: Targets, report: SweepReport) -> None:
    if targets.twins:
        what = "retained rows with the content of an erased row"
        report.left.append(Residue("data/dataset", what, targets.twins, ResidueKind.duplicate))


def _put(report: SweepReport, found: Iterable[inputs.Found], purged: bool = False) -> None:
    """Add findings to the report; with `purged`, residues count as found and purged."""
    for entry in found:
        if isinstance(entry, NotPurgeable):
            report.not_purgeable.append(entry)
        elif purged:
            report.did([entry])
        else:
            report.found.append(entry)


def _run_stage(root: Path, name: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"expunge.stages.{name}", *arguments]
    done = subprocess.run(command, cwd=root, text=True, capture_output=True)
    if done.returncode != 0:
        raise DataError(f"{name}: {done.stderr.strip().splitlines()[-1:]}; correct this, then run the sweep again")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Allow one sweep at a time. The operating system releases the lock of a process that dies."""
    path = root / JOURNAL.parent / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{path}: another sweep is running; wait for it") from None
        yield
    finally:
        os.close(descriptor)
