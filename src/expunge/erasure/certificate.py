"""The signed certificate of a completed request: what was done, on what evidence, and what is not claimed.

    {"certificate": {...}, "key": "sha256:...", "signature": "..."}

The signature (Ed25519, base64) covers the JSON of `certificate` with sorted keys and without spaces, in UTF-8 with
non-ASCII characters escaped. It can be verified offline with the public key, by `expunge certificate verify` or in a
few lines of any language. A certificate contains no id of a row or of a person.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.erasure.auditable import recomputes, trusted
from expunge.erasure.batches import Batch
from expunge.erasure.certificate_page import page
from expunge.erasure.requests import ErasureRequest, Event, Store
from expunge.ledger.clock import set_back
from expunge.ledger.keys import PublicKey, signing_key
from expunge.ledger.ledger import SWEEP, Ledger
from expunge.system.errors import CertificateError
from expunge.system.files import digest_of, staged_dir, write_manifest, write_text
from expunge.system.paths import CERTIFICATES

SCHEMA = 1
JSON_NAME, HTML_NAME = "certificate.json", "certificate.html"


def write(store: Store, ledger: Ledger, batch: Batch, requests: Sequence[ErasureRequest]) -> dict[str, str]:
    """Write certificate.json and certificate.html of every request to its own directory in `records/certificates`.

    Returns the digest of each certificate by request id. Writing the same batch again gives the same bytes.
    """
    key = signing_key(ledger.path.parent)
    # A batch that began again may have swept more than once; the last sweep is certified.
    sweep = [e for e in store.events(batch.id) if e.kind == SWEEP][-1]
    entries = ledger.entries()
    seen = entries[: 1 + [e.hash for e in entries].index(sweep.entry)] if sweep.entry else entries
    clock, written = set_back(seen), {}
    first = {e.facts.get("about"): e.seq for e in reversed(seen)}  # the first entry about each request
    for request in requests:
        since = [warning for seq, warning in clock.items() if seq >= first.get(request.id, 1)]
        body = build(request, store.events(request.id), batch, sweep, since)
        document = {"certificate": body, "key": key.public.fingerprint, "signature": key.sign(canonical(body))}
        with staged_dir(CERTIFICATES / request.id) as tmp:
            write_text(tmp / JSON_NAME, json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n")
            write_text(tmp / HTML_NAME, page(document))
            write_manifest(tmp, "expunge.erasure.certificate")
        written[request.id] = digest_of(body)
    return written


def build(
    request: ErasureRequest, events: Sequence[Event], batch: Batch, sweep: Event, clock: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the body of a certificate.

    Its times come from recorded events, not from the current time. `clock` lists where the clock was set back.
    """
    facts, run = batch.facts, batch.facts.get("run")
    product = facts.get("product")
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "request": {
            "id": request.id,
            "digest": request.digest,
            "kind": request.kind,
            "asked": request.asked,
            "basis": request.basis,
            "received": request.received.isoformat(),
            "due": request.due.isoformat(),
            "history": [{"at": e.at, "what": e.kind, "state": e.state, "by": e.who} for e in events],
        },
        "completed": sweep.at,
        "clock": list(clock),
        "batch": batch.id,
        "manifests": {"before": facts["manifests_before"], "after": facts["manifests_after"]},
        "sweep": facts["sweep"],
        "ledger": {"previous": sweep.entry},
    }
    if run is None or product is None:
        body["unlearning"] = None  # no trained row was asked for
        return body
    body["unlearning"] = {
        **{k: run[k] for k in ("procedure", "source", "batch_request", "forgotten", "validation", "metrics", "claim")},
        "this_request": run["each"][request.id],
        "earlier_requests": run["each"].get("again"),
        "model": {**product, "instead_of": facts["instead_of"], "promotion": facts["promotion"]},
        "approval": {"by": facts["approved_by"], "because": facts["approved_because"]},
    }
    if "corrected" in run:  # labels were replaced, and no row was erased
        body["unlearning"]["corrected"] = run["corrected"]
    if (exact := run.get("exact")) is not None:
        body["unlearning"] |= {"exact": exact, "audit": {"recomputes": recomputes(exact), "trusts": trusted()}}
    return body


def canonical(body: Mapping[str, Any]) -> bytes:
    """Return the bytes that are signed."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def verify(path: Path, key: PublicKey) -> dict[str, Any]:
    """Return the body of the certificate at `path`; works offline.

    Raises CertificateError if it cannot be read, is no certificate, or is not what `key` signed.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_repeats)
        body, signature = document["certificate"], document["signature"]
        signed_by, content = document["key"], canonical(body)
    except OSError as e:
        raise CertificateError(f"{path}: cannot be read ({e.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CertificateError(f"{path}: this is not a certificate; ask its issuer for the original") from None
    if set(document) != {"certificate", "key", "signature"} or not isinstance(body, dict):
        raise CertificateError(f"{path}: this is not a certificate; ask its issuer for the original")
    if signed_by != key.fingerprint:
        raise CertificateError(
            f"{path}: was signed with the key {signed_by}, not with {key.fingerprint}; "
            "ask its issuer for their public key"
        )
    if not key.signed(content, str(signature)):
        raise CertificateError(f"{path}: was changed after it was signed; ask its issuer for the original")
    return body


def known_entries(directory: Path = CERTIFICATES) -> list[str]:
    """Return the hashes of the ledger entries that the certificates in `directory` name.

    Raises CertificateError for a file that is no certificate.
    """
    found = []
    for file in sorted(directory.glob(f"*/{JSON_NAME}")):
        try:
            previous = json.loads(file.read_text(encoding="utf-8"))["certificate"]["ledger"]["previous"]
        except (ValueError, KeyError, TypeError, RecursionError, OSError):
            raise CertificateError(f"{file}: this is not a certificate; restore it from a backup") from None
        found.append(str(previous))
    return found


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raise ValueError for a repeated key: JSON parsers disagree on which of its values counts."""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key is repeated")
    return out
