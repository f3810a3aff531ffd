"""Nightly flow for erasure requests that are due: one run of the pipeline, approval by a person, and certificates.

The steps are those of `expunge.erasure.lifecycle`, so the next run continues the work of one that was killed.
"""

from __future__ import annotations

from contextlib import chdir
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from expunge.commands.request import parse_classes
from expunge.erasure import ended as ended_requests
from expunge.erasure import intake
from expunge.erasure.notify import message
from expunge.erasure.requests import Store
from expunge.erasure.states import OPEN, urgency
from expunge.ledger.ledger import Ledger
from expunge.promotion.attachment import attach
from expunge.promotion.session import ReviewSession
from expunge.system.paths import CERTIFICATES, LEDGER
from flows.naming import when
from flows.promote import Decision, form, show
from flows.unlearn import bring_up_to_date

if TYPE_CHECKING:
    from expunge.erasure.lifecycle import Outcome
    from expunge.erasure.requests import Store

FINAL = "expunge.request"  # followed by the state: expunge.request.completed, expunge.request.refused
SOON = 7


def run_name() -> str:
    """Return the name of a flow run."""
    return f"erasure requests · {when()}"


@flow(name="erasure", flow_run_name=run_name, log_prints=True)
def erasure(
    workspace: str = ".",
    ids_file: str | None = None,
    subject_file: str | None = None,
    classes: list[str] | None = None,
    basis: str = "",
    received: date | None = None,
    more_than_half: bool = False,
    within: Annotated[int | None, Field(ge=0)] = None,
    wait_hours: Annotated[float, Field(gt=0, le=24 * 90)] = 72.0,
) -> State[object]:
    """Carry out every verified erasure request: one run of the pipeline, approval, promotion, sweep, certificates.

    With a file or classes, a new request is recorded first. It waits until somebody has verified it.

    Args:
        workspace: Folder with dvc.yaml and params.yaml; "." is the deployment's own.
        ids_file: Path, on the worker, of a list of row ids. Never the ids themselves, because parameters are stored.
        subject_file: Path, on the worker, of a list of subjects, all of whose rows are erased.
        classes: Classes to forget, by name or index.
        basis: Legal basis, for example GDPR Art. 17(1)(b).
        received: Day on which the request was received; today if left out.
        more_than_half: The new request may be for more than half of the rows; otherwise such a request is refused.
        within: Start only if a request is due within this many days; every night if left out.
        wait_hours: How long to wait for the approval. If nobody answers, the next run asks again.
    """
    root = Path(workspace).resolve()
    with chdir(root):
        from expunge.erasure.lifecycle import Lifecycle

        store, ledger, today = Store.open(), Ledger(LEDGER), datetime.now(UTC).date()
        if ids_file or subject_file or classes:
            take_in(store, ids_file, subject_file, classes, basis, received, today, more_than_half)
            store.publish(ledger)
        overview(store, today)
        ended_requests.watch(store)
        life = Lifecycle(store, ledger, who="erasure deployment", pipeline=stages, log=print)
        outcome = life.advance(today, within)
        if outcome.state == "awaiting approval":
            answer = ask(root, outcome, wait_hours)
            if answer is None:
                return Completed(
                    name="AwaitingApproval", message=f"{outcome.batch}: nobody decided; the next run asks again"
                )
            if answer.decision == "refuse":
                life.reject(answer.approver, answer.reason)
                return Completed(name="Rejected", message=f"{outcome.batch}: {answer.reason}")
            life.approve(answer.approver, answer.reason)
            outcome = life.advance(today)
        tell(store)
        overview(store, today)
    return ended(outcome)


def stages(stages: Any = (), force: bool = False) -> None:
    """Run the pipeline in the working directory, one task per stage."""
    bring_up_to_date(Path.cwd(), list(stages) or None, force)


def take_in(
    store: Store,
    ids_file: str | None,
    subject_file: str | None,
    classes: list[str] | None,
    basis: str,
    received: date | None,
    today: date,
    most: bool,
) -> None:
    """Record a new request. With `most` it may be for more than half of the rows."""
    request = intake.take_in(
        store,
        ids=Path(ids_file) if ids_file else None,
        subjects=Path(subject_file) if subject_file else None,
        classes=parse_classes(",".join(classes or [])),
        basis=basis,
        received=received or today,
        today=today,
        who="erasure deployment",
        most=most,
    )
    print(
        f"{request.id}: received {request.received}, due {request.due}; verify it with "
        f"`expunge request verify {request.id}`"
    )


def overview(store: Store, today: date) -> None:
    """Publish a table of the open requests by deadline. Its description counts those that are overdue or due soon."""
    open_ = store.all(OPEN)
    marks = [urgency(r.due, today, SOON) for r in open_]
    rows = [
        {
            "due": r.due.isoformat(),
            "days left": (r.due - today).days,
            "": mark,
            "request": r.id,
            "state": str(r.state),
            "asks for": f"{r.asked:,} {r.kind}",
            "received": r.received.isoformat(),
        }
        for r, mark in zip(open_, marks, strict=True)
    ]
    counts = ", ".join(f"{marks.count(mark)} {mark}" for mark in ("overdue", "due soon") if mark in marks)
    create_table_artifact(
        key="erasure-requests",
        table=rows,
        description=f"{len(open_)} open requests" + (f": **{counts}**" if counts else ", none of them urgent"),
    )


def ask(root: Path, outcome: Outcome, hours: float) -> Decision | None:
    """Show the review, pause for the approval form, and return the decision; None if nobody answered in time."""
    product = outcome.facts["product"]
    seen = ReviewSession(product["model"]).review(product["version"])
    show(root, seen)
    about = (
        f"# {outcome.batch}: {len(outcome.requests)} requests\n\n"
        "If you promote, the version serves and the rows are erased for good, or their old labels replaced. If you "
        "refuse, the requests wait for another run.\n\n"
    )
    try:
        return pause_flow_run(
            wait_for_input=Decision.with_initial_data(description=about + form(root, seen)),
            timeout=int(hours * 3600),
            poll_interval=5,
        )
    except FlowPauseTimeout:
        return None


def tell(store: Store) -> None:
    """Emit an event for every request that became final, and publish its certificate as an artifact.

    Those that an earlier run finished before it was killed are told, too, so an event may come twice.
    """
    final = ended_requests.ended(store)
    for request in final:
        emit_event(
            f"{FINAL}.{request.state}",
            resource={"prefect.resource.id": f"expunge.request.{request.id}", "prefect.resource.name": request.id},
            payload=message(request),
        )
        if request.state == "completed":
            create_markdown_artifact(
                key="erasure-certificate",
                markdown=f"Certificate on the worker: `{(CERTIFICATES / request.id).resolve()}`",
                description=f"Request {request.id} is completed",
            )
    for request in final:  # last, so that events are emitted even if the registry fails
        if request.state == "completed":
            attach(CERTIFICATES / request.id)
    ended_requests.settle()


def ended(outcome: Outcome) -> State[object]:
    """Return the state in which the flow run ends: failed if requests were refused, otherwise completed."""
    if outcome.batch is None:
        return Completed(name="NothingToDo", message="No verified request is due.")
    message = f"{outcome.batch}: {len(outcome.requests)} requests {outcome.state}."
    if outcome.state == "refused":
        # The run fails, because somebody must inform the requesters.
        return Failed(name="Refused", message=message)
    return Completed(message=message)


if __name__ == "__main__":
    erasure()
