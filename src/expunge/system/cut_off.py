"""Recognise a dvc.lock that was cut off, and set it aside.

DVC writes dvc.lock in place, and takes half a second for it. If its process is killed meanwhile, or the disk is full,
the file ends in the middle, and every later DVC command fails until somebody removes it. [measured, DVC 3.67]
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # written in C, ten times as fast
CONFLICT = b"<<<<<<< "  # of a merge in git, which is for people to resolve
SECTIONS = ("cmd", "deps", "params", "outs")


def set_aside(root: Path = Path()) -> str | None:
    """Rename `root/dvc.lock` to dvc.lock.cut-off if it ends in the middle, and return a sentence about it, else None.

    Without the file DVC takes results back from its cache, or makes them again. While another DVC process holds its
    lock, which it does as it writes the file, nothing is done.
    """
    file, busy = root / "dvc.lock", root / ".dvc/tmp/lock"
    if not file.is_file() or whole(content := file.read_bytes()) or CONFLICT in content:
        return None
    busy.parent.mkdir(parents=True, exist_ok=True)
    with busy.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if whole(file.read_bytes()):
            return None
        os.replace(file, file.with_name("dvc.lock.cut-off"))
    return (
        f"{file} was cut off while DVC wrote it, so it was renamed to dvc.lock.cut-off. DVC takes results from its "
        "cache where it has them, and makes the others again."
    )


def whole(content: bytes) -> bool:
    """Return whether DVC can read `content` as a dvc.lock.

    A file that lacks only its last lines may be whole: DVC runs the stages again whose entries differ.
    """
    if not content.endswith(b"\n"):  # the last value may be cut off, as in "size: 23" for 2345
        return False
    try:
        found = yaml.load(content, LOADER)
    except (yaml.YAMLError, ValueError):
        return False
    if not isinstance(found, dict) or found.get("schema") != "2.0":
        return False
    stages = found.get("stages", {})
    return isinstance(stages, dict) and all(_whole_stage(entry) for entry in stages.values())


def _whole_stage(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("cmd"), str | list) or not set(entry) <= set(SECTIONS):
        return False
    params = entry.get("params", {})
    if not isinstance(params, dict) or not all(isinstance(values, dict) for values in params.values()):
        return False
    listed = [entry.get(name, []) for name in ("deps", "outs")]
    return all(isinstance(files, list) and all(_whole_file(file) for file in files) for files in listed)


def _whole_file(file: Any) -> bool:
    return isinstance(file, dict) and isinstance(file.get("path"), str) and None not in file.values()
