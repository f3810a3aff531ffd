"""Take a batch of requests from verified to completed, step by step. Only the approval needs a person.

Each step can be repeated: it finds what an interrupted attempt left and does the rest. Its results are recorded in the
transaction that moves the batch to the next step. The process may therefore be killed at any point and resumed by
another, and no effect happens twice.

    prepare   resolve the requests to rows, pass their list to the pipeline
    run       the pipeline: split, retrain, fit, evaluate, register
    judge     choose the version that passes the gates, else the retrained model, else refuse with reasons
    approval  wait for a person: `approve` or `reject`
    promote   move the alias to the approved version
    collect   list the rows for the sweep, remove the lists of ids
    sweep     erase the rows from every store, then write tombstones
    certify   sign the certificates, destroy the keys, complete the requests
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from expunge.data.canaries import CANARIES
from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.erasure import certificate, evidence, history, intake, lists, notify, soundness, standing
from expunge.erasure.batches import Batch, Batches, Step
from expunge.erasure.evidence import manifests
from expunge.erasure.findings import joined
from expunge.erasure.requests import Store
from expunge.erasure.selection import Selection, select, with_split
from expunge.erasure.states import State
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.ledger import SWEEP, Ledger
from expunge.sweep import sweep
from expunge.sweep.journal import Journal
from expunge.sweep.labels import sweep_labels
from expunge.sweep.report import ResidueKind
from expunge.system.errors import RequestError
from expunge.system.files import write_durable, write_text
from expunge.system.paths import DATASET, FORGOTTEN, REGISTRATION, SPLIT
from expunge.training.original import original_digest, remembers_erased

PARAMS = Path("params.yaml")
UNDECIDED = (Step.prepare, Step.run, Step.judge, Step.approval)
FIRST = ("prepare", "validate-dataset")


class Pipeline(Protocol):
    """Runs stages of dvc.yaml in the working directory; with empty `stages`, all stages that are out of date."""

    def __call__(self, stages: Sequence[str] = (), force: bool = False) -> None:
        """Run the stages; with `force` also those that are up to date."""


@dataclass(frozen=True)
class Outcome:
    """An `Outcome` is the result of `advance`.

    `state` is "nothing to do", or the state of the batch's requests. `facts` hold counts, names and verdicts, and no
    ids of rows or of people.
    """

    state: str
    batch: str | None = None
    requests: tuple[str, ...] = ()
    facts: Any = None


class Lifecycle:
    """Carries out batches in the current directory, the root of a workspace. `who` is recorded with every event."""

    def __init__(
        self, store: Store, ledger: Ledger, *, who: str, pipeline: Pipeline, log: Callable[[str], None] = print
    ) -> None:
        self.store, self.ledger, self.who = store, ledger, who
        self.pipeline, self.log = pipeline, log
        self.batches = Batches(store, who, log)
        self.steps: dict[Step, Callable[[Batch], Batch]] = {
            Step.prepare: self._prepare,
            Step.run: self._run,
            Step.judge: self._judge,
            Step.promote: self._promote,
            Step.collect: self._collect,
            Step.sweep: self._sweep,
            Step.certify: self._certify,
        }

    def advance(self, today: date, within: int | None = None) -> Outcome:
        """Continue the open batch, or open one, until it ends or waits for approval.

        `within`: see `Batches.claim`. Raises RequestError if another process holds the batch. If a step raises, the
        batch stays at that step.
        """
        history.check(self.store, self.ledger)
        self.store.publish(self.ledger)
        if self.batches.current() is None:  # the stores cannot be read while a sweep is unfinished
            self._record_by_hand()
        self._notify()
        batch = self.batches.claim(today, within)
        if batch is None:
            return Outcome("nothing to do")
        with self.batches.renewed_lease():
            while batch.open and batch.step != Step.approval:
                self.log(f"{batch.id}: {batch.step}")
                batch = self.steps[batch.step](batch)
                self.store.publish(self.ledger)
        requests = self.batches.requests(batch)
        if batch.open:
            self.batches.release(batch)
        self._notify()
        return Outcome(requests[0].state, batch.id, tuple(r.id for r in requests), batch.facts)

    def approve(self, who: str, reason: str) -> Batch:
        """Approve the product of the open batch for serving. Raises RequestError if no batch waits for approval."""
        batch = self._claimed(reason, (Step.approval,))
        facts = {"approved_by": who, "approved_because": reason.strip()}
        event_facts = {key: batch.facts["product"][key] for key in ("model", "version")}
        after = self.batches.at(batch, Step.promote, facts, State.running, "approval", reason.strip(), who, event_facts)
        self.batches.release(after)
        self.store.publish(self.ledger)
        return after

    def reject(self, who: str, reason: str) -> Batch:
        """Close the open batch, which must not be approved yet.

        Its requests wait for the next batch, and their due dates stay. Raises RequestError if no such batch is open.
        """
        batch = self._claimed(reason, UNDECIDED)
        self._clean_up(batch)
        after = self.batches.at(batch, Step.closed, {}, State.scheduled, "rejection", reason.strip(), who)
        self.store.publish(self.ledger)
        return after

    def _prepare(self, batch: Batch) -> Batch:
        self.pipeline(FIRST)
        if (DATASET / CANARIES).is_file():
            raise RequestError(
                f"{batch.id}: canaries are planted here, which are copies of rows that an erasure would not find. Set "
                "data.canaries to 0, or audit in a separate workspace"
            )
        if remembers_erased(self.ledger):
            # The original was trained on rows that have since been erased, and a model made from it would retain them.
            self.log(f"{batch.id}: training the original again, without the rows that were erased")
            self.pipeline(["train"], force=True)
            if remembers_erased(self.ledger):
                raise RequestError(
                    f"{batch.id}: models/original remembers rows that were erased, and there is no recipe to train it "
                    "again (model.training: none). Give a checkpoint that never saw them, or refuse the requests"
                )
        selection = self._selection(batch)
        if not (selection.erase & selection.train).any():
            # No model was trained on test rows: if only such rows are requested, no unlearning is needed.
            soundness.check_untrained(Dataset(DATASET), selection.erase)
            return self.batches.at(batch, Step.collect, {})
        intake.write_values(lists.to_forget(batch), *lists.content(selection, Dataset(DATASET).sample_ids()))
        params = PARAMS.read_text(encoding="utf-8")
        original = batch.facts.get("params", params)
        if "params" not in batch.facts:
            batch = self.batches.at(batch, Step.prepare, {"params": original})
        write_text(PARAMS, with_split(original, lists.to_forget(batch), selection.labels is not None))
        return self.batches.at(batch, Step.run, {})

    def _run(self, batch: Batch) -> Batch:
        self.pipeline()
        return self.batches.at(batch, Step.judge, {})

    def _judge(self, batch: Batch) -> Batch:
        from expunge.erasure import candidate  # imports MLflow, which takes seconds, and approving needs none of it

        selection = self._selection(batch)
        if not selection.is_that_of(Split(SPLIT), Dataset(DATASET)):
            self.batches.release(self.batches.at(batch, Step.prepare, {}))
            raise RequestError(
                f"{batch.id}: the pipeline forgot other rows than were asked for, or taught other labels. Either "
                "params.yaml was changed, or somebody else works in this folder. The next run starts over"
            )
        soundness.results()
        chosen = candidate.choose()
        if isinstance(chosen, candidate.Refusal):
            self._remove_lists(batch)
            return self.batches.at(batch, Step.closed, {}, State.refused, "refusal", chosen.reason)
        soundness.models()
        run = evidence.of_run(chosen, selection)
        again = run["each"].get("again")
        product = {"model": chosen.model, "version": chosen.version, "method": chosen.method, "claims": chosen.claims}
        event_facts = {**product, "dvc_lock": run["source"]["dvc_lock"], **({"again": again} if again else {})}
        rows = soundness.fingerprints(self.store, Dataset(DATASET), selection.of)
        facts = {"product": product, "run": run, "rows": rows}
        return self.batches.at(batch, Step.approval, facts, State.awaiting_approval, "verdict", event_facts=event_facts)

    def _promote(self, batch: Batch) -> Batch:
        from expunge.promotion.session import ReviewSession  # imports MLflow

        self._refuse_changed(batch, self._selection(batch))
        product = batch.facts["product"]
        promoter = ReviewSession(product["model"], self.ledger.path).promoter
        version = promoter.version(product["version"])
        seen = {"batch": batch.id, "approved_by": batch.facts["approved_by"]}
        entry = promoter.settle(version, seen)
        if entry is None:
            head = promoter.history().head
            entry = promoter.promote(version, batch.facts["approved_because"], head, seen, batch.facts["approved_by"])
        facts = {"promotion": entry.hash, "instead_of": entry.facts["instead_of"]}
        return self.batches.at(batch, Step.collect, facts)

    def _collect(self, batch: Batch) -> Batch:
        if not lists.to_erase(batch).is_file():
            selection = self._selection(batch)
            self._refuse_changed(batch, selection)
            if "product" in batch.facts and soundness.LOCK.is_file():
                soundness.results()
            ids = Dataset(DATASET).sample_ids()
            rows = soundness.contents([ids[i] for i in np.flatnonzero(selection.erase)])
            params = batch.facts.get("params", PARAMS.read_text(encoding="utf-8"))
            left = standing.rows_asked(params, Dataset(DATASET)) & ~selection.erase
            met = selection.labels is None and not left.any()
            wanted = {"rows": rows, "people": selection.people, "labels": selection.labels, "met": met}
            write_durable(lists.to_erase(batch), json.dumps(wanted).encode())
        self._remove_lists(batch)
        if lists.wanted(batch)["met"]:
            standing.keep_split()
        # The dry run is recorded before anything is erased: the rerun of a sweep killed at its end would find nothing.
        looked = self._swept(batch, apply=False)
        facts = {"original": original_digest(), "manifests_before": manifests(), "looked": looked}
        return self.batches.at(batch, Step.sweep, facts)

    def _sweep(self, batch: Batch) -> Batch:
        if Journal.of(Path.cwd()) is None:  # with a journal, an interrupted sweep has already erased from some stores
            soundness.check_unchanged(batch.id, lists.wanted(batch)["rows"])
        found = joined(batch.facts["looked"], self._swept(batch, apply=True))
        # Duplicates that belong to others stay if params.yaml says so; the certificate lists them.
        blocking = [r for r in found["left"] if r["kind"] != ResidueKind.duplicate]
        if blocking:
            where = "; ".join(sorted({f"{r['what']} at {r['where']}" for r in blocking}))
            raise RequestError(f"{batch.id}: the sweep left residues ({where}); remove what holds them and run again")
        event_facts = {"original": batch.facts["original"], **{k: len(v) for k, v in found.items()}}
        if labels := lists.wanted(batch).get("labels"):
            event_facts["labels_replaced"] = len(labels)
        facts = {"sweep": found, "manifests_after": manifests()}
        return self.batches.at(batch, Step.certify, facts, kind=SWEEP, event_facts=event_facts)

    def _certify(self, batch: Batch) -> Batch:
        soundness.check_erased_absent()
        history.check(self.store, self.ledger)
        lists.to_erase(batch).unlink(missing_ok=True)
        written = certificate.write(self.store, self.ledger, batch, self.batches.requests(batch))
        event_facts = {"of": {id_: {"certificate": digest} for id_, digest in written.items()}}
        return self.batches.at(batch, Step.closed, {}, State.completed, "completion", event_facts=event_facts)

    def _swept(self, batch: Batch, apply: bool) -> dict[str, list[dict[str, Any]]]:
        wanted = lists.wanted(batch)
        if wanted.get("labels"):
            return sweep_labels(Path.cwd(), wanted["labels"], apply=apply).as_dict()
        return sweep(Path.cwd(), rows=list(wanted["rows"]), subjects=wanted["people"], apply=apply).as_dict()

    def _refuse_changed(self, batch: Batch, selection: Selection) -> None:
        """Return the batch to `prepare` and raise RequestError if rows of its requests changed after the verdict."""
        now = soundness.fingerprints(self.store, Dataset(DATASET), selection.of)
        if other := soundness.changed(batch.facts.get("rows"), now):
            self.batches.release(self.batches.at(batch, Step.prepare, {}))
            raise RequestError(
                f"{batch.id}: the rows of {', '.join(other)} in {DATASET} are not those that the run was judged on, "
                "so the verdict does not apply to them. The next run starts over"
            )

    def _selection(self, batch: Batch) -> Selection:
        return select(self.store, self.batches.requests(batch), Dataset(DATASET), ForgottenRows(FORGOTTEN))

    def _clean_up(self, batch: Batch, *others: Path) -> None:
        """Remove the list given to the pipeline and `others`; restore params.yaml unless somebody else changed it."""
        before, correct = batch.facts.get("params"), self.batches.requests(batch)[0].kind == "labels"
        ours = None if before is None else with_split(before, lists.to_forget(batch), correct)
        if before is not None and PARAMS.read_text(encoding="utf-8") == ours:
            write_text(PARAMS, before)
        intake.remove(lists.to_forget(batch), *others)

    def _remove_lists(self, batch: Batch) -> None:
        """Clean up, and remove the lists of the requests as well."""
        self._clean_up(batch, *(Path(r.file) for r in self.batches.requests(batch) if r.file))

    def _claimed(self, reason: str, steps: Sequence[Step]) -> Batch:
        """Claim the open batch at one of `steps`. Raises RequestError if there is none, or if `reason` is empty."""
        if not reason.strip():
            raise RequestError("a reason is needed, because the ledger and the certificate record it")
        found = self.batches.current()
        batch = self.batches.claim(date.today()) if found and found.step in steps else None
        if batch is None or batch.step not in steps:
            if batch is not None:
                self.batches.release(batch)
            state = f"run {found.id} is at step {found.step}" if found else "none is open"
            raise RequestError(f"no run waits for this: {state}; continue with `expunge request run`")
        return batch

    def _record_by_hand(self) -> None:
        if not REGISTRATION.is_file():
            return
        from expunge.promotion.session import ReviewSession  # imports MLflow

        if entry := ReviewSession(ledger=self.ledger.path).promoter.record_by_hand():
            self.log(f"the champion was moved by hand to version {entry.facts['version']}; see `expunge audit`")

    def _notify(self) -> None:
        """Notify the recipients of every final request of which they have not been notified."""
        for request in self.store.all([State.completed, State.refused]):
            if not request.told and notify.send(request, self.log):
                self.store.tell(request.id)
