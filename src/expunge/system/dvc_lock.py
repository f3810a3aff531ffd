"""Compare dvc.lock with the contents of the files.

DVC compares times and sizes first, and misses a change that kept both. Here every file is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

IGNORED = ("*.tmp", "__pycache__", ".venv", ".expunge", ".dvc", ".git")  # by .dvcignore or by DVC itself


@dataclass(frozen=True)
class LockDifference:
    """The content of `path` is not what `stage` wrote (`wrote`) or read (not `wrote`) according to dvc.lock."""

    stage: str
    path: str
    wrote: bool


def md5_of(path: Path, seen: dict[Path, str] | None = None) -> str | None:
    """Return the MD5 that DVC 3 records for a file or folder; None if nothing is at `path`.

    For a folder it is the MD5 of the list of its files, and ends in ".dir". `seen` caches the MD5s of files that were
    read already, and is extended.
    """
    seen = {} if seen is None else seen
    if path.is_file():
        return _md5(path, seen)
    if not path.is_dir():
        return None
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    listed = [{"md5": _md5(path / name, seen), "relpath": name} for name in names if not _ignored(name)]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


def differences(stages: dict[str, Any]) -> Iterator[LockDifference]:
    """Yield the differences between the current directory and the entries `stages` of a dvc.lock.

    Outputs come first, then dependencies that are outputs of other stages. Files that no stage wrote belong to the user
    and are not compared.
    """
    outs = {out["path"]: out["md5"] for entry in stages.values() for out in entry.get("outs", [])}
    seen: dict[Path, str] = {}
    known = {path: md5_of(Path(path), seen) for path in outs}
    for stage, entry in stages.items():
        for out in entry.get("outs", []):
            if known[out["path"]] != out["md5"]:
                yield LockDifference(stage, out["path"], True)
    for stage, entry in stages.items():
        for dep in entry.get("deps", []):
            if _overlaps(dep["path"], outs):
                known.setdefault(dep["path"], md5_of(Path(dep["path"]), seen))
                if known[dep["path"]] != dep["md5"]:
                    yield LockDifference(stage, dep["path"], False)


def stages_of(lock: Path, runs: str) -> dict[str, Any]:
    """Return the entries of `lock` whose command begins with `runs` and whose stage is in the dvc.yaml beside it."""
    graph = lock.with_name("dvc.yaml")
    there = yaml.safe_load(graph.read_text(encoding="utf-8"))["stages"] if graph.is_file() else {}
    entries = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})
    return {n: e for n, e in entries.items() if n.partition("@")[0] in there and str(e["cmd"]).startswith(runs)}


def _md5(file: Path, seen: dict[Path, str]) -> str:
    if file not in seen:
        with file.open("rb") as f:
            seen[file] = hashlib.file_digest(f, "md5").hexdigest()
    return seen[file]


def _ignored(name: str) -> bool:
    return any(fnmatch(part, pattern) for part in name.split("/") for pattern in IGNORED)


def _overlaps(path: str, outs: Iterable[str]) -> bool:
    return any(path == out or out.startswith(f"{path}/") or path.startswith(f"{out}/") for out in outs)
