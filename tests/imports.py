"""Find the modules that an import loads, from the import statements in the source. Nothing is imported."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from expunge.system.imports import ours, statements, with_parents


def name_of(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def loaded(root: Path, name: str) -> frozenset[str]:
    """Return every module that `import name` loads, from the imports outside functions.

    Modules of other packages stand for themselves: what they import is not followed.
    """
    seen, todo = set(with_parents(name)), with_parents(name)
    while todo:
        top = statements(root, todo.pop())[0]
        new = ours(top) - seen
        seen |= top | new
        todo += new
    return frozenset(seen)


def inside_functions(root: Path, name: str) -> dict[int, frozenset[str]]:
    """Return the modules that the functions of `name` import, by the line of the statement."""
    return statements(root, name)[1]
