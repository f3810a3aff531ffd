"""Find the files of src/expunge that a module needs, from the import statements in its source. Nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

PACKAGE = "expunge"


def file_of(root: Path, name: str) -> Path | None:
    """Return the file of the module `name` below `root`, the folder that contains `expunge/`; None if there is none."""
    path = root.joinpath(*name.split("."))
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


def name_of(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported(root: Path, name: str) -> frozenset[str]:
    """Return the modules of the package that `name` imports anywhere in its file, with their parent packages.

    `from a.b import c` names `a.b.c` where that is a module, else `a.b`. Imports for type checkers only do not count.
    """
    path = file_of(root, name)
    assert path is not None, f"no module {name}"
    parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                importlib.util.resolve_name("." * node.level + (node.module or ""), parent)
                if node.level
                else node.module
            )
            for alias in node.names:
                found.add(f"{base}.{alias.name}" if file_of(root, f"{base}.{alias.name}") else str(base))
    ours = {n for n in found if n.split(".")[0] == PACKAGE}
    for one in ours:
        assert file_of(root, one), f"{path}: imports {one}, which does not exist"
    return frozenset(p for n in ours for p in _with_parents(n))


def _statements(tree: ast.AST) -> list[ast.AST]:
    """Return all nodes except those below `if TYPE_CHECKING:`."""
    todo: list[ast.AST] = [tree]
    nodes: list[ast.AST] = []
    while todo:
        node = todo.pop()
        nodes.append(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)
    return nodes


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def closure(root: Path, name: str) -> set[Path]:
    """Return the files that may run when `name` runs: its own, and those of its direct and indirect imports."""
    seen, todo = set(_with_parents(name)), _with_parents(name)
    while todo:
        new = imported(root, todo.pop()) - seen
        seen |= new
        todo += new
    return {path for one in seen if (path := file_of(root, one))}


def unit(root: Path, path: Path) -> Path:
    """Return the dependency that a stage names for a file: its top package (a folder), or its top module."""
    return root / PACKAGE / path.relative_to(root / PACKAGE).parts[0]


def covers(dep: Path, path: Path) -> bool:
    """Return whether the dependency `dep` is `path` or a folder that contains it."""
    return dep == path or dep in path.parents
