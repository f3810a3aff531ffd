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

certificate_app = typer.Typer(no_args_is_help=True, help="Verify, audit and attach certificates of completed requests.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(certificate_app, name="certificate")


@certificate_app.callback()
def _group() -> None:
    """Verify, audit and attach certificates of completed requests."""


@certificate_app.command("attach")
def attach_certificate(
    folder: Annotated[Path, typer.Argument(help="Folder of the certificate, records/certificates/REQUEST.")],
) -> None:
    """Store a certificate with the registered version that it is about. `expunge request run` does this by itself."""
    from expunge.promotion.attachment import attach

    version = attach(folder)
    typer.echo(
        f"{folder}: "
        + (
            f"stored with {version.uri}"
            if version
            else "no version was registered for this request, so nothing was stored"
        )
    )


@certificate_app.command("verify")
def verify_certificate(
    file: Annotated[Path, typer.Argument(help="Path of certificate.json.")],
    key: Annotated[Path, typer.Option(help="The issuer's public key, as PEM.")],
) -> None:
    """Check the signature of a certificate, offline.

    Exits with status 2 if the file was changed or somebody else signed it.
    """
    from expunge.erasure.certificate import verify

    body = verify(file, PublicKey.read(key))
    sweep, unlearning = body["sweep"], body["unlearning"]
    level = f", shown: {unlearning['claim']['shown']}" if unlearning else ""
    if unlearning and "corrected" in unlearning:
        level = f", corrected: {unlearning['this_request']['train']:,} labels{level}"
    typer.echo(
        f"{file}: signed by this key and unchanged. Request {body['request']['id']}, completed "
        f"{body['completed']}{level}; residues left: {len(sweep['left'])}; "
        f"places that others have to clean: {len(sweep['not_purgeable'])}."
    )
    for line in body.get("clock", []):
        typer.echo(f"Attention: {line}.")


@certificate_app.command("audit")
def audit_certificate(
    file: Annotated[Path, typer.Argument(help="Path of certificate.json, or of its folder.")],
    key: Annotated[Path, typer.Option(help="The issuer's public key, as PEM.")] = PUBLIC_KEY,
    encode: Annotated[
        bool,
        typer.Option("--encode", help="Also compute features or activations again, from all rows."),
    ] = False,
    nonce: Annotated[
        str | None,
        typer.Option(
            help="Hexadecimal, at least 16 bytes, drawn by the auditor now. It selects shards to train again."
        ),
    ] = None,
    shards: Annotated[int | None, typer.Option(help="Number of shards that the nonce selects; by default 1.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Compute again, from the rows that stay, what a certificate claims as exact.

    Compare it with the registered weights. Run it in the workspace. Exits with status 2 if they do not agree.
    """
    from expunge.erasure.audit import audit

    if shards is not None and nonce is None:
        raise ConfigError(
            "--shards: needs --nonce, which selects the shards; without --nonce all of them are trained again"
        )
    path = file / "certificate.json" if file.is_dir() else file
    found = audit(path, PublicKey.read(key), encode, nonce, 1 if shards is None else shards)
    if json:
        typer.echo(dumps(found, indent=2))
    else:
        typer.echo("\n".join(lines(found)))
    if not found["agrees"]:
        raise CertificateError(f"{file}: the recomputation does not agree with the certificate; see the lines above")


def lines(found: dict[str, Any]) -> list[str]:
    """The findings of an audit, for reading."""
    words = {True: "agree", False: "DO NOT AGREE"}
    same = "the same bits" if found["same_bits"] else "different bits"
    fits = found["distance"] <= found["allowed"]
    features = found["features"]
    encoded = []
    if features is not None:
        encoded = [
            f"features: {words[features['agrees']]}; computed again, distance {features['distance']:.2g} of |z|, "
            f"allowed {features['allowed']:.2g}{', the same bits' if features['same_bits'] else ''}"
        ]
    if found.get("activations") is not None:
        encoded = [f"activations: {words[found['activations']]}; computed again by the public layers"]
    return [
        f"request {found['certificate']}, {found['version']}",
        f"recomputed: {found['recomputed']}",
        f"rows: {words[found['rows']]} with the Merkle root of the certificate",
        f"backbone: {words[found['backbone']]} with its digest",
        *encoded,
        *_of_shards(found),
        f"weights: {words[fits]}; distance {found['distance']:.2g}, allowed {found['allowed']:.2g}, {same}",
        f"dataset: {'as certified' if found['dataset_as_certified'] else 'written again since the certificate'}",
        *(f"to be trusted: {line}" for line in found["trusted"]),
        f"The claim was confirmed: the {_what_gives(found)} gives."
        if found["agrees"]
        else "The claim was NOT confirmed.",
    ]


def _what_gives(found: dict[str, Any]) -> str:
    if found["corrects"]:
        return "correction gives what training on the new labels"
    return "deletion gives what training without the rows"


def _of_shards(found: dict[str, Any]) -> list[str]:
    """Which shards were made again, and whether their mean is that of the rows."""
    if "shards_made_again" not in found:
        return []
    again, picked = found["shards_made_again"], f"selected by nonce {found['nonce']}" if found["nonce"] else "all"
    mean = "agrees" if found["same_mean"] else "DOES NOT AGREE"
    return [
        f"shards trained again: {', '.join(map(str, again))} of 0 to {found['shards'] - 1} ({picked}); the mean {mean}",
    ]
