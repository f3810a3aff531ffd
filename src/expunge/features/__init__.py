"""Features are extracted once per model and stored by row id, not by retain or forget.

May import config, core, data, models and system.
Start with `extract.py` (reader, mapper, writer) and `store.py`.
"""
