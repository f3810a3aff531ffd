"""Check commands of DVC: options, stages and paths, and the settings of an experiment.

Each check returns why a command is wrong, or "" if nothing is wrong with it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import tempfile
from pathlib import Path

import yaml

from expunge.commands.variant import changes
from expunge.config import load_config
from expunge.system.errors import ExpungeError
from expunge.workspaces.workspace import params_with
from tests.pages.shell import Command
from tests.pipeline import ROOT

PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+\b|\$|\.\.\.")  # NAME, YOURS.csv, $REQUEST or ...: the reader fills it in.


def overrides(words: tuple[str, ...]) -> str:
    """Return what is wrong with params.yaml after the changes of `-S KEY=VALUE`."""
    given = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-S", "--set", "--set-param")]
    given = [change for change in given if not PLACEHOLDER.search(change)]
    try:
        params = params_with(ROOT / "params.yaml", changes(given))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "params.yaml").write_text(yaml.safe_dump(params))
            load_config(Path(folder) / "params.yaml")
    except ExpungeError as e:
        return str(e)
    return ""


def dvc(command: Command) -> str:
    from dvc.cli import DvcParserError
    from dvc.cli.parser import get_main_parser

    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            given = get_main_parser().parse_args(command.words[1:])
    except DvcParserError:
        return "" if command.mention and is_name_of_dvc(command.words[1:]) else f"dvc: {output.getvalue()[-200:]}"
    targets = getattr(given, "targets", None) or []
    unknown = [target for target in targets if not (is_stage(target) or exists(target, command.written))]
    return f"neither a stage nor a path: {unknown}" if unknown else overrides(command.words)


def is_name_of_dvc(words: tuple[str, ...]) -> bool:
    """Return whether the words are the name of a command whose arguments are left out."""
    return not any(word.startswith("-") for word in words) and help_of_dvc(words).startswith(f"usage: dvc {words[0]}")


def help_of_dvc(words: tuple[str, ...]) -> str:
    """Return the help of the command of DVC with whose name the words begin."""
    from dvc.cli.parser import get_main_parser

    output = io.StringIO()
    names = itertools.takewhile(lambda word: not word.startswith("-"), words)
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        get_main_parser().parse_args([*names, "--help"])
    return output.getvalue()


def is_stage(target: str) -> bool:
    return target.partition("@")[0] in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@functools.cache
def outputs() -> frozenset[str]:
    """Return the paths that the pipeline writes, and the folders above them."""
    found: set[Path] = set()
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        for kind in ("outs", "metrics", "plots"):
            for entry in stage.get("do", stage).get(kind, []):
                path = Path(next(iter(entry)) if isinstance(entry, dict) else entry)
                found |= {path, *path.parents}
    return frozenset(path.as_posix() for path in found) | {"dvc.lock"}


def exists(path: str, written: tuple[str, ...] = ()) -> bool:
    """Return whether a path is in the repository, an output, written before on the page, or the reader's own."""
    own = PLACEHOLDER.search(path) is not None
    return own or (ROOT / path).exists() or path.rstrip("/") in outputs() or path in written
