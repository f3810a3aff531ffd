"""Quotations with their authors, from the files of Debian's packages `fortunes-min` and `fortunes`.

The subject is the author that the attribution names, the class is the file. The 28 files with at least 50 quotations of
named authors are used. They come from the installed packages, else from the packages downloaded without root.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from expunge.data.packages import unpack_debian
from expunge.data.readers.authors import author, one_name_each, quotation
from expunge.data.schema import TEXT
from expunge.data.source import Batch, Source, split_names, test_rows_of_subjects
from expunge.system.errors import DataError

log = logging.getLogger(__name__)

PACKAGES = ("fortunes-min", "fortunes")
INSTALLED = Path("/usr/share/games/fortunes")
FETCHED = "fortunes"
# sha256 of each file; the names of the files are the classes.
SHA256 = {
    "art": "600b8197bc994fd4fcbb623aa5e700629540af44f044d4907886bd1031f160ce",
    "computers": "a86be224d9f733b88eeaf8a46ea0427e05cc69c69edcf5f6db47ddf561ca37fd",
    "cookie": "5dc97eee96dcc5287c373be629482730d45f77b59da1287933c9c5f482a055eb",
    "definitions": "57be4744c353d931fa2ca95f50215d4b67539f5a527ae628a6441fb4a1258caa",
    "drugs": "a5a59ee8b0e1fd3085a38dfa29149fe9a2c8d7f256b74aea71aa2cc08a9990c1",
    "education": "ba13321d6d6beb7a6e65296a47450bfc87b24a319fff2e94762011b59a31aa35",
    "ethnic": "61695cb9b60dbee91755027da1fa4f850f4c6386ff38197a48e4ff1696385e19",
    "food": "78077a65b9288df71e7b2a8e8258cd3b1005d1282f7c7e57ad53927f374df45d",
    "humorists": "ffdf67e1f4049133bf904b769c364de45e5ae0abfb3ea7c9afb54b87b89acfc4",
    "kids": "82e51834990afd36f2ea2f25864b368e2f44f9c761aba034035b26061de6d5be",
    "knghtbrd": "c25e8373b38a6f159a7b1d336f363d5c962224a6ddcc86279dec47aad3c869b3",
    "law": "f04141f94e788b7899e0adb0490d182ce711f8fdbb8252343a5257e717e9279d",
    "linux": "85b0e5eadf7adeea77da4e1fbd456c962ce3bd1dabbd053098ecf37de9169cf3",
    "literature": "22eab7d53ce994d0466901bb0d799ae3289603e17dc0bdb7f16666931155c5a5",
    "love": "4d4fb7c540e5500e44643524dae41dd7d2b21b80be184253fd9f8541f6029fc5",
    "men-women": "8fc4eb68a8d16826372d9bfdc910c8ab917b8aa59e2aac533f3ec2b49a1314ba",
    "miscellaneous": "e3d81fd016f9f84a70ecb9aa197c4911aca01a8034e49345b81093f6751bba9c",
    "people": "2afb4b9f577be114d2dca279bc5590ee8415e1405295d7d7626c888d82f338e8",
    "perl": "b19145eadf97c31add2e0a199d93ffa0eb92e00275c2724b7ad6b4e412113536",
    "platitudes": "88448274efec3d2c0908cc11525c9b065b95a32c232a2c58c67a87dd88545ee5",
    "politics": "b56ca45a046edd5c459090a5c6b335332661b436e814b41ac87bb58065ad6131",
    "science": "7ab350b142ee6c70c1d8517c5a1b3790c09b190a62859427cad98e6e35a19fcc",
    "songs-poems": "eb714d297b468da91b6ca32baefb000279a3e3740b09f8a87db24fe58e010b1a",
    "sports": "b71dd524d7bca888ec1014fb849a8a15cf58017c59127e572d393ef7632c35c8",
    "startrek": "7b2e4c235b99452b2de4c47d67aae0faac2ea508a2d644609e4ef5db7653c39c",
    "tao": "4adddc35a122bb233a16c076abc0be0326ea3a68594146a6baee3b5f6489e12b",
    "wisdom": "9b0bd6b9331a68c9172219784a411c417c055ed69734edc7b4406795b87d4e94",
    "work": "ad8a0e104160e2c4782fa86e143cd60ffab2872985d4293ffd0af6df19dbfa28",
}
SEPARATOR = re.compile(r"^%[ \t]*\n?", re.MULTILINE)


def read_fortunes(
    path: Path | str | None = None, raw_dir: Path | str = "data/raw", test_fraction: float = 0.2, seed: int = 0
) -> Source:
    """Read 6,297 quotations of 2,784 authors in 28 classes; ids consist of the file and the fortune's number in it.

    Fortunes without exactly one attribution line, fortunes whose attribution does not name a single author, and
    repeated texts are omitted. `path` names a directory with the files; without it `locate` finds or downloads them. At
    least one quotation of every author is a training row; see `test_rows_of_subjects`. Raises DataError for a missing
    file and for one whose content is not the published one.
    """
    directory = Path(path) if path is not None else locate(Path(raw_dir))
    ids, labels, texts, names = _quotations(directory)
    named = one_name_each(names)
    subjects = [named[name] for name in names]
    splits = split_names(test_rows_of_subjects(labels, subjects, test_fraction, seed))

    def batches() -> Iterator[Batch]:
        yield Batch(ids, labels, splits, texts, subjects)

    return Source("fortunes", tuple(SHA256), TEXT, batches(), has_subject=True)


def _quotations(directory: Path) -> tuple[list[str], np.ndarray, list[str], list[str]]:
    """Return ids, labels int32 `(n,)`, texts and the authors' names as written, in the order of files and fortunes."""
    ids, labels, texts, names = [], [], [], []
    seen: set[str] = set()
    for label, file in enumerate(SHA256):
        for number, fortune in enumerate(SEPARATOR.split(read_file(directory / file)), 1):
            found = quotation(fortune)
            name = author(found[1]) if found is not None else None
            if found is None or name is None or found[0] in seen:
                continue
            seen.add(found[0])
            ids.append(f"{file}-{number:04d}")
            labels.append(label)
            texts.append(found[0])
            names.append(name)
    return ids, np.array(labels, dtype=np.int32), texts, names


