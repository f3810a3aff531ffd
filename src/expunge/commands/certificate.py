"""certificate verify: is a certificate as its issuer signed it? Needs the file and the public key, and nothing else.

certificate attach: store it with the registered version it speaks of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

certificate_app = typer.Typer(no_args_is_help=True, help="Certificates of completed erasure requests.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(certificate_app, name="certificate")


@certificate_app.callback()
def _group() -> None:
    """Certificates of completed erasure requests."""


@certificate_app.command("attach")
def attach_certificate(
    folder: Annotated[Path, typer.Argument(help="records/certificates/REQUEST")],
) -> None:
    """Store it with the registered version it speaks of. `expunge request run` does so by itself."""
    from expunge.promotion.attachment import attach

    version = attach(folder)
    typer.echo(f"{folder}: " + (f"stored with {version.uri}" if version else "no version was made for it"))


@certificate_app.command("verify")
def verify_certificate(
    file: Annotated[Path, typer.Argument(help="certificate.json")],
    key: Annotated[Path, typer.Option(help="The issuer's public key, PEM.")],
) -> None:
    """Check the signature, offline. Exit status 2 where the file was changed or somebody else signed it."""
    from expunge.erasure.certificate import verify
    from expunge.ledger.keys import PublicKey

    body = verify(file, PublicKey.read(key))
    sweep, unlearning = body["sweep"], body["unlearning"]
    level = f", shown: {unlearning['claim']['shown']}" if unlearning else ""
    typer.echo(
        f"{file}: signed by this key and unchanged. Request {body['request']['id']}, completed {body['completed']}"
        f"{level}; residues left: {len(sweep['left'])}; for others to clean: {len(sweep['not_purgeable'])}."
    )
