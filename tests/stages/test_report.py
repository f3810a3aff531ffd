"""Test the stage `report` on a finished pipeline: reproducible files without row ids."""

import re
from datetime import UTC, datetime
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import yaml

from tests.pipeline import stage

FILES = ("report.html", "results.csv", "model_card.md")


@pytest.mark.slow
def test_the_report_of_a_finished_run_is_the_same_twice_and_names_no_row(copy):
    reports = copy / "reports"
    for name in FILES:
        (reports / name).unlink(missing_ok=True)
    written = []
    for _ in range(2):
        result = stage(copy, "report")
        assert result.returncode == 0, result.stderr
        written.append([(reports / name).read_bytes() for name in FILES])
    assert written[0] == written[1]
    page = written[0][0].decode()
    figures = sorted((reports / "figures").glob("*.svg"))
    assert len(figures) == page.count("<svg ")
    assert f"Made on {datetime.now(UTC):%Y-%m-%d}" in page and "Next." in page
    assert "What changes for whom: the original beside" in page
    assert set(re.findall(r'<img src="([^,]*),', page)) <= {"data:image/png;base64"}
    for figure in figures:  # Each file must be a complete SVG document.
        assert ElementTree.parse(figure).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert page.count("<svg ") >= 12 and "t-SNE" in page
    ids = pq.read_table(copy / "data" / "split" / "assignment.parquet", columns=["sample_id"])["sample_id"].to_pylist()
    assert not [i for i in ids if any(i.encode() in text for text in written[0])]
    assert yaml.safe_load((reports / "model_card.md").read_text().split("---\n")[1])["pipeline_tag"]


@pytest.mark.slow
def test_a_missing_evaluation_is_named(copy):
    (copy / "data" / "evaluation" / "loft" / "loft.parquet").unlink()
    result = stage(copy, "report")
    assert result.returncode == 2
    assert "data/evaluation/loft/loft.parquet: is missing" in result.stderr
