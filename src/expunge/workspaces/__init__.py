"""Folders in which the pipeline runs: what `init` makes, and beside it the demo, variants and clones.

May import data and system.
Start with `workspace.py`.
"""
