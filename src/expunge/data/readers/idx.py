"""MNIST, Fashion-MNIST and KMNIST from idx files, gzipped or not, in torchvision's layout `root/NAME/raw`."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expunge.data.readers.archives import Published, fetch
from expunge.data.readers.fashion_mnist import CLASS_NAMES, FILES, source_of
from expunge.data.source import Source
from expunge.system.errors import DataError

MAGIC_UBYTE = 8  # the idx code of unsigned bytes
DIGITS = tuple(str(i) for i in range(10))


@dataclass(frozen=True)
class IdxSet:
    """A data set of four idx files; `md5` is in the order train images, train labels, test images, test labels."""

    folder: str
    class_names: tuple[str, ...]
    mirrors: tuple[str, ...]
    md5: tuple[str, str, str, str]

    def published(self, stem: str) -> Published:
        """Return the published file with the stem `stem`, with its MD5 and its mirrors."""
        stems = [f"{s}-{kind}" for s in FILES.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
        name = f"{stem}.gz"
        return Published(name, self.md5[stems.index(stem)], tuple(m + name for m in self.mirrors))


MNIST = IdxSet(
    "MNIST",
    DIGITS,
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
FASHION_MNIST = IdxSet(
    "FashionMNIST",
    CLASS_NAMES,
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
    ),
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
)
KMNIST = IdxSet(
    "KMNIST",
    ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    (
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ),
)


def read_idx_set(root: Path, which: IdxSet, download: bool = False) -> Source:
    """Read all rows, train first; ids are `train-00000` and `test-00000`.

    The files are in `root/NAME/raw` or in `root`. The MD5 of downloaded files is checked. Raises DataError, which names
    the file, for a missing file and for one that is not a complete idx array of bytes.
    """
    raw = root / which.folder / "raw"
    directory = raw if raw.is_dir() or download else root
    arrays = {}
    for split, stem in FILES.items():
        images = _array(directory, which, f"{stem}-images-idx3-ubyte", 3, download)
        labels = _array(directory, which, f"{stem}-labels-idx1-ubyte", 1, download)
        if len(images) != len(labels):
            raise DataError(
                f"{directory}: has {len(images)} {split} images, but {len(labels)} labels; fetch both files again"
            )
        arrays[split] = images, labels

    return source_of(which.folder.lower(), which.class_names, arrays)


def _array(directory: Path, which: IdxSet, stem: str, dims: int, download: bool) -> np.ndarray:
    plain, packed = directory / stem, directory / f"{stem}.gz"
    if not plain.is_file() and not packed.is_file():
        if not download:
            raise DataError(
                f"{directory}: holds neither {stem} nor {stem}.gz; set data.root to the directory above "
                f"{which.folder}/raw, or set data.download: true"
            )
        packed = fetch(directory, which.published(stem))
    file = plain if plain.is_file() else packed
    try:
        data = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{file}: is not a complete file ({e}); delete it and fetch it again") from e
    return parse_idx(data, dims, file)


def parse_idx(data: bytes, dims: int, file: Path) -> np.ndarray:
    """Parse the bytes of an idx file as a uint8 array of `dims` dimensions. Raises DataError for anything else."""
    head = 4 + 4 * dims
    if len(data) < head or data[:4] != bytes([0, 0, MAGIC_UBYTE, dims]):
        raise DataError(f"{file}: is not an IDX file of bytes with {dims} dimensions; delete it and fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dims, 4))
    size = 1
    for n in shape:
        size *= n
    if len(data) - head != size:
        raise DataError(
            f"{file}: has {len(data) - head} bytes, which does not fit its shape {shape}; delete it and fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)
