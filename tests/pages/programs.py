"""Ask the parsers of the programs themselves whether they accept a command of a page.

Each function returns why a command is wrong, or "" if nothing is wrong with it.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import typer
import yaml

from expunge.cli import app
from tests.pages.dvc_commands import dvc, exists, help_of_dvc, overrides
from tests.pages.shell import Command, commands
from tests.pipeline import ENVIRONMENT, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN = "00000000-0000-4000-8000-000000000000"  # takes the place of the variable with the id of a run


def walk(command, name: str, words: tuple[str, ...], mention: bool) -> str:
    """Parse the words with a command of click or of typer, down to the last subcommand.

    A mention may stop at the name of a command or of an option, and leave out the arguments.
    """
    context = None
    while words or not mention:
        try:
            context = command.make_context(name, list(words), parent=context)
        except Exception as e:  # typer has a copy of click with exceptions of its own
            output = str(getattr(e, "message", None) or repr(e))
            named = mention and words[-1].startswith("--") and output.endswith("requires an argument.")
            return "" if named else f"{name}: {output}"
        if not hasattr(command, "resolve_command"):
            break
        rest = [*context._protected_args, *context.args]
        if not rest:
            return "" if mention else f"{name}: names no command"
        try:
            name, command, rest = command.resolve_command(context, rest)
        except Exception as e:
            return f"{name}: {getattr(e, 'message', None) or e!r}"
        words = tuple(rest)
    return ""


def expunge(command: Command) -> str:
    wrong = walk(typer.main.get_command(app), "expunge", command.words[1:], command.mention)
    return wrong or (overrides(command.words) if command.words[1] == "variant" else "")


def mlflow(command: Command) -> str:
    from mlflow.cli import cli

    return walk(cli, "mlflow", command.words[1:], command.mention)


def ray(command: Command) -> str:
    from ray.scripts.scripts import cli

    return walk(cli, "ray", command.words[1:], command.mention)


def prefect(command: Command) -> str:
    from prefect.cli._app import _app  # the public function `app` reads sys.argv and runs the command

    words = [RUN if word.startswith("$") else word for word in command.words[1:]]
    try:
        _app.parse_args(words, print_error=False, exit_on_error=False)
    except Exception as e:
        return f"prefect: {e!r}"
    return ""


def options_of(command: Command) -> set[str]:
    """Return all options of the command of Expunge or DVC that a command of a page names, else none."""
    if command.program == "dvc":
        return set(re.findall(r"-\w\b|--[\w-]+", help_of_dvc(command.words[1:])))
    found = typer.main.get_command(app) if command.program == "expunge" else None
    for word in command.words[1:]:
        found = getattr(found, "commands", {}).get(word, found)
    return {option for given in getattr(found, "params", ()) for option in (*given.opts, *given.secondary_opts)}


def make(command: Command) -> str:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    unknown = [word for word in command.words[1:] if word not in targets]
    return f"no target of the Makefile: {unknown}" if unknown or len(command.words) == 1 else ""


def python(command: Command) -> str:
    """Check a module of `python -m` with its words, or a file."""
    words = command.words[1:]
    if words[0] != "-m":
        return "" if (ROOT / words[0]).is_file() and len(words) == 1 else f"no file {words[0]}, or it takes no words"
    if words[1] in ("expunge", "expunge.cli"):
        return expunge(Command(command.place, ("expunge", *words[2:]), command.mention))
    if words[1] == "venv":
        return ""
    if (spec := find_spec(words[1])) is None:
        return f"no module {words[1]}"
    source = source_of(spec)
    if 'if __name__ == "__main__":' not in source:
        return f"{words[1]} cannot be run"
    if "argparse" not in source:
        return f"{words[1]} takes no words" if words[2:] else ""
    return argparse_says(("module", *words[1:]))


def source_of(spec: ModuleSpec) -> str:
    """Return the text of the file that `python -m` runs, "" if there is none."""
    if spec.submodule_search_locations:
        spec = find_spec(f"{spec.name}.__main__")
    return Path(spec.origin).read_text() if spec and spec.origin else ""


def script_of_argparse(command: Command) -> str:
    return argparse_says(("script", command.program, *command.words[1:]))


def argparse_says(program: tuple[str, ...]) -> str:
    """Return what the parser of a program that uses argparse says against its words."""
    answers = argparse_answers()
    return answers[program] if program in answers else ask_argparse([program])[program]


@functools.cache
def argparse_answers() -> dict[tuple[str, ...], str]:
    """Ask the parsers of all such programs of the pages in one process, since most of them import torch."""
    found = []
    for command in commands(set(CHECKS)):
        if CHECKS.get(command.program) in (script_of_argparse, torchrun):
            found.append(("script", command.program, *command.words[1:]))
        elif CHECKS.get(command.program) is python and command.words[1] == "-m":
            name = command.words[2]
            if name != "expunge.cli" and (spec := find_spec(name)) is not None and "argparse" in source_of(spec):
                found.append(("module", name, *command.words[3:]))
    return ask_argparse(found)


def ask_argparse(programs: list[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    script = [sys.executable, "-m", "tests.pages.accept_argparse"]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    asked = json.dumps([{kind: name, "words": words} for kind, name, *words in programs])
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(script, cwd=folder, env=environment, input=asked, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(programs, json.loads(done.stdout), strict=True))


def torchrun(command: Command) -> str:
    """Check the options of torchrun, and the module with its words that every process runs."""
    module = command.words[command.words.index("-m") :]
    return script_of_argparse(command) or python(Command(command.place, ("python", *module), command.mention))


def pip(command: Command) -> str:
    """Check the options with pip's own parser, and paths, extras and pinned versions with this project."""
    from pip._internal.commands import create_command

    try:
        _, named = create_command(command.words[1]).parse_args(list(command.words[2:]))
    except (SystemExit, KeyError) as e:
        return f"pip: {e!r}"
    for requirement in named:
        name, _, extras = requirement.removesuffix("]").partition("[")
        if extras and extras not in PROJECT["optional-dependencies"]:
            return f"no extra {extras}"
        if "==" in name and name not in PROJECT["dependencies"]:
            return f"{name} is not the version of pyproject.toml"
        if name.endswith(".whl") and f"-{PROJECT['version']}-" not in name:
            return f"{name} is not of version {PROJECT['version']}"
        if "/" in name and not name.endswith(".whl") and not (ROOT / name / "pyproject.toml").is_file():
            return f"no package in {name}"
    return ""


