"""Extraction and storage of features. Features are extracted once per model; the store does not depend on a request.

May import config, core, data, models and system.
Start with `extract.py` (reader, mapper, writer) and `store.py`.
"""
