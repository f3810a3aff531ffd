"""Readers of many sources, the canonical Parquet dataset, and the split into retained and forgotten rows.

May import system.
Start with `dataset.py` and `split.py`; `readers/` has one file per source.
"""
