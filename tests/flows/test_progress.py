"""Lines of stages as shares, requests as names."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
import yaml

from flows.naming import branch_of, request_words
from flows.progress import share_of


@pytest.mark.parametrize(
    ("line", "what", "share"),
    [
        ("extract: 500/2,000 images, 1,166/s, 1 s left", "extract", 0.25),
        ("train epoch 3/15: 1,000/2,000 images, 800/s, 1 s left", "train", 2.5 / 15),
        ("train epoch 3/15: loss 0.1234, accuracy 0.9876", "train", 3 / 15),
        ("Scrub epoch 2/4, maximise: 10/20 images, 5/s, 2 s left", "Scrub", 1.5 / 4),
    ],
)
def test_lines_of_progress(line, what, share):
    assert share_of(line) == (what, pytest.approx(share))


@pytest.mark.parametrize(
    "line", ["Running stage 'fit@loft':", "extract: 1,797 images in 1.5 s (1,166/s)", "error: 1/2"]
)
def test_other_lines(line):
    assert share_of(line) is None


def test_the_lines_are_those_that_stages_write(monkeypatch):
    from expunge.system import progress as written

    monkeypatch.setattr(written, "SECONDS_BETWEEN_LINES", 0.0)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with written.progress("train epoch 2/4", 2000, "images") as advance:
        time.sleep(0.01)
        advance(1500)
        advance(500)
    first = out.getvalue().splitlines()[0]
    assert share_of(first) == ("train", pytest.approx(1.75 / 4)), first


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"selector": "classes", "classes": [5, "bag"]}, "digits, forget 5, bag"),
        ({"selector": "random", "fraction": 0.1}, "digits, forget 10% at random"),
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
