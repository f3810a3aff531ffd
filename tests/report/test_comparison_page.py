"""Test the comparison of two models as HTML: which rows it shows, its pictures, and that class names are escaped."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from rich.console import Console

from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.promotion.review_terminal import as_rich
from expunge.report.comparison import ComparedRows, on_same_rows
from expunge.report.comparison_page import GAINED, LOST, chosen, section, thumbnail
from expunge.report.comparison_view import ComparedModels, comparison_view

HOSTILE = [f"<b>{c}</b>" for c in range(10)]


def test_lost_rows_come_first_and_none_takes_all_places():
    labels = np.zeros(60, np.int64)
    before = np.repeat([0, 1, 1, 0], [20, 20, 10, 10])
    # The four groups of rows are lost, gained, wrong in another way, and unchanged.
    after = np.repeat([1, 0, 2, 0], [20, 20, 10, 10])
    shown = chosen(ComparedRows(np.arange(60), labels, before, after))
    assert shown[:LOST].tolist() == list(range(LOST))
    assert shown[LOST : LOST + GAINED].tolist() == list(range(20, 20 + GAINED))
    assert (shown[LOST + GAINED :] >= 40).all() and (shown < 50).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 20, 3), (200, 120, 3)])
def test_a_picture_stands_in_the_page_itself(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    kind, _, data = thumbnail(image).partition(",")
    assert kind == "data:image/png;base64"
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert max(seen.shape) <= 96 and thumbnail(image) == thumbnail(image)
    if max(shape) <= 96:
        np.testing.assert_array_equal(seen, image.squeeze())


@pytest.fixture
def compared(finished, monkeypatch):
    """Return two compared models and their dataset, digits.

    The original is right on every row; the other model is wrong on every tenth row.
    """
    monkeypatch.chdir(finished)
    dataset = Dataset("data/dataset")
    labels = dataset.labels().astype(np.int64)
    wrong = np.where(np.arange(len(labels)) % 10 == 0, (labels + 1) % 10, labels)
    parts = on_same_rows(lambda rows: labels[rows], lambda rows: wrong[rows], dataset, Split("data/split"))
    block = {"accuracy": {"retain": 0.5}, "intervals": {"accuracy.retain": [0.25, 0.75]}}
    return ComparedModels("original", "loft", (block, block, None), parts, {}, HOSTILE), dataset


def test_changed_test_rows_have_pictures_and_forgotten_rows_only_counts(compared):
    models, dataset = compared
    html = section(models, dataset)
    retained = models.parts["test_retain"]
    shown = chosen(retained)
    assert len(shown) == LOST and f"{int(retained.changed.sum())} of {len(retained.labels)} changed" in html
    wanted = [thumbnail(image) for image in dataset.images(retained.rows[shown])]
    assert re.findall(r'<img src="([^"]*)"', html) == wanted
    assert "0.500 [0.250, 0.750]" in html and "Predictions on forgotten training rows" in html
    assert not [i for i in dataset.sample_ids() if i in html]


def test_the_page_and_the_terminal_show_the_same_cells(compared):
    """Both are made from one `comparison_view`, so each of its cells must be in the page and in the terminal output."""
    models, dataset = compared
    view = comparison_view(models)
    tables = (view.metrics, view.accuracies, view.moves, *view.answers)
    html = section(models, dataset)
    out = Console(width=300, record=True, markup=False, highlight=False, file=io.StringIO())
    for table in tables:
        out.print(as_rich(table))
    printed = out.export_text()
    cells = {cell for table in tables for row in (table.head, *table.body) for cell in row}
    assert len(cells) > 20
    for cell in cells:
        assert escape(cell) in html and cell in printed


def test_names_of_classes_are_text(compared):
    html = section(*compared)
    assert "<b>6" not in html and "&lt;b&gt;6" in html


def test_where_nothing_changed_it_says_so(compared):
    models, dataset = compared
    same = {part: ComparedRows(p.rows, p.labels, p.before, p.before) for part, p in models.parts.items()}
    html = section(ComparedModels("a", "b", models.blocks, same, {}, HOSTILE), dataset)
    assert "None of" in html and "<img" not in html
