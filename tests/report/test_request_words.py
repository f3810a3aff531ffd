"""Test the wording of pages for corrections of labels, which are described as corrections and not as erasures."""

from __future__ import annotations

import pytest

from expunge.report.request_words import worded

TEXT = "40 of 900 training rows were to be forgotten. Forgotten rows, forgotten against unseen; no erasure claim."


def test_an_erasure_is_described_in_words() -> None:
    assert worded(TEXT, {"selector": "classes"}) == TEXT


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            TEXT,
            "40 of 900 training rows were to get other labels. Corrected rows, corrected against unseen; no claim.",
        ),
        ("<h1>Forget the labels", "<h1>Correct the labels"),
        (
            "The backbone was trained on the forgotten rows. Its features z still carry them",
            "The backbone was trained on the old labels. Its features z still carry what these taught",
        ),
        ("unforgotten", "unforgotten"),
    ],
)
def test_a_correction_is_described_as_corrected(said: str, told: str) -> None:
    assert worded(said, {"selector": "correct"}) == told