def git(command: Command) -> str:
    """Check the name of the command, its options by the summary that git prints of it, and paths after `--`."""
    name, *rest = command.words[1:]
    summary = subprocess.run(["git", name, "-h"], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if summary.returncode != 129:
        return f"git has no command {name}"
    options = [word for word in rest if word.startswith("-") and word != "--"]
    known = set(re.findall(r"-\w\b|--[\w-]+", summary.stdout.replace("[no-]", "")))
    if unknown := [option for option in options if option not in known]:
        return f"git {name} has no {unknown}"
    paths = rest[rest.index("--") + 1 :] if "--" in rest else []
    return next((f"no path {path}" for path in paths if not exists(path, command.written)), "")


def docker(command: Command) -> str:
    """Check a command of Compose by the file that it names: services, profiles, and what runs in a service."""
    words = list(command.words[1:])
    if words[0] != "compose":
        return ""
    file = words[words.index("-f") + 1]
    stack = yaml.safe_load((ROOT / file).read_text())
    profiles = {name for service in stack["services"].values() for name in service.get("profiles", [])}
    if "--profile" in words and words[words.index("--profile") + 1] not in profiles:
        return f"{file} has no such profile"
    if "run" not in words:
        return ""
    service, *inside = [word for word in words[words.index("run") + 1 :] if word != "--rm"]
    if service not in stack["services"]:
        return f"{file} has no service {service}"
    return CHECKS[inside[0]](Command(command.place, tuple(inside), command.mention))


def pytest_(command: Command) -> str:
    """Check that the paths are there and that they hold tests of the name and of the mark that are given."""
    for path, _, test in (word.partition("::") for word in command.words[1:] if "/" in word):
        place = ROOT / path
        texts = [file.read_text() for file in ([place] if place.is_file() else place.glob("test_*.py"))]
        if not any(f"def {test or 'test_'}" in text for text in texts):
            return f"no test in {path}"
        if "slow" in command.words and not any("pytest.mark.slow" in text for text in texts):
            return f"no slow test in {path}"
    return ""


def copied(command: Command) -> str:
    return "" if exists(command.words[1]) else f"no path {command.words[1]}"


CHECKS: dict[str, Callable[[Command], str]] = {
    "cp": copied,
    "docker": docker,
    "dvc": dvc,
    "expunge": expunge,
    "git": git,
    "hatchling": script_of_argparse,
    "make": make,
    "mlflow": mlflow,
    "pip": pip,
    "pre-commit": script_of_argparse,
    "prefect": prefect,
    "pytest": pytest_,
    "python": python,
    "python3": python,
    "ray": ray,
    "torchrun": torchrun,
}
