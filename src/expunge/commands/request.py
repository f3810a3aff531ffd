"""request: requests to erase rows or to correct labels, from intake to completion, on the command line."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from expunge.commands.place import need_workspace
from expunge.erasure.states import OPEN, State, urgency
from expunge.ledger.ledger import Ledger
from expunge.report.console import console
from expunge.system import dvc
from expunge.system.errors import RequestError
from expunge.system.paths import CERTIFICATES, DATASET, LEDGER

if TYPE_CHECKING:
    from expunge.erasure.lifecycle import Lifecycle, Outcome
    from expunge.erasure.requests import ErasureRequest, Store

SOON = 7

By = Annotated[str, typer.Option("--by", help="Who does this; by default the user of this machine.")]
Reason = Annotated[str, typer.Option("--reason", help="Why. It is kept for good, so name no people.")]
Id = Annotated[str, typer.Argument(help="Id of the request, as `expunge request list` shows it.")]

request_app = typer.Typer(
    no_args_is_help=True, help="Handle requests to erase rows or correct labels: intake, deadlines, runs and approval."
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(request_app, name="request")


@request_app.command()
def add(
    ids: Annotated[Path | None, typer.Option(help="File of row ids: .txt, .csv or .parquet.")] = None,
    subject_file: Annotated[Path | None, typer.Option(help="File of subjects, all of whose rows are erased.")] = None,
    classes: Annotated[str | None, typer.Option(help="Classes, by name or index, comma-separated.")] = None,
    correct: Annotated[
        Path | None, typer.Option(help="CSV file, sample_id,label: rows that stay, with their new labels.")
    ] = None,
    basis: Annotated[str, typer.Option(help="Legal basis, for example: GDPR Art. 17(1)(b).")] = "",
    received: Annotated[str | None, typer.Option(help="Day of receipt, YYYY-MM-DD; by default today.")] = None,
    more_than_half: Annotated[
        bool, typer.Option("--more-than-half", help="Allow the request to cover more than half of the rows.")
    ] = False,
    by: By = "",
) -> None:
    """Record a request. A file is copied into data/requests and tracked by DVC; remove your own copy afterwards."""
    from expunge.erasure.intake import take_in

    store = open_store()
    request = take_in(
        store,
        ids=ids,
        subjects=subject_file,
        classes=parse_classes(classes),
        correct=correct,
        basis=basis,
        received=_day(received),
        today=_today(),
        who=_who(by),
        most=more_than_half,
    )
    _publish(store)
    typer.echo(f"{request.id}: received {request.received}, {request.asked} {request.kind}, due {request.due}")


@request_app.command("list")
def list_requests(
    all_: Annotated[bool, typer.Option("--all", help="Also show final requests.")] = False,
    soon: Annotated[int, typer.Option(help="Days before the deadline from which a request is due soon.")] = SOON,
) -> None:
    """List the open requests by deadline. Those that are overdue or due soon are highlighted."""
    from expunge.erasure.intake import strays

    store = open_store()
    out = console()
    out.print(table_of(store.all(State if all_ else OPEN), _today(), soon))
    for stray in strays(store):
        out.print(
            f"Attention: {stray} belongs to no request. Add it again with `expunge request add`, or remove it",
            style="bold red",
        )


@request_app.command()
def show(id_: Id) -> None:
    """Show one request and everything that happened to it."""
    store = open_store()
    request = store.get(id_)
    out = console()
    out.print(table_of([request], _today(), SOON))
    if request.basis:
        out.print(f"basis: {request.basis}")
    if request.reason:
        out.print(f"reason: {request.reason}")
    history = Table("time (UTC)", "what", "state", "by", "reason", "facts")
    for e in store.events(id_):
        facts = ", ".join(f"{k}={v}" for k, v in sorted(e.facts.items()))
        history.add_row(e.at.removesuffix("+00:00"), e.kind, e.state or "", e.who, e.reason, facts)
    out.print(history)
    if request.state not in OPEN:
        out.print("its key is destroyed" if not store.has_key(id_) else "its key is still here")


@request_app.command()
def verify(id_: Id, reason: Reason = "", by: By = "") -> None:
    """Record that the requester's identity was confirmed, and look up the rows in the dataset if it is prepared."""
    from expunge.erasure.selection import asked_values, mask_of

    store = open_store()
    request = store.get(id_)
    asked_values(store, request)
    facts = {}
    if DATASET.is_dir():
        from expunge.data.dataset import Dataset

        facts["found"] = int(mask_of(store, request, Dataset(DATASET, verify=False)).sum())
        if not facts["found"]:
            raise RequestError(
                f"request {id_}: met already, because none of its rows is in the dataset any more. Tell the requester, "
                f'then run `expunge request refuse {id_} --reason "met already"`'
            )
    store.verify(id_, _who(by), reason, facts)
    _publish(store)
    typer.echo(
        f"{id_}: verified"
        + (
            f", {facts['found']:,} rows"
            if facts
            else "; its rows were not looked up, because no dataset is prepared yet"
        )
    )


@request_app.command()
def refuse(id_: Id, reason: Reason, by: By = "") -> None:
    """Refuse a request. Nothing is erased; its list of ids and its key are removed."""
    from expunge.erasure.intake import remove

    store = open_store()
    request = store.refuse(id_, _who(by), reason)
    if request.file:
        remove(Path(request.file))
    _publish(store)
    typer.echo(f"{id_}: refused. Tell the requester why, and that they may complain (GDPR Art. 12(4)).")


