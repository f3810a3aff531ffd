"""Files, paths, errors, progress, DVC's command line, and what a process uses of the machine.

Imports no other package of Expunge.
Start with `files.py` (outputs are staged and renamed) and `errors.py`.
"""
