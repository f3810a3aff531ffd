"""Filters over the columns of a dataset: parse the text of a filter into a pyarrow expression, without evaluating it.

    label == 5 and split == "train"
    class in ["Sandal", "Bag"] or (height < 20 and not channels == 1)
    subject is not null

A filter consists of comparisons (also chained), `and`, `or`, `not`, `in`, `not in`, `is null`, `is not null`, brackets,
quoted text and numbers. As in SQL, a comparison with a missing value is true for no row.
"""

from __future__ import annotations

import ast
import io
import operator
import tokenize
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from expunge.system.errors import DataError

# `class` is a Python keyword, so it is replaced by a name of the same length before parsing: token positions, which
# error messages show, stay correct.
_CLASS = "ClAsS"
_NULL = "null"
_INT64 = 2**63
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
MAX_DEPTH = 50
INDIVIDUAL_COLUMNS = ("sample_id", "subject")
MAX_LENGTH = 4000


def parse_filter(text: str, columns: Mapping[str, pa.DataType]) -> pc.Expression:
    """Parse `text` into a boolean expression over `columns` (name -> type).

    Raises DataError for an unknown column, a comparison of text with a number, more than MAX_LENGTH characters and
    whatever is not part of the language above. The message points at the offending token.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH:
        raise DataError(
            f"filter: has {len(text)} characters, but at most {MAX_LENGTH} are allowed; list ids in a file instead "
            "(selector ids)"
        )
    try:
        tree = ast.parse(_hide_class(text), mode="eval").body
    except (SyntaxError, tokenize.TokenError, ValueError, RecursionError, MemoryError) as e:
        at = (getattr(e, "offset", None) or 1) - 1
        hint = "; write == for equality" if "=" in text.replace("==", "") else ""
        raise _error(text, at, 1, f"not a filter expression{hint}") from None
    return _Parser(text, columns).condition(tree, 0)


def names_individuals(text: str) -> bool:
    """Whether a valid filter compares sample_id or subject with a text, and so names rows or people."""
    tree = ast.parse(_hide_class(text.strip()), mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            inside = list(ast.walk(node))
            texts = any(isinstance(n, ast.Constant) and isinstance(n.value, str) for n in inside)
            if texts and any(isinstance(n, ast.Name) and n.id in INDIVIDUAL_COLUMNS for n in inside):
                return True
    return False


def _hide_class(text: str) -> str:
    out = list(text)
    if "\n" in text:
        raise ValueError("a filter must be a single line")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string == "class":
            out[token.start[1] : token.end[1]] = _CLASS
    return "".join(out)


def _error(text: str, start: int, width: int, message: str) -> DataError:
    return DataError(f"filter: {message}\n  {text}\n  {' ' * start}{'^' * max(width, 1)}")


class _Parser:
    def __init__(self, text: str, columns: Mapping[str, pa.DataType]) -> None:
        self.text, self.columns = text, columns

    def condition(self, node: ast.expr, depth: int) -> pc.Expression:
        """Translate a boolean node."""
        if depth > MAX_DEPTH:
            raise self.error(node, f"conditions are nested more than {MAX_DEPTH} deep")
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            result = self.condition(node.values[0], depth + 1)
            for value in node.values[1:]:
                result = join(result, self.condition(value, depth + 1))
            return result
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand, depth + 1)
        if isinstance(node, ast.Compare):
            terms = [node.left, *node.comparators]
            parts = [self.comparison(a, op, b) for a, op, b in zip(terms, node.ops, terms[1:], strict=False)]
            result = parts[0]
            for part in parts[1:]:
                result = result & part
            return result
        raise self.error(node, "expected a comparison such as label == 5")

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, ast.Is | ast.IsNot):
            value, _ = self.operand(left)
            if self.operand(right)[1] != "null" or not isinstance(left, ast.Name):
                raise self.error(right, "use `is` only in: COLUMN is null, COLUMN is not null")
            return value.is_valid() if isinstance(op, ast.IsNot) else value.is_null()
        if isinstance(op, ast.In | ast.NotIn):
            return self.membership(left, right, isinstance(op, ast.NotIn))
        compare = _COMPARE[type(op)]
        a, kind_a = self.operand(left)
        b, kind_b = self.operand(right)
        if "null" in (kind_a, kind_b):
            raise self.error(right if kind_b == "null" else left, "to compare with null, write: COLUMN is null")
        if kind_a != kind_b:
            raise self.error(
                right, f"{self.source(left)!r} has the type {kind_a}, but {self.source(right)!r} has the type {kind_b}"
            )
        if not (isinstance(a, pc.Expression) or isinstance(b, pc.Expression)):
            raise self.error(left, "one side of a comparison must be a column")
        return compare(a if isinstance(a, pc.Expression) else pc.scalar(a), b)

    def membership(self, left: ast.expr, right: ast.expr, negate: bool) -> pc.Expression:
        column, kind = self.operand(left)
        if not isinstance(column, pc.Expression):
            raise self.error(left, "expected a column before `in`")
        if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
            raise self.error(right, "expected a list after `in`, such as [1, 2]")
        values = []
        for item in right.elts:
            value, item_kind = self.operand(item)
            if isinstance(value, pc.Expression) or item_kind != kind:
                raise self.error(
                    item,
                    f"{self.source(left)!r} has the type {kind}, but {self.source(item)!r} has the type {item_kind}",
                )
            values.append(value)
        inside = column.isin(values)
        return ~inside & column.is_valid() if negate else inside

    def operand(self, node: ast.expr) -> tuple[Any, str]:
        """Return a column or a constant, and its kind: "text", "number" or "null"."""
        if isinstance(node, ast.Name) and node.id == _NULL:
            return None, "null"
        if isinstance(node, ast.Name):
            name = "class" if node.id == _CLASS else node.id
            if name not in self.columns:
                raise self.error(node, f"no column {name!r}; the columns are {', '.join(self.columns)}")
            return pc.field(name), "text" if pa.types.is_string(self.columns[name]) else "number"
        sign, inner = 1, node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, inner = -1, node.operand
        value = inner.value if isinstance(inner, ast.Constant) else None
        if isinstance(value, str) and sign == 1:
            return value, "text"
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _INT64:
            return sign * value, "number"
        raise self.error(node, "only columns, texts, numbers and lists can be compared")

    def source(self, node: ast.expr) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def span(self, node: ast.expr) -> tuple[int, int]:
        # The offsets of ast count UTF-8 bytes, but the marker under the text needs characters.
        data = self.text.encode()
        end = node.end_col_offset if node.end_col_offset is not None else len(data)
        return len(data[: node.col_offset].decode()), len(data[:end].decode())

    def error(self, node: ast.expr, message: str) -> DataError:
        start, end = self.span(node)
        return _error(self.text, start, end - start, message)
