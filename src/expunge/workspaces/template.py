"""Files of the repository that a workspace is made from: at its root, or packed into the wheel from there."""

from __future__ import annotations

from pathlib import Path

from expunge.system.errors import ExpungeError
from expunge.system.installed import PACKAGE

# Built into the wheel by `force-include` in pyproject.toml; a source tree has them at its root alone.
PACKED = PACKAGE / "template"
SOURCE = PACKAGE.parents[1]


def template(name: str) -> Path:
    """The file or folder `name` of the repository that this version was built from."""
    for home in (PACKED, SOURCE):
        if (home / name).exists():
            return home / name
    raise ExpungeError(f"{name} is missing in the installed package; `pip install --force-reinstall expunge`")


def text_of(name: str) -> str:
    return template(name).read_text(encoding="utf-8")


def nearest(root: Path, name: str) -> Path:
    """The file `name` of `root` where it has one, else the packed one."""
    return root / name if (root / name).is_file() else template(name)


def files_below(name: str) -> list[str]:
    """Files of the folder `name`, as "flows/unlearn.py"."""
    folder = template(name)
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(f"{name}/{p.as_posix()}" for p in found if "__pycache__" not in p.parts and p.suffix != ".pyc")
