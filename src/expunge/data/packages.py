"""Download data from Debian and npm packages with the registries' clients, without root and without running code."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from expunge.system.errors import DataError
from expunge.system.files import sha256

log = logging.getLogger(__name__)

TIMEOUT = 600  # seconds, for one archive


def unpack_debian(packages: Sequence[str], work: Path) -> Path:
    """Download Debian packages into `work`, unpack them into one directory tree there and return its root.

    Needs apt-get and dpkg, but not root. Raises DataError if they are missing or fail, with their error output.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise DataError("apt-get and dpkg are not installed")
    log.info("fetching the Debian packages %s", ", ".join(packages))
    _run(["apt-get", "download", *packages], work)
    for deb in sorted(work.glob("*.deb")):
        _run(["dpkg", "-x", deb.name, "unpacked"], work)
        deb.unlink()
    return work / "unpacked"


def fetch_npm(name: str, version: str, digest: str, cache: Path) -> Path:
    """Return the archive `cache/NAME-VERSION.tgz` of an npm package; download it unless it is there with `digest`.

    The download goes to a temporary directory and is moved into place after its sha256 was checked, so an interrupted
    download leaves no archive. Raises DataError if npm is missing or fails, or if the sha256 is not `digest`.
    """
    file = cache / f"{name}-{version}.tgz"
    if file.is_file() and sha256(file) == digest:
        return file
    work = cache / f".{file.name}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        if not shutil.which("npm"):
            raise DataError(
                f"{name} {version} is not in {cache}, and npm is not installed; install npm, or download the package "
                f"to {file}"
            )
        log.info("fetching the npm package %s %s", name, version)
        _run(["npm", "pack", f"{name}@{version}", "--silent", "--ignore-scripts"], work)
        fetched = work / file.name
        if not fetched.is_file():
            raise DataError(f"npm pack {name}@{version} did not write {file.name}; put that file into {cache}")
        if (found := sha256(fetched)) != digest:
            raise DataError(f"npm package {name} {version} has sha256 {found}, but the published one has {digest}")
        fetched.replace(file)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return file


def _run(command: list[str], where: Path) -> None:
    try:
        subprocess.run(command, cwd=where, check=True, capture_output=True, timeout=TIMEOUT)
    except subprocess.CalledProcessError as e:
        output = e.stderr.decode(errors="replace").strip()
        raise DataError(f"{' '.join(command)}: {output or f'exit status {e.returncode}'}") from e
    except subprocess.TimeoutExpired as e:
        raise DataError(f"{' '.join(command)}: did not end within {TIMEOUT} s") from e
