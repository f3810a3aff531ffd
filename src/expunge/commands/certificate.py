"""certificate verify: is a certificate as its issuer signed it? Needs the file and the public key, and nothing else.

certificate audit: proof by recomputation of an exact deletion, in the workspace.
certificate attach: store it with the registered version it speaks of.
"""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.ledger.keys import PublicKey
from expunge.system.errors import CertificateError, ConfigError
from expunge.system.paths import KEYS

PUBLIC_KEY = KEYS / "signing.pub.pem"

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

    body = verify(file, PublicKey.read(key))
    sweep, unlearning = body["sweep"], body["unlearning"]
    level = f", shown: {unlearning['claim']['shown']}" if unlearning else ""
    typer.echo(
        f"{file}: signed by this key and unchanged. Request {body['request']['id']}, completed {body['completed']}"
        f"{level}; residues left: {len(sweep['left'])}; for others to clean: {len(sweep['not_purgeable'])}."
    )
    for line in body.get("clock", []):
        typer.echo(f"Attention: {line}.")


@certificate_app.command("audit")
def audit_certificate(
    file: Annotated[Path, typer.Argument(help="certificate.json, or the folder that holds it")],
    key: Annotated[Path, typer.Option(help="The issuer's public key, PEM.")] = PUBLIC_KEY,
    encode: Annotated[
        bool,
        typer.Option("--encode", help="Make features or activations again, too, from all rows."),
    ] = False,
    nonce: Annotated[
        str | None,
        typer.Option(help="Hexadecimal, at least 16 bytes, drawn by the auditor now: it picks shards to make again."),
    ] = None,
    shards: Annotated[int | None, typer.Option(help="How many shards the nonce picks; 1 if left out.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Make again what a certificate claims as exact, from the rows that stayed, and compare it with the registered
    weights. In the workspace. Exit status 2 where they do not agree."""
    from expunge.erasure.audit import audit

    if shards is not None and nonce is None:
        raise ConfigError("--shards: needs --nonce, which picks them; without it all shards are made again")
    path = file / "certificate.json" if file.is_dir() else file
    found = audit(path, PublicKey.read(key), encode, nonce, 1 if shards is None else shards)
    if json:
        typer.echo(dumps(found, indent=2))
    else:
        typer.echo("\n".join(lines(found)))
    if not found["agrees"]:
        raise CertificateError(f"{file}: what was made again does not agree with what was certified, see above")


def lines(found: dict[str, Any]) -> list[str]:
    """The findings of an audit, for reading."""
    words = {True: "agree", False: "DO NOT AGREE"}
    same = "the same bits" if found["same_bits"] else "other bits"
    fits = found["distance"] <= found["allowed"]
    features = found["features"]
    encoded = []
    if features is not None:
        encoded = [
            f"features: {words[features['agrees']]}; made again, distance {features['distance']:.2g} of |z|, allowed "
            f"{features['allowed']:.2g}{', the same bits' if features['same_bits'] else ''}"
        ]
    if found.get("activations") is not None:
        encoded = [f"activations: {words[found['activations']]}; made again by the public layers"]
    return [
        f"request {found['certificate']}, {found['version']}",
        f"recomputed: {found['recomputed']}",
        f"rows: {words[found['rows']]} with the Merkle root of the certificate",
        f"backbone: {words[found['backbone']]} with its digest",
        *encoded,
        *_of_shards(found),
        f"weights: {words[fits]}; distance {found['distance']:.2g}, allowed {found['allowed']:.2g}, {same}",
        f"dataset: {'as it was certified' if found['dataset_as_certified'] else 'written again since'}",
        *(f"to be trusted: {line}" for line in found["trusted"]),
        "The deletion is what training without the rows gives." if found["agrees"] else "The claim was NOT confirmed.",
    ]


def _of_shards(found: dict[str, Any]) -> list[str]:
    """Which shards were made again, and whether their mean is that of the rows."""
    if "shards_made_again" not in found:
        return []
    made, picked = found["shards_made_again"], f"picked by nonce {found['nonce']}" if found["nonce"] else "all"
    mean = "agrees" if found["same_mean"] else "DOES NOT AGREE"
    return [
        f"shards made again: {', '.join(map(str, made))} of 0 to {found['shards'] - 1} ({picked}); the mean {mean}",
    ]
