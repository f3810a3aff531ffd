"""Datasets: readers of many sources, one canonical Parquet form, and the retain/forget split."""
