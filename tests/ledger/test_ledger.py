"""Tests of the hash-chained ledger: every change, cut or foreign entry must be found."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.ledger.keys import public_key, signing_key
from expunge.ledger.ledger import GENESIS, Entry, Ledger
from expunge.ledger.signed_head import HeadFiles
from expunge.system.errors import LedgerError


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    opened = Ledger(tmp_path / "log" / "ledger.jsonl")
    for i in range(4):
        opened.append("promotion", {"version": i, "reason": f"because {i}", "nested": {"level": "a"}})
    return opened


def test_entries_come_back_in_order(ledger):
    entries = ledger.entries()
    assert [e.seq for e in entries] == [1, 2, 3, 4]
    assert entries[2].facts == {"version": 2, "reason": "because 2", "nested": {"level": "a"}}
    assert entries[0].time.endswith("+00:00") and ledger.verify() == 4


def test_any_text_keeps_its_line(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    reason = "über–\u2028\x85\r\n\udcff"
    ledger.append("note", {"reason": reason})
    assert ledger.entries()[0].facts["reason"] == reason and ledger.path.read_bytes().count(b"\n") == 1


def test_an_absent_ledger_is_empty(tmp_path):
    assert Ledger(tmp_path / "none.jsonl").entries() == [] and Ledger(tmp_path / "none.jsonl").verify() == 0
    assert not (tmp_path / "none.jsonl").exists()


def test_the_chain_can_be_checked_by_another_program(ledger):
    """The test follows the documented format alone: the hash of the other fields as JSON, keys sorted, no spaces."""
    previous = "sha256:" + "0" * 64
    for line in ledger.path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        stated = entry.pop("hash")
        assert entry["previous"] == previous
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
        previous = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
        assert stated == previous


TAMPERED = {
    "edited": lambda lines: [lines[0], lines[1].replace("because 1", "because 9"), *lines[2:]],
    "edited at the end": lambda lines: [*lines[:3], lines[3].replace("because 3", "because 9")],
    "dropped": lambda lines: [lines[0], *lines[2:]],
    "dropped at the start": lambda lines: lines[1:],
    "reordered": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
    "repeated": lambda lines: [*lines, lines[3]],
    "a field added": lambda lines: [lines[0].replace('{"facts"', '{"extra": 1, "facts"'), *lines[1:]],
    "spaces": lambda lines: [lines[0].replace(": ", ":  ", 1), *lines[1:]],
    "a key twice": lambda lines: [lines[0].replace('"kind"', '"kind": "other", "kind"', 1), *lines[1:]],
    "a blank line": lambda lines: [lines[0], "", *lines[1:]],
    "no entry": lambda lines: [*lines, "[]"],
    "no JSON": lambda lines: [*lines, "promotion"],
}


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering_is_found(how, ledger):
    lines = ledger.path.read_text(encoding="utf-8").splitlines()
    changed = TAMPERED[how](lines)
    assert changed != lines
    ledger.path.write_text("\n".join(changed) + "\n", encoding="utf-8")
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line \d"):
        ledger.verify()
    with pytest.raises(LedgerError, match="restore"):
        ledger.append("promotion", {})


def test_one_forged_entry_with_a_right_hash_breaks_the_next(ledger):
    lines = ledger.path.read_text(encoding="utf-8").splitlines()
    forged = json.loads(lines[1])
    forged["facts"]["reason"] = "another"
    body = {k: v for k, v in forged.items() if k != "hash"}
    forged["hash"] = (
        "sha256:" + hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    )
    lines[1] = json.dumps(forged, sort_keys=True)
    ledger.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(LedgerError, match="line 3: entry 3 does not follow entry 2"):
        ledger.verify()


def test_a_cut_end_is_found_by_the_signed_head_and_by_a_hash_kept_elsewhere(ledger):
    """If a ledger is restored together with an older head, only a hash that was kept elsewhere shows it."""
    head = ledger.path.with_name("ledger.head.json")
    before, kept_head = ledger.path.read_bytes(), head.read_bytes()
    last_hash = ledger.append("note", {}).hash
    assert ledger.verify([last_hash]) == 5
    ledger.path.write_bytes(before)
    with pytest.raises(LedgerError, match="cut off: the signed head names entry 5, the last one here is 4"):
        ledger.verify()
    with pytest.raises(LedgerError, match="cut off"):
        ledger.append("note", {})
    head.write_bytes(kept_head)
    assert ledger.verify() == 4
    with pytest.raises(LedgerError, match="cut off, or this is another ledger"):
        ledger.verify([last_hash])


def test_a_ledger_that_was_emptied_or_removed_is_noticed(ledger):
    ledger.path.write_bytes(b"")
    with pytest.raises(LedgerError, match="cut off"):
        ledger.verify()
    ledger.path.unlink()
    with pytest.raises(LedgerError, match="cut off"):
        ledger.verify()


def test_an_entry_written_without_the_ledger_is_not_signed(ledger):
    """Somebody without the key appends an entry with correct hashes."""
    forged = Entry.after(ledger.entries()[-1], "promotion", {"version": "9"}, "2026-01-01T00:00:00+00:00")
    with ledger.path.open("a") as file:
        file.write(forged.line)
    assert len(ledger.entries()) == 5
    for act in (ledger.verify, lambda: ledger.append("note", {})):
        with pytest.raises(LedgerError, match="something else than Expunge wrote to it"):
            act()


def test_another_key_and_a_missing_head_are_noticed(ledger, tmp_path):
    key = public_key(ledger.path.parent)
    other = signing_key(tmp_path / "other")
    assert ledger.verify(key=key) == 4
    with pytest.raises(LedgerError, match="not signed by the key"):
        ledger.verify(key=other.public)
    files = HeadFiles(ledger.path)
    content = files.path.read_bytes()
    files.announce(ledger.entries()[-1], other)
    files.confirm()
    with pytest.raises(LedgerError, match="not signed by the key"):
        ledger.verify()
    files.path.write_bytes(content)
    assert ledger.verify() == 4
    files.path.unlink()
    with pytest.raises(LedgerError, match="nothing shows that"):
        ledger.verify()


@pytest.mark.parametrize("written", [False, True])
def test_a_process_that_dies_between_head_and_entry_leaves_a_good_ledger(written, ledger):
    key = signing_key(ledger.path.parent)
    entry = Entry.after(ledger.entries()[-1], "note", {"n": 5}, "2026-01-01T00:00:00+00:00")
    HeadFiles(ledger.path).announce(entry, key)
    if written:
        with ledger.path.open("a") as file:
            file.write(entry.line)
    assert ledger.verify() == 4 + written
    ledger.append("note", {"n": 6})
    assert ledger.verify() == 5 + written


def test_an_event_is_written_once(ledger):
    first = ledger.append_events([("r/1", "intake", {"n": 1})])
    assert ledger.append_events([("r/1", "intake", {"n": 1})]) == first and ledger.verify() == 5
    again = ledger.append_events([("r/1", "intake", {"n": 1}), ("r/2", "intake", {"n": 1})] * 2)
    assert [e.seq for e in again] == [5, 6, 5, 6] and ledger.verify() == 6


def test_a_torn_last_line_is_named(ledger):
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-20])
    with pytest.raises(LedgerError, match="last line is cut off"):
        ledger.append("promotion", {})
    assert ledger.path.read_bytes() == whole[:-20]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_flipped_byte_is_found(tmp_path_factory, data):
    ledger = Ledger(tmp_path_factory.mktemp("flip") / "ledger.jsonl")
    for i in range(3):
        ledger.append("note", {"n": i})
    content = bytearray(ledger.path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    ledger.path.write_bytes(content)
    with pytest.raises(LedgerError):
        ledger.verify()


def test_a_decision_on_an_old_state_is_refused(ledger):
    head = ledger.entries()[-1].hash
    ledger.append("promotion", {}, after=head)
    with pytest.raises(LedgerError, match="meanwhile"):
        ledger.append("promotion", {}, after=head)
    with pytest.raises(LedgerError, match="meanwhile"):
        ledger.append("promotion", {}, after=GENESIS)
    assert ledger.verify() == 5


@pytest.mark.parametrize("facts", [{"sample_id": "a"}, {"x": {"subject": "p1"}}, {"x": [{"rows": [1]}]}])
def test_ids_of_rows_and_people_are_refused(facts, ledger):
    with pytest.raises(LedgerError, match="ids of rows and people"):
        ledger.append("promotion", facts)
    assert ledger.verify() == 4


def test_processes_append_one_after_another(tmp_path):
    code = (
        "import sys; from expunge.ledger.ledger import Ledger; ledger = Ledger(sys.argv[1]);"
        "[ledger.append('note', {'n': i}) for i in range(25)]"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "ledger.jsonl")]
    started = [subprocess.Popen(command) for _ in range(3)]
    assert [p.wait(300) for p in started] == [0, 0, 0]
    assert Ledger(tmp_path / "ledger.jsonl").verify() == 75


def test_a_full_disk_adds_nothing(ledger, monkeypatch):
    """The kernel's limit on the size of a file stands in for a full disk."""
    code = (
        "import resource, signal, sys; from expunge.ledger.ledger import Ledger;"
        "from expunge.system.errors import LedgerError;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); size = int(sys.argv[2]) + 40;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "try: Ledger(sys.argv[1]).append('note', {'text': 'x' * 200})\n"
        "except LedgerError as e: print(e)"
    )
    before = ledger.path.read_bytes()
    command = [sys.executable, "-c", code, str(ledger.path), str(len(before))]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "nothing was added" in out
    assert ledger.path.read_bytes() == before
