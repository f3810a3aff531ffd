"""Steps that a sweep of rows and a sweep of labels have in common."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.config import Config
from expunge.sweep import inputs, lineage, texts
from expunge.sweep.journal import JOURNAL, Journal
from expunge.sweep.report import NotPurgeable, Residue, SweepReport
from expunge.sweep.storage import Storage, objects
from expunge.system.errors import DataError

# Stages that extract features and activations again after the original's backbone was replaced.
AGAIN = (("extract", "original"), ("activations",))


@contextmanager
def alone(root: Path) -> Iterator[None]:
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


def finish_interrupted(root: Path, config: Config, apply: bool, report: SweepReport) -> None:
    """Finish a sweep that was interrupted after its commit. Raises DataError for a dry run, which changes nothing."""
    pending = Journal.of(root)
    if pending is None:
        return
    if not apply:
        raise DataError(f"{root / JOURNAL}: a sweep was interrupted; run `expunge sweep --apply` to finish it")
    pending.finish()
    report.did(Residue(*residue) for residue in pending.notes["found"])
    collect(Storage(root), config, pending, report)


def carry_out(
    journal: Journal,
    targets: lineage.SweepTarget,
    record: tuple[Path, bytes],
    storage: Storage,
    config: Config,
    registry: lineage.Registry | None,
    covered: list[str],
    fresh: list[str],
    report: SweepReport,
) -> None:
    """Stage the champion as the original, commit the journal with all that is staged, and do what follows.

    `record` is the path and content of the file that keeps the rows or labels out of every later run. It is swapped
    first: it keeps every stage from reading outputs that are not swapped yet.
    """
    finding = lineage.original(targets, registry, covered, config.sweep.original)
    again = False
    if isinstance(finding, Residue):
        report.did([finding])
        again = lineage.replace_original(targets, registry, covered, journal)
    elif finding is not None:
        report.not_purgeable.append(finding)
    place = journal.swap(record[0])
    place.write_bytes(record[1])
    place.chmod(0o600)
    journal.swaps.insert(0, journal.swaps.pop())
    journal.notes = {
        "fresh": fresh,
        "covered": covered if targets.trained else None,
        "again": again,
        "found": [[r.where, r.what, r.count] for r in report.purged],
    }
    journal.commit()
    journal.finish()
    collect(storage, config, journal, report)


def collect(storage: Storage, config: Config, journal: Journal, report: SweepReport) -> None:
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
            if (covered := journal.notes["covered"]) is not None:  # else no version was trained on what is swept
                put(report, lineage.versions(registry, covered, config.sweep.versions), purged=True)
            put(report, lineage.garbage(registry, [], True), purged=True)
    journal.close()


def look_again(storage: Storage, config: Config, report: SweepReport, found: Iterable[inputs.Found]) -> None:
    """Search DVC's storage, git and the registry again; report what they and the workspace (`found`) hold as left."""
    again = SweepReport(False)
    put(again, found)
    if storage.in_use:
        put(again, storage.check())
        report.not_purgeable += texts.history(storage.root, objects(storage.cache))
    with lineage.opened(storage.root, config) as registry:
        if registry is not None:
            put(again, lineage.garbage(registry, [], False))
    report.left += again.found
    known = {entry.where for entry in report.not_purgeable}
    report.not_purgeable += [entry for entry in again.not_purgeable if entry.where not in known]


def put(report: SweepReport, found: Iterable[inputs.Found], purged: bool = False) -> None:
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
