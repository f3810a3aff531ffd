"""Public weights of torchvision, downloaded once and verified by the digest in their file name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from expunge.system.errors import CheckpointError
from expunge.system.paths import RAW
from expunge.system.progress import log_message
from expunge.system.vision_imports import import_vision


def fetch_weights(root: Path, wanted: Mapping[str, str]) -> Path:
    """Return the file of the weights `wanted` = {model, name} below `data/raw/weights`; download it if it is missing.

    torch downloads to a temporary file and renames it after checking its sha256. Raises CheckpointError for a file with
    another digest, and if the download fails.
    """
    url: str = import_vision("torchvision.models").get_model_weights(wanted["model"])[wanted["name"]].url
    name = url.rsplit("/", 1)[-1]
    start = re.search(r"-([0-9a-f]{8,})\.", name)
    assert start is not None, name
    file = root / RAW / "weights" / name
    if file.is_file():
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if not found.startswith(start[1]):
            raise CheckpointError(
                f"{file}: sha256 is {found[:8]}..., but its name says {start[1]}. It is incomplete or another file; "
                "delete it and run again"
            )
        return file
    fetch(file, url, start[1])
    return file


def fetch(file: Path, url: str, digest: str) -> None:
    """Download `url` to `file`, which appears only if its sha256 begins with `digest`.

    Raises CheckpointError if the download fails or has another digest.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    log_message(f"reproduce: fetching {url}")
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digest, progress=False)
    except (OSError, RuntimeError) as e:
        raise CheckpointError(f"{file}: could not be fetched from {url} ({e}); put it there by hand") from None
