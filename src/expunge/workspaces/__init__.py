"""Folders in which the pipeline runs beside the one at hand: the demo, variants and clones.

May import data and system.
Start with `workspace.py`.
"""
