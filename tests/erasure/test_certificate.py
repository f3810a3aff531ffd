"""Tests of certificates and their pages, on a small workspace in which two requests were completed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape

from expunge.erasure.auditable import recomputes, trusted
from expunge.erasure.certificate import known_entries, verify
from expunge.erasure.certificate_page import page
from expunge.erasure.requests import Store
from expunge.ledger.keys import PublicKey, signing_key
from expunge.ledger.ledger import Ledger
from expunge.system.errors import CertificateError, LedgerError
from tests.erasure.promoted_batch import finish, promoted
from tests.sweep import people_workspace


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Yield a small workspace in which two requests were completed, its store, and these requests."""
    root = tmp_path_factory.mktemp("certified") / "workspace"
    people_workspace.workspace(root, [5])
    url = f"sqlite:///{root / 'records/requests.db'}"
    store = Store.open(url)
    _, requests = promoted(store, root)
    assert finish(root, url) == "completed"
    yield root, store, [store.get(r.id) for r in requests]
    store.engine.dispose()


@pytest.fixture
def certificate(done, tmp_path):
    root, _, requests = done
    copy = tmp_path / "certificate.json"
    copy.write_bytes((root / "records/certificates" / requests[0].id / "certificate.json").read_bytes())
    return copy


def key_of(done) -> PublicKey:
    return PublicKey.read(done[0] / "records/keys/signing.pub.pem")


def test_a_certificate_has_every_required_part(done, certificate):
    root, _, requests = done
    body = verify(certificate, key_of(done))
    assert body["request"]["digest"] == requests[0].digest and body["request"]["basis"] == "GDPR Art. 17(1)(b)"
    assert [e["what"] for e in body["request"]["history"]] == [
        "intake", "verification", "scheduling", "run", "verdict", "approval",
    ]  # fmt: skip
    u = body["unlearning"]
    assert u["procedure"]["versions"]["torch"] == "2.13.0" and u["source"]["dvc_lock"] == "sha256:10c"
    assert u["metrics"][0] == {
        "metric": "accuracy on forgotten rows", "claim": "outputs", "value": 0.91, "original": 1.0, "retrained": 0.9,
        "share": "10% [-5%, 20%]", "margin": "inside", "outcome": "passed",
    }  # fmt: skip
    assert u["claim"]["shown"] == "outputs" and u["claim"]["not_claimed"] and u["validation"]["split"] is True
    assert u["approval"] == {"by": "cem", "because": "as good as retrained"}
    assert u["model"]["version"] == "4" and u["model"]["instead_of"] == "3"
    before, after = body["manifests"]["before"], body["manifests"]["after"]
    assert before["data/dataset"] != after["data/dataset"] and before.keys() == after.keys()
    assert (
        body["sweep"]["left"] == []
        and {"where": "data/dataset", "what": "rows", "count": 30, "kind": "erased"} in body["sweep"]["purged"]
    )
    assert body["ledger"]["previous"] in {e.hash for e in Ledger(root / "ledger.jsonl").entries()}


def test_a_certificate_names_nobody(done, certificate):
    content = certificate.read_text() + (done[0] / "ledger.jsonl").read_text()
    assert "subject-" not in content and "record-" not in content


def test_certificate_and_ledger_hold_each_others_digest(done):
    root, store, requests = done
    for request in requests:
        completed = store.events(request.id)[-1]
        document = json.loads((root / "records/certificates" / request.id / "certificate.json").read_text())
        text = json.dumps(document["certificate"], sort_keys=True, separators=(",", ":"))
        assert completed.facts["certificate"] == "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    ledger = Ledger(root / "ledger.jsonl")
    known = known_entries(root / "records/certificates")
    assert len(known) == 2 and ledger.verify([*known, *store.entries()]) > 10
    with pytest.raises(LedgerError, match="cut off"):
        ledger.verify(["sha256:" + "1" * 64])


