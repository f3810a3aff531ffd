"""Test the files of the repository that hosts and tools read: they are valid, and the things they name exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.suites import SUITES

ROOT = Path(__file__).parents[1]
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = TOML["project"]


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors"} <= cited.keys()
    assert (str(cited["version"]), cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert {r["url"].rsplit("/", 1)[1] for r in cited["references"]} == {"2601.21564", "2601.22456"}


def test_continuous_integration_calls_targets_that_exist():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    result = {command.split()[1] for command in commands if command.startswith("make ")}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"setup", "lint", "test", "test-slow", "docs"} <= result <= targets
    asked = {
        step["with"]["python-version"]
        for job in jobs.values()
        for step in job["steps"]
        if "python-version" in step.get("with", {})
    }
    assert asked == {PROJECT["requires-python"].removeprefix(">=")}


def test_badges_say_what_the_project_says_and_lead_to_where_it_stands():
    output = {"python": PROJECT["requires-python"], "licence": PROJECT["license"], "docs": "docs/index.md"}
    shown = re.findall(r"\[!\[[^]]+\]\(docs/images/badge-(\w+)\.svg\)\]\(([\w./]+)\)", (ROOT / "README.md").read_text())
    assert {name for name, _ in shown} == set(output)
    for name, target in shown:
        texts = (
            ElementTree.parse(ROOT / f"docs/images/badge-{name}.svg").getroot().iter("{http://www.w3.org/2000/svg}text")
        )
        assert [text.text for text in texts] == [name, output[name]] and (ROOT / target).is_file()


def test_pictures_in_the_readme_exist():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(pictures) > 3 and all((ROOT / picture).is_file() for picture in pictures)


def test_the_code_of_the_library_runs_as_the_page_shows_it():
    import torch

    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/requests.md").read_text(), re.M | re.S)
    z, forgotten = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) < 10
    names = {"z": z, "forgotten": forgotten, "z_forget": z[forgotten], "shards": z.split(20), "dim": 4}
    exec(block, names | {"weight": torch.eye(3, 4), "bias": torch.zeros(3)}, found := {})
    assert found["forget"].n == 10 and found["head"].logits(z).shape == (60, 3)


def table_of(page: str) -> dict[str, dict[str, str]]:
    """Return the table of results on a page: for each row its name, and each cell by the heading of its column."""
    lines = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("| ")]
    start = next(i for i, line in enumerate(lines) if line.startswith("|  | retain |"))
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[start:]]
    heading, found = cells[0], {}
    for row in cells[1:]:
        if len(row) != len(heading) + 1:
            break
        found[row[0]] = dict(zip(heading, row[1:], strict=True))
    return found


def test_the_readme_shows_part_of_the_table_of_the_default_run():
    whole, part = table_of("docs/first-run.md"), table_of("README.md")
    assert {"original", "retrained", "logit-mask (control)", "loft", "ru-linear", "teacher-map"} <= set(part)
    for name, cells in part.items():
        assert cells.items() <= whole[name].items(), name


def test_the_page_of_the_default_run_explains_each_column_under_the_name_that_a_run_prints():
    from expunge.report.tables import COLUMNS

    page = (ROOT / "docs/first-run.md").read_text()
    explained = re.search(r"^\| column \| what it is \|\n(.*?)\n\n", page, re.M | re.S)[1]
    named = [name for line in explained.splitlines()[1:] for name in line.split(" | ")[0].strip("| ").split(", ")]
    assert named == list(table_of("docs/first-run.md")["original"])
    assert set(named) <= {*(column.heading for column in COLUMNS), "utility", "shown"}


def test_the_readme_fits_a_first_visit():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md")))
def test_every_row_of_a_table_belongs_to_a_table(page):
    """A blank line ends a table; a row after it would be shown as text with vertical bars."""
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    for block in re.split(r"\n *(?:\n|$)", text):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert not rows or re.fullmatch(r"[|:\- ]+", rows[1] if len(rows) > 1 else ""), f"{page}: {rows[0]}"


def test_every_picture_is_shown_on_a_page_and_is_small():
    pages = "".join(p.read_text() for p in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
    for picture in (ROOT / "docs/images").iterdir():
        assert f"images/{picture.name})" in pages, f"no page shows {picture.name}"
        assert picture.stat().st_size < 150_000, f"{picture.name} is large for a page"


def test_the_pictures_that_the_script_takes_are_there():
    taken = re.findall(r'images / "([a-z-]+\.png)"', (ROOT / "docs/hooks/pictures.py").read_text())
    assert len(taken) == 4 and all((ROOT / "docs/images" / name).is_file() for name in taken)


@pytest.mark.parametrize("name", ["SECURITY.md", "CONTRIBUTING.md", "README.md"])
def test_paths_in_pages_exist(name):
    for path in re.findall(r"`(docs/[a-z_]+\.md)`", (ROOT / name).read_text()):
        assert (ROOT / path).is_file(), path


def test_types_are_published():
    assert (ROOT / "src/expunge/py.typed").is_file()


SCHEMAS = {
    ".github/workflows/ci.yml": "github-workflows",
    ".github/dependabot.yml": "dependabot",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/idea.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    "CITATION.cff": "citation-file-format",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_files_of_hosts_follow_their_schemas(name):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{SCHEMAS[name]}", ROOT / name]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_of_hosts_that_has_a_schema_is_checked():
    found = [p for place in (".github/workflows", ".github/ISSUE_TEMPLATE") for p in (ROOT / place).iterdir()]
    assert {str(p.relative_to(ROOT)) for p in found} <= set(SCHEMAS)


def test_the_container_for_development_calls_a_target_that_exists():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    make, target = container["postCreateCommand"].split()
    assert make == "make" and re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
    assert container["image"].endswith(PROJECT["requires-python"].removeprefix(">="))


def test_what_the_wheel_packs_is_there_and_is_what_workspaces_get():
    """`hatch_build.py` must name the files that `expunge init` writes. A slow test of docs/start.md builds a wheel."""
    from expunge.workspaces.init import plan
    from expunge.workspaces.init.answers import EXAMPLES
    from hatch_build import PACKED

    packed = {p.relative_to(ROOT).as_posix() for pattern in PACKED for p in ROOT.glob(pattern)}
    written = {plan.GRAPH, plan.PARAMS, "prefect.yaml", *plan.NOTES, *EXAMPLES.values()}
    flows = {p.relative_to(ROOT).as_posix() for p in (ROOT / "flows").rglob("*") if "__pycache__" not in p.parts}
    assert written | flows <= packed
    assert {"params.text.yaml", "params.people.yaml", ".dvcignore", "docs/start.md"} <= packed


def test_the_files_of_the_suites_exist_and_their_marks_are_declared_and_on_the_page():
    declared = {mark.partition(":")[0] for mark in TOML["tool"]["pytest"]["ini_options"]["markers"]}
    page = (ROOT / "docs/reliability.md").read_text()
    for name, files in SUITES.items():
        assert name in declared and f"`pytest -m {name}`" in page
        assert not [file for file in files if not (ROOT / "tests" / file).is_file()]
