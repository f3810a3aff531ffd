"""Files that hosts and tools read: they are valid, and what they name exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors"} <= cited.keys()
    assert (str(cited["version"]), cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert {r["url"].rsplit("/", 1)[1] for r in cited["references"]} == {"2601.21564", "2601.22456"}


def test_continuous_integration_calls_targets_that_exist():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    made = {command.split()[1] for command in commands if command.startswith("make ")}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"setup", "lint", "test", "test-slow"} <= made <= targets
    asked = {
        step["with"]["python-version"]
        for job in jobs.values()
        for step in job["steps"]
        if "python-version" in step.get("with", {})
    }
    assert asked == {PROJECT["requires-python"].removeprefix(">=")}


@pytest.mark.parametrize("name", ["SECURITY.md", "CONTRIBUTING.md", "README.md"])
def test_paths_in_pages_exist(name):
    for path in re.findall(r"`(docs/[a-z_]+\.md)`", (ROOT / name).read_text()):
        assert (ROOT / path).is_file(), path


def test_types_are_published():
    assert (ROOT / "src/expunge/py.typed").is_file()
