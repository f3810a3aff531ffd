"""Replace labels for good: in the source, the dataset, the features, and whatever was made under the old labels.

It works as the sweep of rows does (`expunge.sweep`): find, stage, commit the journal, swap, collect, look again. The
original is replaced by the champion if that was taught the new labels. Versions that were taught the old ones go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from expunge.config import Config, load_config
from expunge.data.corrected import LABELS
from expunge.data.tombstones import home
from expunge.sweep import label_inputs, label_outputs, lineage
from expunge.sweep.half_written import half_written
from expunge.sweep.inputs import Found
from expunge.sweep.journal import Journal
from expunge.sweep.label_targets import LabelTargets
from expunge.sweep.report import Residue, SweepReport
from expunge.sweep.steps import alone, carry_out, finish_interrupted, look_again, put
from expunge.sweep.storage import Storage


def sweep_labels(root: Path, labels: Mapping[str, str] | None = None, *, apply: bool = False) -> SweepReport:
    """Give the rows of `labels` (class name by id) their new labels in the workspace `root`.

    Labels that were corrected earlier and have come back are replaced too; without `labels` the call only repairs.
    After a crash the next call with `apply` finishes the sweep. `apply=False` is a dry run. Raises DataError, before
    anything is changed, for rows that are not in the dataset.
    """
    root = Path(root).resolve()
    with alone(root):
        config, report = load_config(root / "params.yaml"), SweepReport(apply)
        finish_interrupted(root, config, apply, report)
        targets, storage = LabelTargets.find(root, labels or {}, keep=apply), Storage(root)
        with lineage.opened(root, config) as registry:
            covered = targets.covering
            if not apply:
                put(report, _found(targets, None, config))
                put(report, _of_models(targets, registry, covered, config))
                if storage.in_use:
                    put(report, storage.check())
                return report
            if any(isinstance(found, Residue) for found in _found(targets, None, config)):
                # Ask DVC before staging: a staged file beside an input changes the folder that a stage depends on.
                fresh = storage.fresh() if storage.in_use else []
                journal = Journal(root)
                put(report, _found(targets, journal, config), purged=True)
                record = home(root) / LABELS, targets.corrected.to_bytes()
                carry_out(journal, targets, record, storage, config, registry, covered, fresh, report)
        look_again(storage, config, report, _found(LabelTargets.find(root, {}, keep=False), None, config))
        return report


def _found(targets: LabelTargets, journal: Journal | None, config: Config) -> Iterator[Found]:
    """Yield the places with old labels; with a journal, also stage their new state."""
    for sweeper in label_outputs.SWEEPERS:
        yield from sweeper(targets, journal)
    yield from label_inputs.source(targets, journal, config.data)
    yield from label_inputs.work(targets, journal)
    yield from half_written(targets, journal)


def _of_models(
    targets: LabelTargets, registry: lineage.Registry | None, covered: list[str], config: Config
) -> Iterator[Found]:
    if (finding := lineage.original(targets, registry, covered, config.sweep.original)) is not None:
        yield finding
    if registry is not None and targets.trained:
        yield from lineage.versions(registry, covered, "keep" if config.sweep.versions == "keep" else "look")
