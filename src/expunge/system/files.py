"""Atomic writes of files, and of directories whose manifest is written last.

A directory output holds `manifest.json` with its producer, its own fields and, per file, rows and sha256.
It is filled under a temporary name and renamed, so a reader sees the old directory, the new one, or none. If the disk
is full or cannot be written, the temporary file is removed and StorageError names the path.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from expunge.system.errors import ManifestError
from expunge.system.storage import writing

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
# A file or directory NAME is written as .NAME.tmp, and a directory that it replaces is .NAME.old until it is removed.
UNFINISHED, REPLACED = ".tmp", ".old"


def sha256(path: Path | str) -> str:
    """Return the hex sha256 of a file, which is read in pieces."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """`sha256:...` of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_name(f".{path.name}{UNFINISHED}")
        with removed_on_error(tmp):
            tmp.write_bytes(content)
            os.replace(tmp, path)


def write_shared(path: Path, content: bytes) -> None:
    """Write a file as `write_bytes` does, if several processes may write the same content at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    with writing(path), removed_on_error(own):
        own.write_bytes(content)
        os.replace(own, path)


def write_durable(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file as `write_bytes` does, and return only when it is on the disk.

    Only its owner may read it unless `mode` says otherwise.
    """
    tmp = path.with_name(f".{path.name}{UNFINISHED}")
    # A killed process may have left a temporary file. Its content may have to go, and it would make O_EXCL fail.
    tmp.unlink(missing_ok=True)
    _durable(tmp, content, mode)
    os.replace(tmp, path)
    sync(path.parent)


def create_durable(path: Path, content: bytes) -> bool:
    """Write a file as `write_durable` does unless it exists, also if another process creates it at the same time.

    Returns False, with nothing changed, if the file exists.
    """
    own = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    _durable(own, content, 0o600)
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    finally:
        own.unlink()
    sync(path.parent)
    return True


def _durable(path: Path, content: bytes, mode: int) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with removed_on_error(path), os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Remove the unfinished file at `path` if the body fails: it takes space, and may hold what must not stay."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def others_can_read(path: Path) -> bool:
    """Return whether users other than the owner may read or write a file."""
    return bool(path.stat().st_mode & 0o077)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file as UTF-8 under a temporary name, then rename it."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON with sorted keys. Raises ValueError for NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Return the content of a JSON file. Raises ManifestError if it is missing, cannot be read or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; run the stage that writes it") from None
    except (ValueError, RecursionError) as e:  # not UTF-8, not JSON, or a number or nesting beyond Python's limits
        raise ManifestError(f"{path}: not valid JSON ({e}); delete it and run its stage again") from None
    except OSError as e:
        raise ManifestError(f"{path}: cannot be read ({e.strerror}); delete it and run its stage again") from None


@contextmanager
def staged_dir(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary sibling of `path`; on success it replaces `path`, on error it is removed.

    The body must leave a manifest in it (`write_manifest`).
    """
    with _staged(Path(path)) as tmp:
        yield tmp
        if not (tmp / MANIFEST).is_file():
            raise ManifestError(f"{path}: its producer wrote no {MANIFEST}")


def write_texts(directory: Path | str, texts: Mapping[str, str]) -> None:
    """Write a directory that holds these files, name -> text, and nothing else; atomic as `staged_dir` is.

    It has no manifest: it is for directories that DVC shows, and DVC takes every file in them for a plot or a metric.
    """
    with _staged(Path(directory)) as tmp:
        for name, text in texts.items():
            write_text(tmp / name, text)


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    tmp = path.with_name(f".{path.name}{UNFINISHED}")
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        with writing(path):
            tmp.mkdir(parents=True)
            yield tmp
            replace_dir(tmp, path)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def replace_dir(new: Path, path: Path) -> None:
    """Move the complete directory `new` to `path` and remove the directory that was there."""
    if path.exists():
        old = path.with_name(f".{path.name}{REPLACED}")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        os.replace(new, path)
        shutil.rmtree(old)
    else:
        os.replace(new, path)


def write_manifest(
    directory: Path,
    producer: str,
    rows: Mapping[str, int] | None = None,
    digests: Mapping[str, str] | None = None,
    groups: Mapping[str, Sequence[Sequence[int]]] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Describe every file of `directory`, write `manifest.json` last, and return the manifest.

    `rows` gives the row counts of files that have one, `digests` the sha256 of files whose writer has just computed it,
    `groups` the positions of z in shards of features. `fields` are stored unchanged at the top level.
    """
    rows, digests, groups = rows or {}, digests or {}, groups or {}
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST):
        name = file.relative_to(directory).as_posix()
        files[name] = {"sha256": digests.get(name) or sha256(file), "bytes": file.stat().st_size}
        if name in rows:
            files[name]["rows"] = rows[name]
        if name in groups:
            files[name]["groups"] = groups[name]
    manifest = {"schema": MANIFEST_SCHEMA, "producer": producer, "files": files, **fields}
    write_json(directory / MANIFEST, manifest)
    return manifest


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk (fsync) before the caller continues."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(directory: Path | str, verify: bool = True) -> dict[str, Any]:
    """Return the manifest of `directory` after checking that it names exactly the files there, with their sizes.

    `verify` also compares every sha256. Raises ManifestError, which names the file that differs.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        raise ManifestError(
            f"{directory}: no {MANIFEST}, so it is incomplete or Expunge did not write it; run the stage that writes it"
        )
    manifest: dict[str, Any] = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict):
        raise ManifestError(f"{directory / MANIFEST}: not a manifest; run the stage that writes {directory} again")
    if manifest.get("schema") != MANIFEST_SCHEMA:
        raise ManifestError(
            f"{directory / MANIFEST}: has schema {manifest.get('schema')!r}, but this version reads {MANIFEST_SCHEMA}; "
            f"run the stage that writes {directory} again"
        )
    _check_entries(directory, manifest.get("files"))
    present = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(present ^ set(manifest["files"])):
        state = "is missing" if name in manifest["files"] else "is not in the manifest"
        raise ManifestError(f"{directory / name}: {state}; run the stage that writes {directory} again")
    for name, entry in manifest["files"].items():
        file = directory / name
        if file.stat().st_size != entry["bytes"] or (verify and sha256(file) != entry["sha256"]):
            raise ManifestError(
                f"{file}: differs from its manifest (truncated or changed); run the stage that writes {directory} again"
            )
    return manifest


def _check_entries(directory: Path, files: Any) -> None:
    """Raise ManifestError unless `files` has the form that `write_manifest` gives it."""
    bad = None if isinstance(files, dict) else "files"
    for name, entry in files.items() if isinstance(files, dict) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str) or not _count(entry.get("bytes")):
            bad = name
        elif "rows" in entry and not _count(entry["rows"]):
            bad = f"{name}, rows"
    if bad is not None:
        raise ManifestError(
            f"{directory / MANIFEST}: its entry {bad!r} is not one that a stage writes; "
            f"run the stage that writes {directory} again"
        )


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
