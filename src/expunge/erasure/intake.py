"""Files of ids, subjects and new labels: copied to `data/requests`, tracked by DVC, removed when no step needs them.

The ids of a request are stored nowhere else. The MD5 in a `.dvc` file or in dvc.lock stays in Git after the file is
removed, and the MD5 of a short list can be found by guessing. A random salt in every file prevents that.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import secrets
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import yaml

from expunge.config import PARAMS, load_config
from expunge.data.corrections import COLUMNS as LABEL_COLUMNS
from expunge.data.corrections import read_labels
from expunge.data.selectors import read_values
from expunge.erasure.requests import ErasureRequest, Kind, Store, new_id
from expunge.system import dvc
from expunge.system.errors import ConfigError, DataError, RequestError
from expunge.system.files import write_text
from expunge.system.paths import REQUESTS

COLUMNS: dict[Kind, tuple[str, ...]] = {"ids": ("sample_id",), "subjects": ("subject",), "labels": LABEL_COLUMNS}


def take_in(
    store: Store,
    *,
    ids: Path | None = None,
    subjects: Path | None = None,
    classes: Sequence[int | str] = (),
    correct: Path | None = None,
    basis: str,
    received: date,
    today: date,
    who: str,
    most: bool = False,
) -> ErasureRequest:
    """Record a new request for the rows in the file `ids`, the people in the file `subjects`, or classes.

    `correct` is a file of ids and new labels, for rows that stay. Exactly one of the four must be given. `most` says
    that the request may be for more than half of the rows. Raises RequestError or DataError, whose messages contain no
    id.
    """
    files: dict[Kind, Path | None] = {"ids": ids, "subjects": subjects, "labels": correct}
    given = {kind: file for kind, file in files.items() if file is not None}
    if len(given) + bool(classes) != 1:
        raise RequestError(
            "a request needs exactly one of these: a file of ids, of subjects, or of ids and new labels, or classes"
        )
    with contextlib.suppress(ConfigError):  # a mistake in params.yaml does not keep a request out
        if PARAMS.is_file():
            load_config()  # puts the limits of this workspace into force
    if received > today:
        raise RequestError(
            f"received {received} is in the future, since this machine's clock says {today}; give the day on which the "
            "request came in, or correct the clock"
        )
    id_ = new_id(received)
    if classes:
        return store.add(id_, "classes", [], classes=classes, received=received, basis=basis, who=who, most=most)
    ((kind, source),) = given.items()
    values = values_of(source, kind)
    file = REQUESTS / f"{id_}.csv"
    try:
        write_values(file, kind, values)
        return store.add(id_, kind, values, received=received, basis=basis, who=who, file=file.as_posix(), most=most)
    except BaseException:
        remove(file)
        raise


def values_of(file: Path, kind: Kind) -> list[str]:
    """Return the ids or subjects in a file, or the rows with new labels, as JSON of id and label.

    Raises DataError, without the ids that `read_values` quotes.
    """
    try:
        if kind == "labels":
            return [json.dumps(pair, ensure_ascii=False) for pair in read_labels(file).items()]
        return read_values(file, COLUMNS[kind][0])
    except DataError as e:
        raise DataError(str(e).partition(", first ")[0]) from None


def write_values(file: Path, kind: Kind, values: Sequence[str]) -> None:
    """Write a list of a request of `kind` with `values`, as `values_of` returns them, and track it with DVC.

    Only its owner can read the file; DVC's copy in the cache is read-only.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS[kind], "salt"])
    for i, value in enumerate(values):
        cells = json.loads(value) if kind == "labels" else [value]
        writer.writerow([*cells, "" if i else secrets.token_hex(16)])
    if file.exists():
        file.unlink()  # it may be a link into DVC's cache, which must not be overwritten
    write_text(file, out.getvalue())
    dvc.run("add", str(file), error=RequestError)
    os.chmod(file, 0o600)


def remove(*files: Path) -> None:
    """Remove lists, their `.dvc` files and their copies in DVC's cache; missing files are ignored."""
    tracked = [t for file in files if (t := file.with_name(file.name + ".dvc")).is_file()]
    cache = Path(dvc.query("places", error=RequestError)["cache"]) / "files" / "md5" if tracked else Path()
    for one in tracked:
        md5 = yaml.safe_load(one.read_text(encoding="utf-8"))["outs"][0]["md5"]
        (cache / md5[:2] / md5[2:]).unlink(missing_ok=True)
    for path in (*files, *tracked):
        path.unlink(missing_ok=True)
    for ignored in {file.parent / ".gitignore" for file in files}:
        if ignored.is_file():
            ignored_lines = {f"/{file.name}" for file in files if file.parent == ignored.parent}
            lines = [line for line in ignored.read_text(encoding="utf-8").splitlines() if line not in ignored_lines]
            write_text(ignored, "".join(f"{line}\n" for line in lines))
            if not lines:
                ignored.unlink()


def strays(store: Store) -> list[Path]:
    """Return the lists that belong to no request: their intake was killed, or they were put there by hand."""
    known = {r.file for r in store.all()}
    return [p for p in sorted(REQUESTS.glob("R-*.csv")) if p.as_posix() not in known]
