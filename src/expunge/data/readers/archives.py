"""Published archives: download them on request, check them against the published MD5, and unpack them atomically."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from expunge.system.errors import DataError

log = logging.getLogger(__name__)

PIECE = 1 << 20
TIMEOUT = 60  # seconds that the server may be silent


@dataclass(frozen=True)
class Published:
    """A published file: `urls` are tried in order, `md5` is the hexadecimal digest that the publisher states."""

    name: str
    md5: str
    urls: tuple[str, ...]


def checked_file(directory: Path, wanted: Published, download: bool) -> Path:
    """Return the path of the published file in `directory`; download it first if it is missing and `download` is true.

    Raises DataError for a missing file, and for one whose MD5 is not the published one, such as an incomplete download.
    """
    file = directory / wanted.name
    if file.is_file():
        _check(file, wanted)
        return file
    if not download:
        raise DataError(f"{file}: no such file; download it from {wanted.urls[0]}, or set data.download: true")
    return fetch(directory, wanted)


def fetch(directory: Path, wanted: Published) -> Path:
    """Download to `directory / wanted.name`; the file has a temporary name until its MD5 was checked.

    Raises DataError if no URL gives the published file.
    """
    file = directory / wanted.name
    problems = []
    for url in wanted.urls:
        log.info("fetching %s", url)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with _temporary(directory, wanted.name) as tmp:
                with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(tmp, "wb") as out:
                    shutil.copyfileobj(answer, out, PIECE)
                _check(tmp, wanted)
                os.replace(tmp, file)
            return file
        except (OSError, DataError) as e:
            problems.append(f"{url}: {e}")
    raise DataError(f"{file}: could not be fetched ({'; '.join(problems)}); download it by hand")


def unpacked(root: Path, folder: str, wanted: Published, download: bool) -> Path:
    """Return the directory `root / folder`; unpack it from the published archive in `root` if it is missing.

    `root` may also be that directory itself. The archive is checked first and unpacked under a temporary name, so
    `folder` is complete or absent. Raises DataError if there is neither folder nor archive and `download` is false, and
    for an archive that cannot be downloaded or unpacked.
    """
    if root.name == folder and root.is_dir():
        return root
    target = root / folder
    if target.is_dir():
        return target
    if not (root / wanted.name).is_file() and not download:
        raise DataError(
            f"{root}: holds neither {folder}/ nor {wanted.name}; set data.root to a directory that contains one "
            f"of them, download it from {wanted.urls[0]}, or set data.download: true"
        )
    archive = checked_file(root, wanted, download)
    try:
        with _temporary(root, folder) as tmp:
            _extract(archive, tmp)
            if not (tmp / folder).is_dir():
                raise DataError(f"{archive}: contains no directory {folder}/; delete it and fetch it again")
            os.replace(tmp / folder, target)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(f"{archive}: cannot be unpacked into {root} ({e})") from e
    return target


def _extract(archive: Path, out: Path) -> None:
    out.mkdir()
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(out)  # drops leading slashes and `..` from names
        return
    with tarfile.open(archive) as tar:
        _extract_tar(tar, out.resolve())


def _extract_tar(tar: tarfile.TarFile, out: Path) -> None:
    """Write files and directories below `out`; raise TarError for links and for names that lead outside.

    `extractall` has a filter for this only since Python 3.11.4.
    """
    for member in tar:
        path = out / member.name
        if not path.resolve().is_relative_to(out):
            raise tarfile.TarError(f"{member.name} leads outside of it")
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
        elif member.isfile() and (content := tar.extractfile(member)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, open(path, "xb") as file:
                shutil.copyfileobj(content, file, PIECE)
        else:
            raise tarfile.TarError(f"{member.name} is neither a file nor a directory")


@contextmanager
def _temporary(directory: Path, name: str) -> Iterator[Path]:
    """Yield a temporary path in `directory`; remove what is left there at the end."""
    tmp = directory / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        yield tmp
    finally:
        if tmp.is_dir():
            shutil.rmtree(tmp)
        tmp.unlink(missing_ok=True)


def _check(file: Path, wanted: Published) -> None:
    with open(file, "rb") as f:
        found = hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != wanted.md5:
        raise DataError(
            f"{file}: has the MD5 {found}, but the published file has {wanted.md5}; delete it and fetch it again"
        )
