"""The Parquet files joined by our writer have the same table and statistics as files that Arrow writes."""

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.features import parquet
from expunge.features.store import STORAGE_TYPES, schema

OPTIONS = {"compression": "zstd", "use_dictionary": False, "write_statistics": ["sample_id", "label", "split"]}


def table_of(n, subject=False):
    columns = {
        "sample_id": [f"train-{i}" for i in range(n)],
        "label": pa.array(np.arange(n) % 10, pa.int32()),
        "split": ["train"] * n,
    } | ({"subject": [None if i % 3 else f"s{i}" for i in range(n)]} if subject else {})
    target = schema(1, subject)
    return pa.table(columns).cast(pa.schema([target.field(i) for i in range(len(target) - 1)]))


def both(directory, n, dim, dtype, subject, group_rows, dictionary=False):
    """Write the same table with our writer and with Arrow, and return the two files."""
    numbers = STORAGE_TYPES[dtype]
    z = np.random.default_rng(n * dim).integers(0, 124, (n, dim, np.dtype(numbers.stored).itemsize), np.uint8)  # no NaN
    z = z.view(numbers.stored).reshape(n, dim)
    rows, target = table_of(n, subject), schema(dim, subject, dtype)
    options = OPTIONS | {"use_dictionary": ["split"] if dictionary else False}
    parquet.write(directory / "ours.parquet", rows, target, z, group_rows, **options)
    values = pa.Array.from_buffers(numbers.arrow, z.size, [None, pa.py_buffer(z)])
    column = pa.FixedSizeListArray.from_arrays(values, type=target.field("z").type)
    theirs = pa.table([*rows.columns, column], schema=target)
    pq.write_table(theirs, directory / "theirs.parquet", row_group_size=group_rows, **options)
    return directory / "ours.parquet", directory / "theirs.parquet"


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 90),
    dim=st.integers(1, 70),
    dtype=st.sampled_from(sorted(STORAGE_TYPES)),
    subject=st.booleans(),
    group_rows=st.integers(1, 40),
    dictionary=st.booleans(),
)
def test_our_writer_gives_the_table_and_metadata_that_arrow_gives(
    tmp_path_factory, n, dim, dtype, subject, group_rows, dictionary
):
    ours, theirs = both(tmp_path_factory.mktemp("x"), n, dim, dtype, subject, group_rows, dictionary)
    table = pq.read_table(ours)
    table.validate(full=True)
    assert table.schema.equals(pq.read_schema(theirs), check_metadata=True)
    assert table.equals(pq.read_table(theirs))
    a, b = pq.read_metadata(ours), pq.read_metadata(theirs)
    assert (a.num_rows, a.num_row_groups, a.created_by) == (b.num_rows, b.num_row_groups, b.created_by)
    for g in range(a.num_row_groups):
        assert a.row_group(g).num_rows == b.row_group(g).num_rows
        for c in range(a.num_columns - 1):
            mine, other = a.row_group(g).column(c), b.row_group(g).column(c)
            assert (mine.statistics, mine.encodings) == (other.statistics, other.encodings)


def test_row_groups_and_columns_are_read_alone(tmp_path):
    ours, theirs = both(tmp_path, 1000, 33, "fp32", True, 300)
    with pq.ParquetFile(ours) as a, pq.ParquetFile(theirs) as b:
        for g in (3, 0, 2):
            for columns in (["label"], ["z", "subject"]):
                assert a.read_row_group(g, columns=columns).equals(b.read_row_group(g, columns=columns))
        assert [len(x) for x in a.iter_batches(batch_size=70, columns=["z"])] == [
            len(x) for x in b.iter_batches(batch_size=70, columns=["z"])
        ]
    wanted = pyarrow.dataset.field("label") == 3
    found = pyarrow.dataset.dataset(ours).to_table(filter=wanted)
    assert len(found) == 100 and found.equals(pyarrow.dataset.dataset(theirs).to_table(filter=wanted))


def test_a_footer_survives_being_read_and_written(tmp_path):
    """Every field of a footer written by Arrow must be preserved, including flags and long lists."""
    columns = {f"c{i}": pa.array(np.arange(5.0) - i) for i in range(20)} | {"flag": [True, None, False, True, True]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", write_page_index=True)
    content = (tmp_path / "x.parquet").read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    assert parquet.encoded(parquet.read_footer(memoryview(content))) == content[-8 - length : -8]


@pytest.mark.parametrize("value", [0, 1, -1, 63, 64, -64, 127, 128, 2**31 - 1, -(2**63), 2**63 - 1])
def test_integers_of_the_thrift_protocol_round_trip(value):
    content = parquet.encoded({1: (parquet.I64, value), 40: (parquet.I64, value)})
    assert parquet.StructReader(memoryview(content)).struct() == {1: (6, value), 40: (6, value)}
