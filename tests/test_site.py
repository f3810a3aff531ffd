"""Test the documentation site: it builds without warnings, fetches nothing from other hosts, and matches the code."""

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
import yaml
from pydantic import TypeAdapter

from expunge.cli import app
from expunge.config import Config
from expunge.erasure.batches import Step
from expunge.report.schema import summary_schema

ROOT = Path(__file__).parents[1]
# The tags for which a browser fetches a file, and the attribute with its address.
FETCHED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}


class Fetches(HTMLParser):
    """Collect the addresses that a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs).get(FETCHED.get(tag, ""))
        if named:
            self.found.append(named)


def nav_pages(entries: list) -> list[str]:
    """Return every page in the entries of `nav` in mkdocs.yml."""
    found = []
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            found += nav_pages(value) if isinstance(value, list) else [value]
    return found


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = nav_pages(config["nav"])
    written = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "docs/notebooks").glob("*.ipynb")}
    assert notebooks <= set(pages), "add these notebooks to `nav` in mkdocs.yml"
    named = {page for page in pages if not page.startswith("reference/")} - notebooks
    assert written - named == set(), "add these pages to `nav` in mkdocs.yml"
    assert named - written == set(), "mkdocs.yml names pages that do not exist"
    assert len(pages) == len(set(pages))


def drawings():
    """Import and return docs/hooks/drawings.py, which draws the pictures of docs/architecture.md."""
    spec = importlib.util.spec_from_file_location("drawings", ROOT / "docs/hooks/drawings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["stages.svg", "packages.svg"])
def test_the_drawings_are_made_from_the_present_code(name):
    drawn = drawings().DRAWINGS[name]()
    assert (ROOT / "docs/images" / name).read_text() == drawn, "run `python docs/hooks/drawings.py`"


def test_the_drawing_of_stages_has_every_stage_and_an_arrow_to_each_but_the_first():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    graph = drawings().stage_graph(stages)
    assert set(graph) == set(stages)
    assert [name for name in graph if not graph.in_degree(name)] == ["code"]
    assert {("train", "extract"), ("fit", "evaluate"), ("compare", "report")} <= set(graph.edges)
    assert ("prepare", "train") not in graph.edges  # The path through validate-dataset implies this edge.


def test_the_page_on_architecture_has_every_step_of_a_request():
    page = (ROOT / "docs/architecture.md").read_text()
    assert re.findall(r"^\| ([a-z]+) \|", page, re.M)[1:] == [step.value for step in Step]


def test_links_that_leave_docs_become_text_and_pages_that_are_named_become_links(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs/hooks"))
    import pages

    def mended(place: str, text: str) -> str:
        page = SimpleNamespace(file=SimpleNamespace(src_uri=place))
        return pages.on_page_markdown(text, page=page)

    assert mended("start.md", "see [the list](../CONTRIBUTING.md#adding)") == "see the list (`CONTRIBUTING.md`)"
    assert mended("decisions/0001.md", "[code](../../src/expunge/cli.py)") == "code (`src/expunge/cli.py`)"
    assert mended("start.md", "read `docs/verdict.md`") == "read [`docs/verdict.md`](verdict.md)"
    assert mended("reference/params.md", "`docs/exact.md`") == "[`docs/exact.md`](../exact.md)"
    for place, link in [
        ("start.md", "`docs/none.md`"),
        ("start.md", "[`docs/exact.md`](exact.md)"),
        ("decisions/0001.md", "[verdict](../verdict.md#rules)"),
        ("start.md", "[paper](https://arxiv.org/abs/2601.21564)"),
        ("start.md", "![picture](../images/a.png)"),
    ]:
        assert mended(place, link) == link
    assert mended("requests.md", "[alone](notebooks/library-alone.ipynb)") == "[alone](notebooks/library-alone.md)"


def test_a_page_of_a_notebook_has_its_text_code_outputs_and_pictures(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "docs/hooks"))
    import nbformat
    from notebook_pages import notebook_page

    path = tmp_path / "small.ipynb"
    new = nbformat.v4
    printed = [
        new.new_output("stream", name=name, text=f"{name} {i}\n") for i in (1, 2) for name in ("stdout", "stderr")
    ]
    picture = new.new_output("display_data", {"image/png": base64.b64encode(b"png").decode()})
    code = new.new_code_cell("draw()", outputs=[*printed, picture], execution_count=1)
    nbformat.write(new.new_notebook(cells=[new.new_markdown_cell("# Title\n\nWords."), code]), path)
    text, pictures = notebook_page(path)
    assert text.startswith("# Title\n") and "\nWords.\n" in text and '<a href="small.ipynb"' in text
    assert "```python\ndraw()\n```" in text
    assert '```text title="Output"\nstdout 1\nstdout 2\n```' in text and "stderr" not in text
    assert "](small-1.png)" in text and pictures == {"small-1.png": b"png"}

    code.outputs[-1] = new.new_output("error", ename="ValueError", evalue="x")
    nbformat.write(new.new_notebook(cells=[code]), path)
    with pytest.raises(ValueError, match=r"small.ipynb, cell 0: .* error"):
        notebook_page(path)
    code.update(outputs=[], execution_count=None)
    nbformat.write(new.new_notebook(cells=[code]), path)
    with pytest.raises(ValueError, match=r"small.ipynb, cell 0: has not been run"):
        notebook_page(path)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]*>", "", page.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_no_page_fetches_anything_from_another_host(site):
    for page in site.rglob("*.html"):
        parser = Fetches()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.found, f"{page.name}: the test found nothing that the page fetches"
        assert [name for name in parser.found if re.match(r"(?:https?:)?//", name)] == [], page.name
        # For such an element, the script of the theme would fetch Mermaid from another host.
        assert 'class="mermaid"' not in page.read_text(encoding="utf-8"), page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


@pytest.mark.slow
def test_the_page_on_params_has_every_key(site):
    page = (site / "reference/params.html").read_text(encoding="utf-8")
    schema = TypeAdapter(Config).json_schema()
    for name, section in schema["properties"].items():
        assert f'id="{name}"' in page or f"<code>{name}</code>" in page, name
        if "$ref" in section:
            part = page[page.index(f'<h2 id="{name}"') :].partition("</table>")[0]
            keys = schema["$defs"][section["$ref"].rpartition("/")[2]]["properties"]
            assert re.findall(r"<tr>\s*<td><code>(\w+)</code></td>", part) == list(keys), name


@pytest.mark.slow
def test_the_page_on_the_command_line_has_every_command_and_option(site):
    text = text_of(site / "reference/commands.html")

    def check(command, path: str) -> None:
        assert path in text
        for option in command.params:
            assert all(name in text for name in option.opts if name.startswith("--")), (path, option.opts)
        for name, child in getattr(command, "commands", {}).items():
            check(child, f"{path} {name}")

    check(typer.main.get_command(app), "expunge")


@pytest.mark.slow
def test_pages_on_the_api_describe_what_a_reader_imports(site):
    import expunge.core
    import expunge.evaluation

    for package in (expunge.core, expunge.evaluation):
        page = (site / f"reference/api/{package.__name__.rpartition('.')[2]}.html").read_text(encoding="utf-8")
        assert [name for name in package.__all__ if f'id="{package.__name__}.{name}"' not in page] == []


@pytest.mark.slow
def test_the_page_on_the_summary_has_every_part_and_the_schema_lies_beside_it(site):
    schema = json.loads((site / "reference/summary.schema.json").read_text(encoding="utf-8"))
    assert schema == summary_schema()
    page = (site / "reference/summary.html").read_text(encoding="utf-8")
    for name, part in schema["$defs"].items():
        table = page[page.index(f'<h2 id="{name.lower()}"') :].partition("</table>")[0]
        assert re.findall(r"<tr>\s*<td><code>(\w+)</code></td>", table) == list(part["properties"]), name
    assert 'href="summary.schema.json"' in page


@pytest.mark.slow
def test_notebooks_are_pages_with_their_outputs_and_pictures(site):
    for path in (ROOT / "docs/notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        outputs = [output for cell in cells for output in cell["outputs"]]
        page = site / f"notebooks/{path.stem}.html"
        text = text_of(page)
        for output in outputs:
            printed = "".join(output.get("text", [])) if output.get("name") == "stdout" else ""
            assert all(line in text for line in printed.splitlines()), path.name
        shown = re.findall(r'<img [^>]*src="([\w-]+\.png)"', page.read_text(encoding="utf-8"))
        assert len(shown) == sum("image/png" in output.get("data", {}) for output in outputs) > 0
        assert all((page.parent / name).read_bytes().startswith(b"\x89PNG") for name in shown)
    page = (site / "requests.html").read_text(encoding="utf-8")
    assert 'href="notebooks/library-alone.html"' in page


@pytest.mark.slow
def test_pages_of_the_root_are_on_the_site_with_their_links(site):
    assert "Adding things" in text_of(site / "reference/contributing.html")
    assert "Keep a Changelog" in text_of(site / "reference/changelog.html")
    assert 'href="../verdict.html"' in (site / "decisions/0004-claims.html").read_text(encoding="utf-8")