def read_file(file: Path) -> str:
    """Return the text of one file. Raises DataError unless it has the published sha256."""
    try:
        data = file.read_bytes()
    except OSError as e:
        raise DataError(f"{file}: cannot be read ({e.strerror}); the files {', '.join(SHA256)} are needed") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256[file.name]:
        raise DataError(f"{file}: content has sha256 {digest}, not {SHA256[file.name]}; delete it and fetch it again")
    return data.decode()


def locate(raw_dir: Path) -> Path:
    """Return a directory with the files; download them into `raw_dir` if they are not on this machine.

    Raises DataError if they cannot be downloaded.
    """
    fetched = raw_dir / FETCHED
    for directory in (INSTALLED, fetched):
        if _complete(directory):
            return directory
    work = raw_dir / f".{FETCHED}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        found = unpack_debian(PACKAGES, work) / INSTALLED.relative_to("/")
        for name in SHA256:
            read_file(found / name)
        shutil.rmtree(fetched, ignore_errors=True)
        found.rename(fetched)
    except (DataError, OSError) as e:
        raise DataError(
            f"the fortunes are not on this machine and could not be fetched ({e}). Install the Debian packages "
            f"{' and '.join(PACKAGES)} (after apt-get update), or put their files into {fetched}"
        ) from e
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return fetched


def _complete(directory: Path) -> bool:
    """Whether `directory` has all files as published, which a package of another version does not."""
    try:
        for name in SHA256:
            read_file(directory / name)
    except DataError as e:
        if directory.is_dir():
            log.info("fortunes: %s", e)
        return False
    return True
