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

from collections.abc import Iterable, Iterator
from pathlib import Path

from expunge.config import Config, load_config
from expunge.data.tombstones import ROWS, home
from expunge.sweep import inputs, lineage, outputs, texts
from expunge.sweep.half_written import half_written
from expunge.sweep.journal import Journal
from expunge.sweep.report import NotPurgeable, Residue, ResidueKind, SweepReport
from expunge.sweep.steps import alone, carry_out, finish_interrupted, look_again, put
from expunge.sweep.storage import Storage
from expunge.sweep.targets import Targets

__all__ = ["NotPurgeable", "Residue", "SweepReport", "sweep"]


def sweep(root: Path, rows: Iterable[str] = (), *, subjects: Iterable[str] = (), apply: bool = False) -> SweepReport:
    """Erase `rows` (ids) and all rows of `subjects` from the workspace `root` and every store that it uses.

    Rows that were erased earlier and have come back are erased too; without `rows` the call only repairs. After a crash
    the next call with `apply` finishes the sweep. `apply=False` is a dry run. Raises DataError, before anything is
    changed, for rows that never were in the dataset.
    """
    root = Path(root).resolve()
    with alone(root):
        return _sweep(root, list(rows), list(subjects), apply)


def _sweep(root: Path, rows: list[str], subjects: list[str], apply: bool) -> SweepReport:
    config = load_config(root / "params.yaml")
    report = SweepReport(apply)
    finish_interrupted(root, config, apply, report)
    targets = Targets.find(root, rows, subjects, keep=apply)
    storage = Storage(root)
    with lineage.opened(root, config) as registry:
        covered = lineage.covering(targets)
        if not apply:
            put(report, _found(targets, None, config))
            put(report, _in_texts(targets, registry, False))
            put(report, _of_models(targets, registry, covered, config, False))
            if storage.in_use:
                put(report, storage.check())
            _report_copies(targets, report)
            return report
        if _changes(targets, config):
            # Ask DVC before staging: a staged file beside an input changes the folder that a stage depends on.
            fresh = storage.fresh() if storage.in_use else []
            put(report, _in_texts(targets, registry, True), purged=True)
            journal = Journal(root)
            put(report, _found(targets, journal, config), purged=True)
            put(report, lineage.products(targets, covered, journal), purged=True)
            record = home(root) / ROWS, targets.tombstones.to_bytes()
            carry_out(journal, targets, record, storage, config, registry, covered, fresh, report)
        elif len(targets.tombstones):
            put(report, _stray(storage, registry, report), purged=True)
    look_again(storage, config, report, _found(Targets.find(root, (), (), keep=False), None, config))
    _report_copies(targets, report)
    return report


def _found(targets: Targets, journal: Journal | None, config: Config) -> Iterator[inputs.Found]:
    """Yield the places that hold rows to erase; with a journal, also stage their new state."""
    for sweeper in outputs.SWEEPERS:
        yield from sweeper(targets, journal)
    yield from inputs.source(targets, journal, config.data)
    yield from inputs.requests(targets, journal)
    yield from inputs.work(targets, journal)
    yield from half_written(targets, journal)


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


def _report_copies(targets: Targets, report: SweepReport) -> None:
    if targets.twins:
        what = "retained rows with the content of an erased row"
        report.left.append(Residue("data/dataset", what, targets.twins, ResidueKind.duplicate))
