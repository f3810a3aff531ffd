"""Tests that progress lines of stages are read as shares, and that runs are named after their requests."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
import yaml

from flows.naming import branch_of, request_words
from flows.progress import entry_of


@pytest.mark.parametrize(
    "line",
    [
        "Running stage 'fit@loft':",
        "extract: 1,797 images in 1.5 s (1,166/s)",
        "train epoch 3/15: 1,000/2,000 images, 800/s",
        '{"progress": 0.5, "what": "train"}',
        '{"progress": "all", "what": "train", "line": "x"}',
        '{"progress": 0.5, "what": "tra{"progress": 0.6, "what": "train", "line": "x"}',
    ],
)
def test_lines_that_are_no_progress_are_ignored(line):
    assert entry_of(line) is None


def test_the_lines_are_those_that_stages_write(monkeypatch):
    from expunge.system import progress as written

    monkeypatch.setattr(written, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv(written.FORMAT_VARIABLE, "json")
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with written.progress("train", 2000, "images", 1, 4) as advance:
        time.sleep(0.01)
        advance(1500)
        advance(500)
    entries = [entry_of(line) for line in out.getvalue().splitlines()]
    assert [(e.what, e.share) for e in entries] == [("train", pytest.approx(1.75 / 4)), ("train", 0.5)]
    assert entries[0].line.startswith("train epoch 2/4: 1,500/2,000 images, ")
    out.truncate(0)
    advance = written.descent_progress("head", 1e-7)
    for norm in (1e-1, 1e-4, 1e-8):
        advance(norm)
    entries = [entry_of(line.strip("\0")) for line in out.getvalue().splitlines()]
    assert [(e.what, e.share) for e in entries] == [("head", 0.0), ("head", 0.5), ("head", 1.0)]
    assert entries[1].line == "head: gradient norm 1.0e-04 after 2 passes; ends at 1.0e-07"


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"selector": "classes", "classes": [5, "bag"]}, "digits, forget 5, bag"),
        ({"selector": "random", "fraction": 0.1}, "digits, forget 10% at random"),
        ({"selector": "memorised", "fraction": 0.02}, "digits, forget the 2% memorised most"),
        ({"selector": "ids", "file": "data/requests/jane-doe.txt"}, "digits, forget rows by ids"),
        ({"selector": "filter", "filter": "subject == 'jane'"}, "digits, forget rows by filter"),
    ],
)
def test_a_run_is_named_after_its_request_and_never_after_people(tmp_path, split, words):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"data": {"source": "digits"}, "split": split}))
    assert request_words(tmp_path) == words
    branch = branch_of(f"{words} · 2026-11-21 02:00:00")
    assert re.fullmatch(r"expunge/digits-forget-[a-z0-9-]+-2026-11-21-02-00-00", branch)


@pytest.mark.parametrize("content", ["", "[", "data: {}", "data: {source: x}\nsplit: [1]"])
def test_params_that_cannot_be_read_do_not_stop_the_naming(tmp_path, content):
    (tmp_path / "params.yaml").write_text(content)
    assert request_words(tmp_path) == tmp_path.name
