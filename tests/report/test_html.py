"""Test the HTML report.

It is self-contained and reproducible to the byte, escapes class names, and is complete without a retrained model.
"""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from expunge.report.html import ladder, main_table, render
from tests.report.conftest import HOSTILE
from tests.verdicts import verdict_with


class Page(HTMLParser):
    """Collect the tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def html(run) -> str:
    return render(*run(seeds=1))


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Render pages without the drawings, which take most of the time."""
    monkeypatch.setattr("expunge.report.html.sections", lambda summary, evidence: [])


def svgs(html: str) -> list[str]:
    return re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL)


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(run, html):
    assert render(*copy.deepcopy(run(seeds=1))) == html


CHECKS = {
    "suite": "dataset",
    "rows": 1797,
    "success": False,
    "checks": [
        {
            "check": "column_values_to_be_unique",
            "column": HOSTILE[1],
            "expected": {},
            "success": True,
            "unexpected_rows": 0,
        },
        {"check": "table_row_count_to_equal", "column": "", "expected": {"value": 9}, "success": False, "observed": 8},
    ],
}


def test_the_page_shows_the_checks_of_the_data(run, undrawn):
    """With the checks in the page, reviewers need not open Data Docs, which are empty without internet."""
    html = render(*run(seeds=1), checks=[CHECKS])
    page = Page(html)
    text = " ".join(page.text.split())
    assert "dataset: 1 of 2 checks passed on 1,797 rows" in text
    assert "values to be unique" in text and "0 unexpected rows" in text
    assert "<td>the table</td><td>value: 9</td><td>8</td><td>failed</td>" in html
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img"}


def test_nothing_is_fetched(html):
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not {name for _, attrs in page.tags for name in attrs if name.startswith("on") or name == "src"}
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in page.tags)
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "http" not in html and "@import" not in html and "://" not in html


def test_hostile_class_names_are_text(html):
    page = Page(html)
    assert "<script>alert" in page.text and '"><img src=x' in page.text
    assert HOSTILE[3] in page.text and "a & b # c" in page.text
    assert "$x^2$" in page.text  # It must not be typeset as mathematics.


def test_every_drawing_is_whole_and_refers_to_itself_only(html):
    drawings = svgs(html)
    assert len(drawings) >= 12
    for svg in drawings:
        root = ElementTree.fromstring(svg)
        ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
        used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
        assert len(ids) == len(set(ids)) and used <= set(ids)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
    ids = [i for svg in drawings for i in re.findall(r' id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids)), "an id of one drawing would be found in another"


def test_text_takes_the_colour_and_font_of_the_page(html):
    for svg in svgs(html):
        texts = re.findall(r"<text [^>]*>", svg)
        assert texts and all("font-family: inherit" in t for t in texts)
        assert all("currentColor" in t or "white" in t or "#ffffff" in t for t in texts)


def test_verdict_comes_first_then_the_table_then_plots(run, html):
    verdict = run(seeds=1)[0]["methods"]["loft"]["verdict"]
    wanted = (f"loft: utility {verdict['utility']}; shown: outputs.", "What is not claimed", "<table", "<svg")
    places = [html.index(t) for t in wanted]
    assert places == sorted(places)
    assert "With 1 retrained model, no erasure claim except exact can be shown; at least 3" in html


@pytest.mark.slow
def test_gates_say_what_share_is_left(run):
    summary, evidence = run(seeds=3)
    gate = next(g for g in summary["methods"]["keep"]["verdict"]["gates"] if g["path"] == "accuracy.forget")
    assert gate["refuted"] and gate["share"] == pytest.approx(1.0)
    text = " ".join(Page(render(summary, evidence)).text.split())
    assert "accuracy on forgotten rows" in text
    low, high = gate["interval"]
    assert f"100% [{low:.0%}, {high:.0%}]" in text and "refuted" in text


def test_the_retrained_row_shows_its_spread(run):
    summary, _ = run()
    retrained = next(r for r in main_table(summary)["rows"] if r["name"] == "retrained")
    spread = summary["references"]["retrained"]["spread"]["accuracy"]["test_retain"]
    column = main_table(summary)["head"].index("test ret.")
    assert retrained["cells"][column]["spread"] == f"{spread:.1%}"
    alone = next(r for r in main_table(run(seeds=1)[0])["rows"] if r["name"] == "retrained")
    assert not any(cell["spread"] for cell in alone["cells"])


def test_without_a_reference_the_page_is_complete_and_says_so(run):
    page = render(*run(seeds=0))
    assert "nothing was retrained" in page
    assert "3 are needed" in page and "cannot tell" in page
    assert "Cost against quality" not in page  # There is no distance to a retrained model.
    assert "Where the forgotten rows go" in page


def test_attacks_with_many_models_say_why_they_are_valid(run, undrawn):
    summary, evidence = run(shadow=True)
    text = " ".join(Page(render(summary, evidence)).text.split())
    assert "16 linear heads that unlearned the rows against 16" in text
    assert "The attacks are valid because the backbone never saw the rows." in text
    assert "keep is not covered: it changes the backbone." in text
    assert f"{summary['methods']['loft']['shadow']['ulira']['auc']:.3f}" in text
    assert "not measured" in render(*run())


def test_refused_attacks_and_refused_methods_are_listed(run, undrawn):
    summary, evidence = copy.deepcopy(run())
    summary["shadow"] = {"kind": "refused", "refused_because": "it saw <b>the rows</b>"}
    page = render(summary, evidence)
    assert "Refused: it saw &lt;b&gt;the rows&lt;/b&gt;." in page
    assert "ru-mlp was refused: it would collapse &lt;i&gt;" in page


@pytest.mark.slow
def test_a_random_request_names_no_class_as_forgotten(run):
    summary, evidence = run(whole=False)
    page = render(summary, evidence)
    assert "chosen by random" in page
    assert summary["methods"]["loft"]["accuracy"]["test_forget"] is None
    assert not any("test forg." in head for head in main_table(summary)["head"])


def test_that_no_method_was_selected_stands_first(run, undrawn):
    summary, evidence = copy.deepcopy(run())
    summary["selected"] = None
    for block in summary["methods"].values():
        block["verdict"]["claims"] = dict.fromkeys(block["verdict"]["claims"], "cannot tell")
    page = render(summary, evidence)
    assert page.index("Nothing was shown of any method.") < page.index("What is not claimed")
    assert "outputs: cannot tell, since" in page


def test_the_ladder_tells_shown_from_refuted_from_unknown():
    verdict = verdict_with(("outputs",), utility="lost", refuted=("backbone",))
    steps = ladder(verdict)
    assert [step["state"] for step in steps] == ["lost", "shown", "cannot tell", "refuted", "cannot tell"]
    assert [bool(step["why"]) for step in steps] == [False, False, True, True, True]
    verdict["reasons"]["backbone"] = "all of the excess is left (representation.probe_z)"
    (backbone,) = (step for step in ladder(verdict) if step["name"] == "backbone")
    assert backbone["why"] == "all of the excess is left (linear probe on z)"


def test_every_section_has_a_text_and_a_drawing(html):
    found = re.findall(r'<section class="plot">(.*?)</section>', html, flags=re.DOTALL)
    assert len(found) == 8
    assert all("<svg " in section and re.search(r'<p class="soft">[^<]+\.</p>', section) for section in found)
