"""Find the code that a module needs, from the import statements in the source. Nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = "expunge"


def closure(root: Path, name: str) -> set[Path]:
    """Return the files that may run when `name` runs: its own, and those of its direct and indirect imports.

    `root` is the folder that contains `expunge/`. Imports inside functions count.
    """
    seen, todo = set(with_parents(name)), with_parents(name)
    while todo:
        new = imported(root, todo.pop()) - seen
        seen |= new
        todo += new
    return {path for one in seen if (path := file_of(root, one))}


@cache
def imported(root: Path, name: str) -> frozenset[str]:
    """Return the modules of the package that `name` imports anywhere in its file, with their parent packages.

    `from a.b import c` names `a.b.c` where that is a module, else `a.b`. Imports for type checkers only do not count.
    """
    top, inside = statements(root, name)
    return ours(top.union(*inside.values()))


@cache
def statements(root: Path, name: str) -> tuple[frozenset[str], dict[int, frozenset[str]]]:
    """Return what the file of a module imports outside functions and, by line, inside them.

    Raises ValueError if the module, or one of this package that it imports, does not exist.
    """
    if (path := file_of(root, name)) is None:
        raise ValueError(f"{root}: no module {name}")
    parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
    top: set[str] = set()
    inside: dict[int, frozenset[str]] = {}
    todo: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), False)]
    while todo:
        node, in_function = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = _names(root, node, parent)
            if absent := [one for one in names if _is_ours(one) and not file_of(root, one)]:
                raise ValueError(f"{path}: imports {absent[0]}, which does not exist")
            if in_function:
                inside[node.lineno] = names
            else:
                top |= names
        in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        todo += [(child, in_function) for child in _children(node)]
    return frozenset(top), inside


def file_of(root: Path, name: str) -> Path | None:
    """Return the file of the module `name` below `root`, the folder that contains `expunge/`; None if there is none."""
    path = root.joinpath(*name.split("."))
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


def ours(names: Iterable[str]) -> frozenset[str]:
    """Return the modules among `names` that belong to this package, with their parent packages."""
    return frozenset(p for n in names if _is_ours(n) for p in with_parents(n))


def with_parents(name: str) -> list[str]:
    """Return the packages that contain the module `name`, from the top, and `name` itself."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _children(node: ast.AST) -> Iterable[ast.AST]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return node.orelse
    return ast.iter_child_nodes(node)


def _names(root: Path, node: ast.Import | ast.ImportFrom, parent: str) -> frozenset[str]:
    if isinstance(node, ast.Import):
        return frozenset(alias.name for alias in node.names)
    base = str(node.module)
    if node.level:
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), parent)
    modules = (f"{base}.{alias.name}" for alias in node.names)
    return frozenset(m if file_of(root, m) else base for m in modules)


def _is_ours(name: str) -> bool:
    return name.split(".")[0] == PACKAGE