def test_another_program_verifies_a_certificate_without_expunge(done, certificate):
    """The program follows only the documented format, and imports nothing of this package."""
    code = f"""
import base64, json, sys
from cryptography.hazmat.primitives.serialization import load_pem_public_key
d = json.load(open({str(certificate)!r}))
content = json.dumps(d["certificate"], sort_keys=True, separators=(",", ":")).encode("ascii")
load_pem_public_key(open({str(done[0] / "records/keys/signing.pub.pem")!r}, "rb").read()).verify(
    base64.b64decode(d["signature"]), content)
print("good", [m for m in sys.modules if m.startswith("expunge")])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "good []\n"


TAMPERED = {
    "a value": lambda d: d["certificate"]["sweep"]["left"].append({"where": "x", "what": "rows", "count": 1}),
    "a claim": lambda d: d["certificate"]["unlearning"]["claim"].update(shown="exact"),
    "a field more": lambda d: d["certificate"].update(extra=1),
    "a field less": lambda d: d["certificate"].pop("ledger"),
    "the signature": lambda d: d.update(signature=base64.b64encode(b"x" * 64).decode()),
    "no signature": lambda d: d.pop("signature"),
    "beside it": lambda d: d.update(note="and more"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_changed_certificate_is_refused(how, done, certificate):
    document = json.loads(certificate.read_text())
    TAMPERED[how](document)
    certificate.write_text(json.dumps(document))
    with pytest.raises(CertificateError, match=r"changed after it was signed|not a certificate"):
        verify(certificate, key_of(done))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_character_is_found_or_changes_no_value(done, data):
    """White space between values has no meaning in JSON. Everything else is signed."""
    root, _, requests = done
    path = root / "records/certificates" / requests[1].id / "certificate.json"
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 127))
    other = root / "changed.json"
    other.write_bytes(content)
    with contextlib.suppress(CertificateError):
        assert verify(other, key_of(done)) == verify(path, key_of(done))


def test_a_duplicate_key_in_the_json_is_refused(done, certificate):
    text = certificate.read_text().replace('"schema": 1,', '"schema": 1, "schema": 1,')
    certificate.write_text(text)
    with pytest.raises(CertificateError, match="not a certificate"):
        verify(certificate, key_of(done))


def test_a_signature_by_another_key_is_named(done, certificate, tmp_path):
    with pytest.raises(CertificateError, match="ask its issuer"):
        verify(certificate, signing_key(tmp_path).public)
    with pytest.raises(CertificateError, match="cannot be read"):
        verify(tmp_path / "none.json", key_of(done))


def test_the_page_shows_the_certificate(done):
    root, _, requests = done
    shown = (root / "records/certificates" / requests[0].id / "certificate.html").read_text()
    for sentence in (
        requests[0].id, "shown: outputs", "As a &lt;retrained&gt; one.", "cem", "No residue is left",
        "backbone: refuted.",
        "data/dataset", "as good as retrained", "0.910", "Ed25519",
    ):  # fmt: skip
        assert sentence in shown, sentence
    assert "<script" not in shown and "http" not in shown.replace("https://www.w3.org", "")


def test_the_page_marks_measures_outside_their_margins(done, certificate):
    document = json.loads(certificate.read_text())
    inside, *_ = metrics = document["certificate"]["unlearning"]["metrics"]
    assert '<tr class="bad">' not in page(document)
    metrics.append({**inside, "metric": "KL", "share": "40% [31%, 55%]", "margin": "outside", "outcome": "refuted"})
    marked = [line for line in page(document).splitlines() if line.startswith('<tr class="bad">')]
    assert len(marked) == 1 and "KL" in marked[0] and "<td>outside</td><td>refuted</td>" in marked[0]


def test_the_page_says_that_few_models_were_retrained(done, certificate):
    document = json.loads(certificate.read_text())
    said = "With 1 retrained model, no erasure claim except exact can be shown"
    assert said in page(document) and "features: cannot tell; outputs: shown;" in page(document)
    document["certificate"]["unlearning"]["claim"]["caution"] = None
    assert said not in page(document) and "indicative" not in page(document)


def test_the_page_says_what_an_audit_recomputes(done, certificate):
    document = json.loads(certificate.read_text())
    assert "What an audit recomputes" not in page(document)  # this certificate has no claim of exactness
    claim = {
        "procedure": "ridge: sums less those of the rows",
        "public": {"name": "efficientnet-lite0", "backbone_digest": "sha256:b4c"},
        "rows": {"retained": 6031, "merkle_root": "sha256:400t"},
        "head": {"kind": "RidgeHead", "settings": {"ridge": "gcv", "quantum": 0.25}},
        "seed": 1,
    }
    audit = {"recomputes": recomputes(claim), "trusts": trusted()}
    document["certificate"]["unlearning"] |= {"exact": claim, "audit": audit}
    shown = page(document)
    for sentence in (
        "What an audit recomputes",
        "6,031 retained",
        "sha256:400t",
        "quantum 0.25",
        *(str(escape(line)) for line in trusted()),
    ):
        assert sentence in shown, sentence
    other = {**claim, "head": {"kind": "another"}}
    assert recomputes(other) is None
    document["certificate"]["unlearning"] |= {"exact": other, "audit": {"recomputes": None, "trusts": trusted()}}
    assert "What an audit recomputes" not in page(document)
