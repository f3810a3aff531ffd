"""Move a workspace to the installed version: the changes as a difference, and their application.

A file that is unchanged since it was written follows the new version. For a file that the user and the new version both
changed, the user decides. In params.yaml every value stays; keys that the new version added are inserted with their
comments.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from expunge.system.errors import ConfigError
from expunge.system.files import write_text
from expunge.system.installed import LOCK, Lock, read_lock
from expunge.workspaces.init.editing import with_missing
from expunge.workspaces.init.plan import (
    GRAPH,
    PARAMS,
    PARTS,
    append_lines,
    digest,
    ignore_rules,
    lock_of,
    managed,
)
from expunge.workspaces.template import text_of


@dataclass
class Upgrade:
    """Changes that an upgrade makes.

    `files`: path -> its new text, None if the new version does not have it. `both`: files changed here and by the new
    version. `kept`: files changed only here. `added`: new keys of params.yaml. `appended`: ignore file -> new lines.
    """

    root: Path
    lock: Lock
    files: dict[str, str | None] = field(default_factory=dict)
    both: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    appended: dict[str, list[str]] = field(default_factory=dict)

    def difference(self) -> str:
        """Return all changes as one unified difference, without the digests of the lock."""
        parts = [_diff(name, _read(self.root / name), text) for name, text in sorted(self.files.items())]
        for name, lines in self.appended.items():
            parts += [f"{name}: lines that it lacks\n" + "".join(f"+{line}\n" for line in lines)] if lines else []
        return "".join(parts)

    @property
    def empty(self) -> bool:
        """Whether the workspace is up to date."""
        return not self.files and not any(self.appended.values()) and self.lock == read_lock(self.root)

    def write(self) -> None:
        """Write and remove the files, append the lines, and write the lock last."""
        for name, text in self.files.items():
            if text is None:
                os.unlink(self.root / name)
            else:
                write_text(self.root / name, text)
        for name, lines in self.appended.items():
            if lines:
                append_lines(self.root / name, lines)
        self.lock.write(self.root)


def upgrade(root: Path, take: Collection[str] = (), keep: Collection[str] = ()) -> Upgrade:
    """Return the changes that move the workspace `root` to the installed version.

    `take`: files changed on both sides that get the new text; `keep`: such files that stay. Raises ConfigError if
    `root` is no workspace, if its params.yaml cannot be read, or if `take` or `keep` name a file that init does not
    write.
    """
    old = read_lock(root)
    if old is None:
        raise ConfigError(
            f"{root.resolve()}: no {LOCK} here, so `expunge init` has not made it a workspace; run it first"
        )
    own = _read(root / PARAMS)
    if own is None:
        raise ConfigError(f"{root / PARAMS}: no such file; restore it with `git checkout {PARAMS}`")
    params, added = with_missing(own, text_of(PARAMS))
    path = (yaml.safe_load(params).get("data") or {}).get("path")
    without = [part for part in PARTS if not any(_part_of(name) == part for name in old.files)]
    new = managed(root, path is not None, without)
    known = {*new, *old.files}
    if unknown := [name for name in (*take, *keep) if name not in known]:
        raise ConfigError(f"{unknown[0]}: not a file that `expunge init` writes; these are {', '.join(sorted(known))}")
    result = Upgrade(root, lock_of(new), added=added, appended=ignore_rules(root, new[GRAPH]))
    if params != own:
        result.files[PARAMS] = params
    for name in sorted(known):
        _compare(result, name, old.files.get(name), new.get(name), take, keep)
    return result


def _compare(
    result: Upgrade, name: str, written: str | None, text: str | None, take: Collection[str], keep: Collection[str]
) -> None:
    here = _read(result.root / name)
    now = None if here is None else digest(here)
    wanted = None if text is None else digest(text)
    if now == wanted:
        return
    if now == written or name in take:
        result.files[name] = text
    elif wanted == written or name in keep or (here is None and written is not None):
        result.kept.append(name)
    else:
        result.both.append(name)
        result.files[name] = text


def _part_of(name: str) -> str:
    return "ci" if name.endswith(".github/workflows/expunge.yml") else "flows" if name.startswith("flows/") else ""


def _read(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8") if path.is_file() else None


def _diff(name: str, old: str | None, new: str | None) -> str:
    lines = difflib.unified_diff(
        (old or "").splitlines(keepends=True),
        (new or "").splitlines(keepends=True),
        "/dev/null" if old is None else f"a/{name}",
        "/dev/null" if new is None else f"b/{name}",
    )
    return "".join(lines)
