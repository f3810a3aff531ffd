"""review, promote, rollback, audit, export and the ledger: what people do with registered versions."""

from __future__ import annotations

import getpass
import json as codec
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from expunge.commands.place import need_runs
from expunge.config import load_config
from expunge.ledger.clock import set_back
from expunge.ledger.keys import PublicKey
from expunge.ledger.ledger import Ledger
from expunge.report.console import console
from expunge.system.addresses import shown
from expunge.system.errors import PromotionError
from expunge.system.paths import LEDGER

if TYPE_CHECKING:
    from expunge.promotion.session import ReviewSession
    from expunge.serving.servable import Servable

Model = Annotated[
    str | None, typer.Option("--model", help="Registered model; by default the one that the last run registered.")
]
Version = Annotated[str, typer.Option("--version", help="Version number, or an alias.")]
Reason = Annotated[str, typer.Option("--reason", help="Why. The ledger keeps it for good, so name no people.")]
By = Annotated[str, typer.Option("--by", help="Who decides; by default the user of this machine.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
LedgerPath = Annotated[Path, typer.Option("--ledger", help="The ledger file, to which decisions are written.")]

LAST_SHOWN = 200

ledger_app = typer.Typer(
    no_args_is_help=True, help="Show and verify the hash-chained record of which version served, and why."
)


def who(by: str) -> str:
    """Who decides: as given, or the user of this machine."""
    return by or getpass.getuser()


def print_json(content: object) -> None:
    """Print `content` as indented JSON."""
    typer.echo(codec.dumps(content, indent=2, ensure_ascii=False))


def session(model: str | None, ledger: Path) -> ReviewSession:
    """Open the registered model `model`, by default that of the last run, with the ledger of its decisions."""
    from expunge.promotion.session import ReviewSession

    need_runs()
    return ReviewSession(model, ledger)


def registered_servable(model: str | None, version: str) -> tuple[Servable, str, str]:
    """Load a version, named by number or alias. Returns the servable, its digest and the address of the version."""
    need_runs()
    from expunge.promotion.promoter import find
    from expunge.promotion.session import registered_name
    from expunge.tracking import connect, servable_of

    chosen = find(connect(), model or registered_name(), version)
    return *servable_of(chosen), chosen.uri


class Format(StrEnum):
    """Formats of `expunge export`."""

    torch = "torch"
    onnx = "onnx"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (review, promote, rollback, audit, export, preflight):
        app.command()(command)
    app.add_typer(ledger_app, name="ledger")


def review(
    version: Version = "challenger", model: Model = None, ledger: LedgerPath = LEDGER, json: Json = False
) -> None:
    """Compare the challenger with the champion: metrics with intervals, changed predictions, answers on forgotten rows.

    If nothing was promoted yet, the original classifier takes the champion's place. The same comparison, with pictures
    of changed test rows, is written to reports/review.html.
    """
    from expunge.promotion.review_terminal import show

    workspace = session(model, ledger)
    seen = workspace.review(version)
    page = workspace.write_page(seen)
    if json:
        print_json({**seen.as_dict(), "page": page.as_posix()})
        return
    show(seen, console())
    typer.echo(f"With pictures: {page}")


def promote(
    reason: Reason,
    version: Version = "challenger",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    by: By = "",
    model: Model = None,
    ledger: LedgerPath = LEDGER,
) -> None:
    """Make a version the champion: check the gates, show what changes, write the ledger, move the alias.

    A version is refused if it is below `register.promote_level`, if its files changed, or if it remembers rows that a
    promoted version had forgotten.
    """
    from expunge.promotion.review_terminal import show

    workspace = session(model, ledger)
    workspace.promoter.record_by_hand()
    head = workspace.promoter.history().head
    seen = workspace.review(version)
    show(seen, console())
    typer.echo(f"With pictures: {workspace.write_page(seen)}")
    if not seen.failed and not yes:
        typer.confirm(f"Make version {seen.challenger.version} of {workspace.name} the champion?", abort=True)
    entry = workspace.promote(seen, reason, head, who(by))
    typer.echo(f"Version {seen.challenger.version} of {workspace.name} is the champion. Ledger entry {entry.seq}.")


def rollback(reason: Reason, by: By = "", model: Model = None, ledger: LedgerPath = LEDGER) -> None:
    """Restore the previous champion, unless it remembers rows that were forgotten since.

    If the alias was moved by hand, that move is undone instead: the champion on record is restored, or none if there
    was none.
    """
    workspace = session(model, ledger)
    entry = workspace.promoter.rollback(reason, who(by))
    number = entry.facts["version"]
    champion = f"Version {number} of {workspace.name} is the champion"
    state = f"{workspace.name} has no champion" if number is None else champion
    typer.echo(f"{state} again. Ledger entry {entry.seq}.")


def audit(model: Model = None, ledger: LedgerPath = LEDGER, json: Json = False) -> None:
    """Check that the champion is the version that the ledger names, and that it is unchanged.

    Exits with status 2 if not, for example if the alias was moved by hand. It also reports a clock that was set back
    while decisions were written.
    """
    workspace = session(model, ledger)
    findings, champion = workspace.promoter.audit(), workspace.promoter.champion()
    clock = list(set_back(workspace.promoter.ledger.entries()).values())
    if json:
        report = {"champion": champion and champion.version, "findings": findings, "clock": clock}
        print_json({"model": workspace.name, **report})
    if findings:
        raise PromotionError(f"{workspace.name}: " + "\n- ".join(findings))
    if json:
        return
    state = "has no champion yet" if champion is None else f"serves version {champion.version}, as the ledger says"
    typer.echo("\n".join([f"{workspace.name} {state}.", *(f"Attention: {line}" for line in clock)]))


def export(
    out: Annotated[Path, typer.Argument(help="File to write: NAME.pt2 or NAME.onnx.")],
    format: Annotated[
        Format, typer.Option(help="torch uses torch.export; onnx needs the extra `export`.")
    ] = Format.torch,
    version: Version = "champion",
    model: Model = None,
) -> None:
    """Write a version as one file that takes raw uint8 images and returns logits, after comparing its logits."""
    from expunge.serving.export import export_onnx, export_torch

    servable, digest, uri = registered_servable(model, version)
    write = {Format.torch: export_torch, Format.onnx: export_onnx}[format]
    difference = write(servable, out, {"version": uri, "servable": digest})
    typer.echo(f"{out}: {uri}, the largest difference of a logit is {difference:.1e}")


def preflight() -> None:
    """Check params.yaml, the chain of the ledger and the tracking store. `expunge check` finds more in params.yaml."""
    from expunge.tracking import preflight as reach_the_store
    from expunge.tracking import tracking_uri

    load_config()
    entries = Ledger(LEDGER).verify()
    reach_the_store()
    typer.echo(
        f"params.yaml can be read, the ledger's chain of {entries} entries is whole, and {shown(tracking_uri())} takes "
        "runs. `expunge check` looks for mistakes in params.yaml"
    )


@ledger_app.command("show")
def show_ledger(
    ledger: LedgerPath = LEDGER,
    all_: Annotated[bool, typer.Option("--all", help=f"Show all entries, not only the last {LAST_SHOWN}.")] = False,
) -> None:
    """Show the last decisions, oldest first. The whole chain is checked."""
    heads = ("", "time (UTC)", "what", "about", "version", "instead of", "shown", "by")
    table = Table(*heads, Column("reason", min_width=30), "hash")  # what people wrote is read as they wrote it
    entries = Ledger(ledger).entries()
    shown = entries if all_ else entries[-LAST_SHOWN:]
    for e in shown:
        f = e.facts
        about, level = f.get("about") or f.get("model"), f.get("claims") or f.get("claim_level")
        found = (about, f.get("version"), f.get("instead_of"), level, f.get("who"), f.get("reason"))
        cells = (str(value or "–") for value in found)
        by_hand = " (by hand)" if f.get("by_hand") else ""
        table.add_row(str(e.seq), e.time.removesuffix("+00:00"), e.kind + by_hand, *cells, e.hash[7:19])
    console().print(table)
    if len(shown) < len(entries):
        typer.echo(f"{len(entries) - len(shown):,} older entries are not shown; add --all to see them")


@ledger_app.command("verify")
def verify_ledger(
    ledger: LedgerPath = LEDGER,
    known: Annotated[list[str] | None, typer.Option(help="Hash of an entry, kept elsewhere, to look for.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="PEM file of the keeper's public key; by default the workspace's.")
    ] = None,
) -> None:
    """Check the chain and its signed head. Exits with status 2 if an entry was changed, dropped, moved or cut off.

    It also looks for the hashes of entries that certificates and the request store hold.
    """
    from expunge.erasure.certificate import known_entries
    from expunge.erasure.database import DEFAULT_URL, ENV
    from expunge.erasure.requests import Store

    others = [*(known or [])]
    if ledger == LEDGER:
        others += known_entries()
        if os.environ.get(ENV) or Path(DEFAULT_URL.removeprefix("sqlite:///")).is_file():
            others += Store.open().entries()
    entries = Ledger(ledger).verify(others, PublicKey.read(key) if key else None)
    typer.echo(f"{ledger}: {entries} entries, the chain is whole and its head is signed.")
