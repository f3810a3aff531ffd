"""Filters select the rows that they describe, and a text that is no filter is refused with a DataError."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.filters import MAX_LENGTH, names_individuals, parse_filter
from expunge.system.errors import DataError

TABLE = pa.table(
    {
        "row": pa.array(range(8)),
        "label": pa.array([0, 1, 2, 3, 4, 5, 5, -7], pa.int32()),
        "height": pa.array([8, 8, 16, 16, 32, 32, 5, 5], pa.int32()),
        "class": ["ant", "bee", "cat", "ant", "bee", "cat", "it's", "ü"],
        "subject": ["a", "b", None, "a", None, "b", "c", "a"],
    }
)
TYPES = {name: TABLE.schema.field(name).type for name in TABLE.column_names if name != "row"}


def rows(text: str) -> list[int]:
    return pads.dataset(TABLE).to_table(filter=parse_filter(text, TYPES), columns=["row"])["row"].to_pylist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label == 5", [5, 6]),
        ("5 == label", [5, 6]),
        ("label != 5 and height >= 16", [2, 3, 4]),
        ("0 < label <= 2", [1, 2]),
        ("label == -7", [7]),
        ("label > 3.5", [4, 5, 6]),
        ("label == height", [6]),
        ('class == "ant" or class == "bee"', [0, 1, 3, 4]),
        ("class in ['cat', 'ü']", [2, 5, 7]),
        ("class not in ('ant', 'bee', 'cat')", [6, 7]),
        ('class == "it\'s"', [6]),
        ("not (label == 5 or class == 'ant')", [1, 2, 4, 7]),
        ("subject is null", [2, 4]),
        ("subject is not null and label < 2", [0, 1, 7]),
        ("subject == 'a'", [0, 3, 7]),
        ("subject != 'a'", [1, 5, 6]),
        ("subject not in ['a']", [1, 5, 6]),
        ("not subject in ['a']", [1, 2, 4, 5, 6]),
        ("  label == 0\n", [0]),
    ],
)
def test_a_filter_selects_the_rows_that_it_describes(text: str, expected: list[int]) -> None:
    assert rows(text) == expected


NUMBER = st.sampled_from(["label", "height", "-7", "0", "5", "16", "3.5"])
COLUMN = st.sampled_from(["label", "height"])
SIMPLE = st.one_of(
    st.tuples(COLUMN, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), NUMBER).map(" ".join),
    st.tuples(NUMBER, st.just("<"), COLUMN, st.just("<="), NUMBER).map(" ".join),
    st.tuples(COLUMN, st.sampled_from(["in", "not in"]), st.sampled_from(["[5]", "(0, 16, 5)"])).map(" ".join),
)
CONDITION = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
        inner.map(lambda t: f"not {t}"),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(CONDITION)
def test_numbers_mean_what_they_mean_in_python(text: str) -> None:
    expected = [r["row"] for r in TABLE.to_pylist() if eval(text, {}, {"label": r["label"], "height": r["height"]})]
    assert rows(text) == expected


@pytest.mark.parametrize(
    ("text", "message", "token"),
    [
        ("labl == 5", "no column 'labl'; the columns are label, height, class, subject", "labl"),
        ("class == 'ü' and größe == 1", "no column 'größe'", "größe"),
        ('label == "5"', "'label' has the type number, but '\"5\"' has the type text", '"5"'),
        ("class < 3", "'class' has the type text, but '3' has the type number", "3"),
        ("label in 5", "expected a list after `in`", "5"),
        ("label in []", "expected a list after `in`", "[]"),
        ("label in [1, 'x']", "'x'", "'x'"),
        ("5 in [5]", "expected a column before `in`", "5"),
        ("label", "expected a comparison", "label"),
        ("label == 5 or height", "expected a comparison", "height"),
        ("label + 1 == 5", "only columns, texts, numbers and lists", "label + 1"),
        ("label == True", "only columns, texts, numbers and lists", "True"),
        ("label == b'x'", "only columns, texts, numbers and lists", "b'x'"),
        ("label == 99999999999999999999", "only columns, texts, numbers and lists", "99999999999999999999"),
        ("label == 1e999", "only columns, texts, numbers and lists", "1e999"),
        ("1 == 1", "one side of a comparison must be a column", "1"),
        ("subject == null", "to compare with null, write", "null"),
        ("subject is 'a'", "use `is` only in", "'a'"),
        ("__import__('os').system('true')", "expected a comparison", "__import__('os').system('true')"),
        ("label == (lambda: 5)()", "only columns", "(lambda: 5)()"),
        ("[x for x in label] == 5", "only columns", "[x for x in label]"),
        ("label.__class__ == 5", "only columns", "label.__class__"),
    ],
)
def test_errors_point_at_the_token(text: str, message: str, token: str) -> None:
    with pytest.raises(DataError) as e:
        rows(text)
    first, shown, marks = str(e.value).split("\n")
    assert message in first
    assert shown[2:] == text
    assert shown[marks.index("^") : marks.rindex("^") + 1] == token


@pytest.mark.parametrize(
    "text", ["label = 5", "label ==", "label == 5 AND height == 3", "(label == 5", "", "a\nb", "label == '"]
)
def test_what_cannot_be_parsed_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not a filter expression"):
        rows(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("subject == 'a' and label == 1", True),
        ("'a' != sample_id", True),
        ("label == 1 or not sample_id in ['a', 'b']", True),
        ("subject is not null and class == 'ant'", False),
        ("label == 1", False),
    ],
)
def test_filters_that_name_individuals_are_recognised(text: str, named: bool) -> None:
    assert names_individuals(text) is named


def test_overlong_and_deep_filters_are_refused() -> None:
    with pytest.raises(DataError, match="at most"):
        rows(" or ".join(["label == 5"] * MAX_LENGTH))
    with pytest.raises(DataError, match="nested"):
        rows("not " * 200 + "label == 5")
    with pytest.raises(DataError):
        rows("(" * 1500 + "label == 5" + ")" * 1500)
    assert rows(" or ".join(["label == 5"] * (MAX_LENGTH // 15))) == [5, 6]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("abel classinotr5'\"=<>()[],._é\x00\\ "), max_size=30) | st.text(max_size=30))
def test_any_text_is_a_filter_or_raises_data_error(text: str) -> None:
    value: Any
    try:
        value = parse_filter(text, TYPES)
    except DataError:
        return
    assert value is not None
