"""Digests of this package's code, on which stages depend.

In a workspace without `src/`, `expunge init` writes them into `expunge.lock` and `expunge init --upgrade` updates them.
The stage `code` writes one digest for each stage, so a change makes only those stages stale that import changed code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import expunge
from expunge.system.errors import ConfigError
from expunge.system.files import write_text
from expunge.system.imports import closure
from expunge.system.safe_yaml import read_mapping

LOCK = Path("expunge.lock")
CODE_STAGE = "code"  # the stage that writes the digests for the other stages
PACKAGE = Path(__file__).parents[1]
HEADER = (
    "# Written by `expunge init` and updated by `expunge init --upgrade`; do not edit it. `code`: digests of the\n"
    "# installed package's code. `files`: digests of the files as written here.\n"
)
SKIPPED = ("__pycache__", ".pyc", ".tmp")


@dataclass(frozen=True)
class Lock:
    """Content of `expunge.lock`.

    `code`: module or package below `expunge` -> digest. `files`: path -> digest of the file as init wrote it.
    """

    version: str
    code: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return the text of `expunge.lock`."""
        code, files = dict(sorted(self.code.items())), dict(sorted(self.files.items()))
        content = {"version": self.version, "code": code, "files": files}
        return HEADER + yaml.safe_dump(content, sort_keys=False, width=200)

    def write(self, root: Path) -> None:
        """Write `expunge.lock` below `root`."""
        write_text(root / LOCK, self.text())


def installed_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("expunge")
    except PackageNotFoundError:  # imported from a source tree that is not installed
        return expunge.__version__


def code_digest(unit: str) -> str | None:
    """Return the digest of the module or package `unit` below `expunge`, such as "stages.fit".

    It has 32 hex digits. Returns None if this version lacks the unit.
    """
    path = PACKAGE.joinpath(*unit.split("."))
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path.with_suffix(".py")]
    files = [f for f in files if not any(part.endswith(SKIPPED) for part in f.relative_to(PACKAGE).parts)]
    if not all(f.is_file() for f in files):
        return None
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]


def parts(module: str) -> list[str]:
    """Return the code that a module imports, such as "expunge.stages.fit", as `code_digest` names it.

    Packages count as a whole. Of `expunge.stages` only the module itself counts, because stages do not import each
    other.
    """
    found = set()
    for file in closure(PACKAGE.parent, module):
        first, *rest = file.relative_to(PACKAGE).with_suffix("").parts
        found.add(".".join([first, *rest]) if first == "stages" else first)
    return sorted(found - {"__init__"})


def module_digest(module: str) -> str:
    """Return one digest of the code that a module imports: 32 hex digits."""
    return _joined({part: code_digest(part) for part in parts(module)})


def stages() -> dict[str, list[str]]:
    """Return for each module of `expunge.stages`, such as "fit", the code that it imports, as `parts` does."""
    names = sorted(path.stem for path in (PACKAGE / "stages").glob("*.py"))
    return {name: parts(f"expunge.stages.{name}") for name in names if name not in ("__init__", CODE_STAGE)}


def code_digests(needed: Mapping[str, list[str]]) -> dict[str, str]:
    """Return the digests of all code in the lists of `needed`, by the name that `code_digest` has for it."""
    found = {part for listed in needed.values() for part in listed}
    return {part: code_digest(part) or "" for part in sorted(found)}


def stage_digests() -> dict[str, str]:
    """Return for each module of `expunge.stages` what `module_digest` returns. Shared code is read once."""
    needed = stages()
    code = code_digests(needed)
    return {stage: _joined({part: code[part] for part in listed}) for stage, listed in needed.items()}


def _joined(digests: Mapping[str, str | None]) -> str:
    lines = "".join(f"{part} {digest}\n" for part, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()[:32]


def read_lock(root: Path = Path()) -> Lock | None:
    """Return the lock of the workspace `root`; None if there is none, because its stages depend on `src/`.

    Raises ConfigError for a file that is not a lock.
    """
    if not (root / LOCK).is_file():
        return None
    raw = read_mapping(root / LOCK)
    code, files = raw.get("code"), raw.get("files")
    if not isinstance(code, dict) or not isinstance(files, dict) or not isinstance(raw.get("version"), str):
        raise ConfigError(f"{root / LOCK}: not as `expunge init` writes it; restore it with `git checkout {LOCK}`")
    return Lock(raw["version"], _texts(code), _texts(files))


def _texts(entries: dict[Any, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in entries.items()}


def changed_code(lock: Lock) -> list[str]:
    """Return the entries of `lock` whose code differs in the installed package."""
    return [unit for unit, digest in lock.code.items() if code_digest(unit) != digest]


def other_version(root: Path = Path()) -> str | None:
    """Return what is wrong if the workspace `root` was made for other code than the installed one, else None.

    The text has two parts with "; " between them: the problem and the way out.
    """
    lock = read_lock(root)
    if lock is None or not (changed := changed_code(lock)):
        return None
    here = installed_version()
    which = f"version {here} is installed" if here != lock.version else f"another build of {here} is installed"
    back = f", or `pip install expunge=={lock.version}` to go back" if here != lock.version else ""
    parts = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
    return (
        f"{LOCK} is of version {lock.version}, and {which}, with other code in {parts}, so dvc.lock would record what "
        f"is not so; run `expunge init --upgrade` to see what changes{back}"
    )


def refuse_other_version() -> None:
    """Raise ConfigError if the workspace was made for other code than the installed one."""
    if problem := other_version(Path()):
        raise ConfigError(problem)
