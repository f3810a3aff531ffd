"""Files that a workspace is made from: at the root of the repository, or packed into the wheel."""

from __future__ import annotations

from pathlib import Path

from expunge.system.errors import ExpungeError
from expunge.system.installed import PACKAGE

# A wheel has these files in PACKED; a source tree has them only at its root.
PACKED = PACKAGE / "template"
SOURCE = PACKAGE.parents[1]


def template(name: str) -> Path:
    """Return the file or folder `name` of the repository that this version was built from.

    Raises ExpungeError if it is missing.
    """
    for home in (PACKED, SOURCE):
        if (home / name).exists():
            return home / name
    raise ExpungeError(f"{name} is missing in the installed package; run `pip install --force-reinstall expunge`")


def text_of(name: str) -> str:
    """Return the text of the file `name`, as `template` finds it."""
    return template(name).read_text(encoding="utf-8")


def nearest(root: Path, name: str) -> Path:
    """Return the file `name` of `root` if it exists, else that of the installed version."""
    return root / name if (root / name).is_file() else template(name)


def files_below(name: str) -> list[str]:
    """Return the files of the folder `name`, sorted, with the folder: "flows/unlearn.py"."""
    folder = template(name)
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(f"{name}/{p.as_posix()}" for p in found if "__pycache__" not in p.parts and p.suffix != ".pyc")
