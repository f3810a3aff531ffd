"""Every test asserts something, either itself or through a function of the tests that it calls."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
RAISING = {"raises", "warns", "fail"}  # These functions of pytest assert too.


def called(node: ast.AST) -> set[str]:
    """Return the last part of the names that `node` calls, and "assert" if it has an assert statement."""
    names = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            names.add("assert")
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name):
            names.add(inner.func.id)
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute):
            names.add(inner.func.attr)
    return names


def without_assertion(folder: Path) -> list[str]:
    """Return the tests below `folder` that do not assert, not even through functions there that they call."""
    functions = [
        (path, node.name, called(node))
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    asserting = {"assert", *RAISING, *(n for *_, names in functions for n in names if n.startswith("assert_"))}
    while found := {name for _, name, names in functions if name not in asserting and names & asserting}:
        asserting |= found
    return [
        f"{path.relative_to(folder)}: {name}"
        for path, name, names in functions
        if name.startswith("test_") and not names & asserting
    ]


def test_every_test_asserts_something():
    assert without_assertion(TESTS) == [], "let these tests assert something"


def test_a_test_without_an_assertion_is_named(tmp_path):
    (tmp_path / "test_x.py").write_text(
        "def check(x):\n    inner(x)\n"
        "def inner(x):\n    assert x\n"
        "def test_helped():\n    check(1)\n"
        "def test_raising():\n    with pytest.raises(ValueError):\n        f()\n"
        "def test_compared():\n    np.testing.assert_array_equal(1, 1)\n"
        "def test_bare():\n    print(1)\n"
    )
    assert without_assertion(tmp_path) == ["test_x.py: test_bare"]
