"""The schema of the canonical dataset: its columns, its constants and the digests of its rows.

A dataset is a directory of Parquet shards, `classes.json`, `duplicates.parquet` and `manifest.json`.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

TRAIN, TEST = "train", "test"
SPLITS = (TRAIN, TEST)  # every dataset has both
# A split and a part: training rows of the source on which no model is trained and which no metric counts.
UNSEEN = "unseen"

RETAIN, FORGET, TEST_RETAIN, TEST_FORGET = "retain", "forget", "test_retain", "test_forget"
PARTS = (RETAIN, FORGET, TEST_RETAIN, TEST_FORGET, UNSEEN)

RAW = "raw"  # uint8 pixels (height, width, channels), row-major
ENCODED = "encoded"  # the bytes of the original image file (PNG, JPEG, ...)
TEXT = "text"  # a text, as in the source

DIGEST_BYTES = 16
CLASSES = "classes.json"
DUPLICATES = "duplicates.parquet"


def content_column(encoding: str) -> str:
    """The name of the column that holds the input of the model: "text" or "image"."""
    return "text" if encoding == TEXT else "image"


def dataset_schema(has_subject: bool, encoding: str) -> pa.Schema:
    """The columns of a dataset shard, in order. Only `subject` may be null."""
    content = [
        pa.field("image", pa.binary(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
    ]
    if encoding == TEXT:
        content = [pa.field("text", pa.string(), nullable=False)]
    fields = [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("subject", pa.string()),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        *content,
        pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False),
    ]
    return pa.schema([f for f in fields if has_subject or f.name != "subject"])


ASSIGNMENT_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
    ]
)


def row_digest(image: np.ndarray) -> bytes:
    """Return the BLAKE2b-128 digest of the shape and the decoded pixels of one `(h, w, c)` uint8 image.

    Files of different formats with the same pixels have the same digest. A greyscale image and its RGB version have
    different digests.
    """
    h = hashlib.blake2b(np.asarray(image.shape, dtype="<u4").tobytes(), digest_size=DIGEST_BYTES)
    h.update(np.ascontiguousarray(image).data)
    return h.digest()


def text_digest(text: str) -> bytes:
    """Return the BLAKE2b-128 digest of the UTF-8 bytes of one text."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
