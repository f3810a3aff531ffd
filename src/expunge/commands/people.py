"""demo-people: train once, then three people ask to be forgotten, one after the other; a certificate for each."""

from __future__ import annotations

import time
from contextlib import chdir
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from expunge.commands.request import lifecycle, open_store
from expunge.ledger.ledger import Ledger
from expunge.report.console import console
from expunge.system.errors import RequestError
from expunge.system.files import read_json
from expunge.system.paths import CERTIFICATES, DATASET, LEDGER, SUMMARY

if TYPE_CHECKING:
    from expunge.erasure.requests import ErasureRequest, Store

# Characters with 24 pictures each: two vendors, two forms, six skin tones. Public drawings, nobody's data.
PEOPLE = ("superhero", "surfer", "fairy")
WHO = "demo"


@dataclass(frozen=True)
class Deleted:
    """What became of one request.

    `rows`: training and test rows. `accuracy`: that of the version that serves then, on test rows. `certificate`: its
    folder.
    """

    person: str
    rows: tuple[int, int]
    seconds: float
    claim: str
    accuracy: float
    certificate: Path


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(demo_people)


def demo_people() -> None:
    """Train once on emoji whose characters stand for people, then delete three of them, from request to certificate.

    The deletions are exact and run one after the other, in their own workspace `.expunge/people`.
    """
    from expunge.workspaces.demo import train_people

    workspace, seconds = train_people(Path.cwd())
    out = console()
    out.print(f"encoding and training, done once: {seconds:.0f} s")
    with chdir(workspace):
        done = []
        for person in PEOPLE:
            done.append(delete(person))
            out.print(f"{person}: {done[-1].seconds:.1f} s from request to certificate")
    out.print(table_of(done, workspace.relative_to(Path.cwd())))
    out.print(
        f"{sum(d.seconds for d in done):.0f} s for {len(done)} people. To compute the head of the last deletion again, "
        f"run `expunge certificate audit {done[-1].certificate}` in {workspace.relative_to(Path.cwd())}."
    )


def delete(person: str) -> Deleted:
    """A request for all rows of `person`, through its whole life, in the current directory.

    This demo verifies who asks, and approves. Raises RequestError where it does not end with a certificate.
    """
    from expunge.erasure.intake import take_in
    from expunge.promotion.attachment import attach

    began, today = time.perf_counter(), datetime.now(UTC).date()
    store, ledger = open_store(), Ledger(LEDGER)
    asked = Path("asked.txt")
    asked.write_text(f"{person}\n", encoding="utf-8")
    try:
        request = take_in(store, subjects=asked, basis="a demo", received=today, today=today, who=WHO)
    finally:
        asked.unlink()
    found = rows_of(store.get(request.id), store)
    store.verify(request.id, WHO, "a demo", {"found": sum(found)})
    life = lifecycle(WHO)
    outcome = life.advance(today)
    if outcome.state != "awaiting approval":
        raise RequestError(
            f"request {request.id} is {outcome.state}; run `expunge request show {request.id}` to see why"
        )
    accuracy = float(read_json(SUMMARY)["methods"]["exact"]["accuracy"]["test_retain"])
    life.approve(WHO, "a demo")
    outcome = life.advance(today)
    if outcome.state != "completed":
        raise RequestError(f"request {request.id} is {outcome.state}; run `expunge request run` to continue it")
    folder = CERTIFICATES / request.id
    attach(folder)
    store.publish(ledger)
    claim = read_json(folder / "certificate.json")["certificate"]["unlearning"]["claim"]["shown"]
    return Deleted(person, found, time.perf_counter() - began, claim, accuracy, folder)


def rows_of(request: ErasureRequest, store: Store) -> tuple[int, int]:
    """Training and test rows that a request names."""
    from expunge.data.dataset import Dataset
    from expunge.data.schema import TRAIN
    from expunge.erasure.selection import mask_of

    dataset = Dataset(DATASET, verify=False)
    mask = mask_of(store, request, dataset)
    train = int((mask & (dataset.splits() == TRAIN)).sum())
    return train, int(mask.sum()) - train


def table_of(done: list[Deleted], workspace: Path) -> Table:
    """Return the table of all requests: a line per person, with certificates as paths below `workspace`."""
    table = Table("person", "rows", "seconds", "shown", "test accuracy", "certificate")
    for d in done:
        rows = f"{d.rows[0]} + {d.rows[1]} test"
        table.add_row(d.person, rows, f"{d.seconds:.1f}", d.claim, f"{d.accuracy:.2%}", str(workspace / d.certificate))
    return table
