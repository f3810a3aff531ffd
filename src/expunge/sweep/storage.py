"""Sweep the files that DVC stores.

This module commits the rewritten outputs to dvc.lock, removes what dvc.lock does not name from cache, run cache and
remotes, and checks the result.

Only stages that were up to date before are committed. A stage whose code or params had changed stays out of date. It
loses its lock entry if that names rewritten outputs, because the entry would keep the old objects alive.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from expunge.sweep.report import NotPurgeable, Residue, SweepReport
from expunge.system import dvc
from expunge.system.files import write_text

LOCK = "dvc.lock"
OBJECTS, RUNS = Path("files/md5"), Path("runs")
KEPT_LOCK = Path(".expunge/sweep/dvc.lock")
SKIPPED = {".git", ".dvc", ".expunge", ".venv", "__pycache__"}


def _load(text: str) -> Any:
    """Parse YAML, with the C parser if available: a sweep reads dvc.lock and the run cache many times."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@dataclass(frozen=True)
class Storage:
    """DVC in the workspace `root`, used through its command line."""

    root: Path

    @property
    def in_use(self) -> bool:
        """Whether the workspace has a DVC pipeline."""
        return (self.root / ".dvc").is_dir() and (self.root / "dvc.yaml").is_file()

    def run(self, *arguments: str) -> str:
        """Run a dvc command and return its standard output. Raises DataError with its last lines if it fails."""
        return dvc.run(*arguments, root=self.root)

    @cached_property
    def _places(self) -> dict[str, Any]:
        return dvc.query("places", self.root)

    @property
    def cache(self) -> Path:
        """The folder of DVC's cache."""
        return Path(self._places["cache"])

    @cached_property
    def remotes(self) -> dict[str, Path | None]:
        """Remotes by name: the directory, or None if it is not on this file system."""
        return {name: None if "://" in url else Path(url) for name, url in self._places["remotes"].items()}

    def fresh(self) -> list[str]:
        """Return the stages and `.dvc` files that are up to date.

        dvc.lock also keeps stages that are gone, for example of a method that was taken out of params.yaml.
        """
        state = dvc.query("state", self.root)
        stages = [name for name in self.locked() if name in state["stages"]]
        return [name for name in [*stages, *self._tracked()] if name not in state["stale"]]

    def locked(self) -> dict[str, Any]:
        """Return the stages of dvc.lock."""
        lock = self.root / LOCK
        return (_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {}) if lock.is_file() else {}

    def _tracked(self) -> list[str]:
        """Return the `.dvc` files of the workspace."""
        found = []
        for directory, below, files in os.walk(self.root):
            below[:] = sorted(set(below) - SKIPPED)
            found += [
                (Path(directory) / f).relative_to(self.root).as_posix() for f in sorted(files) if f.endswith(".dvc")
            ]
        return found

    def commit(self, fresh: Iterable[str], rewritten: Iterable[str]) -> None:
        """Commit the present outputs of the stages `fresh` to dvc.lock and the cache, without running a stage.

        Other stages lose their lock entry if it names a `rewritten` path or a missing file.
        """
        self._mend()
        locked, touched = self.locked(), set(rewritten)
        fresh = {name for name in fresh if self._has_outputs(locked.get(name, {}))}
        stale = [
            name
            for name, entry in locked.items()
            if name not in fresh
            and (not self._has_outputs(entry) or any(_within(out["path"], touched) for out in entry.get("outs", [])))
        ]
        if stale:
            entries = {name: entry for name, entry in locked.items() if name not in stale}
            write_text(self.root / LOCK, yaml.safe_dump({"schema": "2.0", "stages": entries}, sort_keys=False))
        # Inputs are committed first, because their `.dvc` files lie in folders that stages depend on.
        for names in (self._tracked(), list(locked)):
            if targets := [name for name in names if name in fresh]:
                dvc.commit(targets, self.root)
        (self.root / KEPT_LOCK).unlink(missing_ok=True)

    def _has_outputs(self, entry: Mapping[str, Any]) -> bool:
        """Return whether all outputs and dependencies of a stage exist.

        If the sweep removed one, such as a report with an id or a model trained on the rows, the stage must run again.
        """
        return all((self.root / e["path"]).exists() for e in [*entry.get("outs", []), *entry.get("deps", [])])

    def _mend(self) -> None:
        """Keep a copy of dvc.lock, or restore it from the copy of an interrupted sweep.

        A killed `dvc commit` may leave a partial dvc.lock that is still valid YAML. The copy holds hashes, no ids.
        """
        lock, copied = self.root / LOCK, self.root / KEPT_LOCK
        if copied.is_file():
            shutil.copyfile(copied, lock)
        elif lock.is_file():
            copied.parent.mkdir(parents=True, exist_ok=True)
            write_text(copied, lock.read_text(encoding="utf-8"))

    def referenced(self) -> set[str]:
        """Return the hashes named in dvc.lock and the `.dvc` files, and those of the files in tracked directories."""
        entries = [out for entry in self.locked().values() for out in entry.get("outs", [])]
        for name in self._tracked():
            entries += (_load((self.root / name).read_text(encoding="utf-8")) or {}).get("outs", [])
        found = {str(out["md5"]) for out in entries if "md5" in out}
        for listing in [md5 for md5 in found if md5.endswith(".dir")]:
            file = self.cache / OBJECTS / listing[:2] / listing[2:]
            if file.is_file():
                found |= {entry["md5"] for entry in json.loads(file.read_text(encoding="utf-8"))}
        return found

    def collect(self, report: SweepReport) -> None:
        """Run DVC's garbage collection, then remove what it leaves: run-cache entries and indexes of paths.

        A cache outside the workspace is only reported: other projects may share it, and their data would be removed.
        """
        if not self._own_cache:
            what = "objects of earlier states in a cache outside the workspace, which others may share, and in remotes"
            who = "the owner of all projects that use it: run `dvc gc -w -c --projects ...`"
            report.not_purgeable.append(NotPurgeable("DVC cache", what, who))
            return
        stores = self._stores()
        before = {where: objects(path) for where, path in stores.items()}
        self.run("gc", "--workspace", "--force")
        self._drop_runs("DVC cache", self.cache, report)
        for name, path in self.remotes.items():
            if path is None or before[f"DVC remote {name}"]:
                self.run("push", "--quiet", "--run-cache", "--remote", name)  # the remote stays a complete backup
            removed = self._collected(name)
            if path is not None:
                self._drop_runs(f"DVC remote {name}", path, report)
                continue
            report.did([Residue(f"DVC remote {name}", "objects", removed)] if removed else [])
            what = "run-cache entries (hashes and params), and versions of deleted objects that the storage keeps"
            report.not_purgeable.append(NotPurgeable(f"DVC remote {name}", what, "the administrator of that storage"))
        for where, path in stores.items():
            if count := len(before[where] - objects(path)):
                report.did([Residue(where, "objects", count)])
        self._forget_paths()

    def _collected(self, remote: str, *how: str) -> int:
        """Run `dvc gc` on a remote and return how many objects it removes (with `--dry`, would remove)."""
        output = self.run("gc", "--workspace", "--cloud", "--remote", remote, "--force", *how)
        return sum(int(line.split()[1]) for line in output.splitlines() if line.endswith("objects from remote."))

    @property
    def _own_cache(self) -> bool:
        return self.cache.resolve().is_relative_to(self.root.resolve())

    def _stores(self) -> dict[str, Path]:
        """Return the cache and the remotes on this file system, by their names in a report."""
        near = {f"DVC remote {name}": path for name, path in self.remotes.items() if path is not None}
        return {"DVC cache": self.cache, **near}

    def _drop_runs(self, where: str, store: Path, report: SweepReport) -> None:
        if dead := list(self._dead_runs(store)):
            report.did([Residue(where, "run-cache entries", len(dead))])
            for file in dead:
                file.unlink()
                # DVC takes an empty folder of a state for an entry, and fails when that state returns.
                for folder in (file.parent, file.parent.parent):
                    if not any(folder.iterdir()):
                        folder.rmdir()

    def check(self) -> Iterator[Residue]:
        """Yield objects and run-cache entries that dvc.lock does not name; after `collect` there are none."""
        if not self._own_cache:
            return
        for where, path in self._stores().items():
            if count := len(objects(path) - self.referenced()):
                yield Residue(where, "objects that dvc.lock does not name", count)
            if count := len(list(self._dead_runs(path))):
                yield Residue(where, "run-cache entries of earlier states", count)
        for name in (name for name, path in self.remotes.items() if path is None):
            if count := self._collected(name, "--dry"):
                yield Residue(f"DVC remote {name}", "objects that dvc.lock does not name", count)

    def _dead_runs(self, store: Path) -> Iterator[Path]:
        """Yield the run-cache entries that do not describe the present state of a stage."""
        present = [_identity(entry) for entry in self.locked().values()]
        for file in sorted((store / RUNS).glob("*/*/*")):
            try:
                if _identity(_load(file.read_text(encoding="utf-8"))) not in present:
                    yield file
            except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
                yield file

    def _forget_paths(self) -> None:
        """Remove DVC's index outside the workspace, which names every file DVC has seen. DVC rebuilds it on demand."""
        shutil.rmtree(self._places["index"], ignore_errors=True)


def objects(store: Path) -> set[str]:
    """Return the hashes of the objects in a cache, or in a remote on this file system."""
    return {f.parent.name + f.name for f in (store / OBJECTS).glob("??/*")}


def _identity(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the command, dependencies and outputs of a run, which identify its state."""

    def hashes(kind: str) -> list[tuple[str, str]]:
        return sorted((str(e["path"]), str(e.get("md5"))) for e in entry.get(kind) or [])

    return str(entry["cmd"]), hashes("deps"), hashes("outs")


def _within(path: str, touched: set[str]) -> bool:
    return any(t == path or t.startswith(path + "/") or path.startswith(t + "/") for t in touched)