@request_app.command()
def extend(
    id_: Id, reason: Reason, months: Annotated[int, typer.Option(help="Months after receipt: 2 or 3.")] = 3, by: By = ""
) -> None:
    """Extend the deadline, to at most three months after receipt."""
    store = open_store()
    request = store.extend(id_, months, _who(by), reason, _today())
    _publish(store)
    typer.echo(f"{id_}: due {request.due}. Tell the requester why, before the first deadline (GDPR Art. 12(3)).")


@request_app.command()
def run(
    within: Annotated[int | None, typer.Option(help="Start only if a request is due within this many days.")] = None,
    by: By = "",
) -> None:
    """Carry out all verified requests in one run: up to the approval and, after it, up to the certificates.

    Corrections of labels have a run of their own; the most urgent request decides which comes first.

    It can be interrupted at any time. Call it again to continue where it stopped.
    """
    from expunge.erasure import ended

    life = lifecycle(_who(by))
    ended.watch(life.store)
    report(life.advance(_today(), within))
    if done := [r for r in ended.ended(life.store) if r.state == "completed"]:
        from expunge.promotion.attachment import attach

        for request in done:
            attach(CERTIFICATES / request.id)
    ended.settle()


@request_app.command()
def approve(reason: Reason, by: By = "") -> None:
    """Approve the waiting version for serving, and the erasure of the rows or of the old labels.

    Look at it with `expunge review` first.
    """
    product = lifecycle(_who(by)).approve(_who(by), reason).facts["product"]
    typer.echo(f"approved: {product['model']} version {product['version']}. Run `expunge request run` to carry it out.")


@request_app.command()
def reject(reason: Reason, by: By = "") -> None:
    """Give up the open run, at its approval or before. Its requests wait for the next run."""
    batch = lifecycle(_who(by)).reject(_who(by), reason)
    typer.echo(f"{batch.id}: rejected. Its requests are scheduled again, and their due dates stay.")


def parse_classes(text: str | None) -> list[int | str]:
    """`"3,bag"` is `[3, "bag"]`."""
    parts = [part.strip() for part in (text or "").split(",")]
    return [int(part) if part.isdigit() else part for part in parts if part]


def table_of(requests: list[ErasureRequest], today: date, soon: int) -> Table:
    """What a person looks at every morning."""
    table = Table("request", "asks for", "state", "received", "due", "left")
    style = {"overdue": "bold red", "due soon": "bold yellow", "": ""}
    for r in requests:
        mark = urgency(r.due, today, soon) if r.state in OPEN else ""
        left = f"{(r.due - today).days} days" if r.state in OPEN else ""
        cells = (r.id, f"{r.asked:,} {r.kind}", r.state, r.received.isoformat(), r.due.isoformat())
        table.add_row(*cells, f"{left}  {mark}".strip(), style=style[mark])
    return table


def report(outcome: Outcome) -> None:
    """What came of a run, in a sentence."""
    if outcome.batch is None:
        typer.echo(f"{outcome.state}: no verified request is due; run `expunge request list` to see the open ones")
        return
    requests = f"{outcome.batch}: {len(outcome.requests)} requests {outcome.state}"
    product = outcome.facts.get("product")
    if outcome.state == "awaiting approval":
        typer.echo(
            f"{requests}. {product['model']} version {product['version']} ({product['method']}, shown: "
            f"{product['claims']}) waits: look at it with `expunge review --version {product['version']}`, then run "
            "`expunge request approve` or `expunge request reject` with a reason"
        )
    elif outcome.state == "completed":
        typer.echo(f"{requests}. Certificates: " + ", ".join(f"records/certificates/{id_}" for id_ in outcome.requests))
    else:
        typer.echo(f"{requests}; run `expunge request show` to see why")


def lifecycle(who: str) -> Lifecycle:
    """In the current directory, its stages run by DVC."""
    from expunge.erasure.lifecycle import Lifecycle

    return Lifecycle(open_store(), Ledger(LEDGER), who=who, pipeline=_pipeline, log=typer.echo)


def _pipeline(stages: Sequence[str] = (), force: bool = False) -> None:
    """All stale stages, or `stages` alone, in this order. Raises RequestError when one fails."""
    single = ["--single-item"] if stages else []
    if not dvc.reproduce(*single, *(["--force"] if force else []), *stages):
        raise RequestError("a stage of the pipeline failed; correct the error shown above and run again")


def open_store() -> Store:
    """Open the store of requests of this workspace."""
    from expunge.erasure.database import DEFAULT_URL, ENV
    from expunge.erasure.requests import Store

    need_workspace(Path(DEFAULT_URL.removeprefix("sqlite:///")), ENV)
    return Store.open()


def _publish(store: Store) -> None:
    store.publish(Ledger(LEDGER))


def _today() -> date:
    return datetime.now(UTC).date()


def _day(text: str | None) -> date:
    try:
        return _today() if text is None else date.fromisoformat(text)
    except ValueError:
        raise RequestError(f"received {text!r}: not a date; write it as YYYY-MM-DD") from None


def _who(by: str) -> str:
    return by or getpass.getuser()
