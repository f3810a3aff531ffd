"""Find the files of src/expunge that a module needs, from the import statements in its source. Nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
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
    top, inside = _imports(root, name)
    return _ours(top.union(*inside.values()))


@cache
def loaded(root: Path, name: str) -> frozenset[str]:
    """Return every module that `import name` loads, from the imports outside functions.

    Modules of other packages stand for themselves: what they import is not followed.
    """
    seen, todo = set(_with_parents(name)), _with_parents(name)
    while todo:
        top = _imports(root, todo.pop())[0]
        new = _ours(top) - seen
        seen |= top | new
        todo += new
    return frozenset(seen)


def inside_functions(root: Path, name: str) -> dict[int, frozenset[str]]:
    """Return the modules that the functions of `name` import, by the line of the statement."""
    return _imports(root, name)[1]


@cache
def _imports(root: Path, name: str) -> tuple[frozenset[str], dict[int, frozenset[str]]]:
    """Return what the file of a module imports outside functions and, by line, inside them."""
    path = file_of(root, name)
    assert path is not None, f"no module {name}"
    parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
    top: set[str] = set()
    inside: dict[int, frozenset[str]] = {}
    todo: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), False)]
    while todo:
        node, in_function = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = _names(root, node, parent)
            for one in names:
                assert not _is_ours(one) or file_of(root, one), f"{path}: imports {one}, which does not exist"
            if in_function:
                inside[node.lineno] = names
            else:
                top |= names
        in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        todo += [(child, in_function) for child in (node.orelse if typing_only else ast.iter_child_nodes(node))]
    return frozenset(top), inside


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


def _ours(names: Iterable[str]) -> frozenset[str]:
    return frozenset(p for n in names if _is_ours(n) for p in _with_parents(n))


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
