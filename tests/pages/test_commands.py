"""Every command of every page is one that its program accepts. `test_runs.py` runs those that can run here."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from tests.pages.programs import CHECKS, options_of
from tests.pages.shell import OTHER, SHELL, Command, blocks, commands, fences, is_settings, pages, spans
from tests.pipeline import ROOT

pytestmark = pytest.mark.xdist_group("pages")  # The checks import torch, MLflow, Prefect and Ray: one process does.
# Words of the shell and tools of every system. They have no parser to ask; the tests that run the blocks run them.
SYSTEM = {"cd", "curl", "cut", "export", "grep", "head", "kill", "mkdir", "openssl", "printf", "sleep", "source"}
SYSTEM |= {"test", "true", "wait"}
# These cannot be asked here.
UNCHECKED = {
    "apt-get": "Debian's, and it needs a network",
    "dpkg": "Debian's; a mention of how packages are unpacked",
    "npm": "fetches packages from a network",
    "ssh": "needs another machine",
}
# What an option that stands alone in a sentence belongs to, where the page does not name the command.
OPTION_OF = {
    ("docs/deployment.md", "--background"): "prefect server start --background",
    ("docs/deployment.md", "--no-services"): "prefect server start --no-services",
    ("docs/docker.md", "--allowed-hosts"): "mlflow server --allowed-hosts localhost",
    ("docs/docker.md", "--profile gpu"): "docker compose -f docker/compose.yaml --profile gpu up",
    ("docs/review.md", "--every 8"): "expunge watch --every 8",
    ("docs/review.md", "--listen"): "expunge watch --listen 127.0.0.1:8600",
    ("docs/review.md", "--webhook-url"): "expunge watch --listen 127.0.0.1:8600 --webhook-url https://example.org/",
    ("docs/reliability.md", "-m slow"): "pytest -m slow tests/test_secrets.py",
}
PROGRAMS = {*CHECKS, *UNCHECKED}
COMMANDS = commands(PROGRAMS)


def numbered(found: list) -> list:
    """Return the parameters of a test with names that stay apart."""
    return [pytest.param(one, id=f"{number} {one}") for number, one in enumerate(found)]


def test_pages_and_their_commands_are_found():
    """The numbers are below those of today. They fail if a change of the pages' form hides most of the commands."""
    assert len(pages()) > 40 and {"README.md", "CONTRIBUTING.md"} <= {p.name for p in pages()}
    assert sum(not command.mention for command in COMMANDS) > 100 and len(COMMANDS) > 250


@pytest.mark.parametrize("page", numbered([p.relative_to(ROOT).as_posix() for p in pages()]))
def test_blocks_are_shell_that_bash_can_read_or_name_another_language(page):
    for block in fences(ROOT / page):
        shell = block.language in SHELL or (not block.language and not is_settings(block.text))
        assert shell or not block.language or block.language in OTHER, f"{block.place}: {block.language}"
    for block in blocks(ROOT / page):
        read = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
        assert read.returncode == 0, f"{block.place}: {read.stderr}"


@pytest.mark.parametrize("command", numbered([c for c in COMMANDS if c.program not in CHECKS]))
def test_a_program_without_a_parser_is_one_that_we_know(command):
    known = command.program in SYSTEM or command.program in UNCHECKED
    assert known, f"{command}: not a program that a page may name; is it output? Then say `text` or `console`"
    if command.program in SYSTEM:
        assert subprocess.run(["bash", "-c", f"type {command.program}"], capture_output=True).returncode == 0


@pytest.mark.parametrize("command", numbered([c for c in COMMANDS if c.program in CHECKS]))
def test_a_command_is_accepted_by_its_program(command):
    assert CHECKS[command.program](command) == "", str(command)


def options() -> list[tuple[str, int, str]]:
    """Return page, line and text of every code span that is an option alone."""
    found = [(page.relative_to(ROOT).as_posix(), line, text) for page in pages() for line, text in spans(page)]
    return [one for one in found if re.match(r"--[a-z]|-\w( |$)", one[2])]


@pytest.mark.parametrize(("page", "line", "text"), options())
def test_an_option_in_a_sentence_is_of_a_command_that_the_page_names(page, line, text):
    if (page, text) in OPTION_OF:
        words = tuple(shlex.split(OPTION_OF[page, text]))
        assert CHECKS[words[0]](Command(f"{page}:{line}", words, False)) == ""
        return
    named = [command for command in COMMANDS if command.place.partition(":")[0] == page]
    assert any(text.split()[0] in options_of(command) for command in named), f"{page}:{line}: {text}"


@pytest.mark.parametrize(
    "wrong",
    [
        "expunge examine",
        "expunge promote",
        "expunge variant NAME -S model.nme=x",
        "expunge sweep --everything",
        "dvc repro no-such-stage",
        "dvc exp run --temp -S 'methods=[no-such-method]'",
        "dvc checkout data/none",
        "make no-such-target",
        "python -m expunge.nothing",
        "python -m expunge.stages.extract original --repare",
        "pytest tests/none.py",
        "pytest tests/test_config.py::test_nothing",
        "pytest -m slow tests/test_structure.py",
        "mlflow models serv",
        "prefect server start --prt 1",
        "pip install expunge[none]",
        "git submit",
        "git commit --no-such-option",
        "docker compose -f docker/compose.yaml run --rm nobody true",
        "cp none.yaml params.yaml",
    ],
)
def test_the_checks_refuse_what_is_wrong(wrong):
    words = tuple(shlex.split(wrong))
    assert CHECKS[words[0]](Command("here:1", words, False)) != ""
