"""Folders in which the pipeline runs: workspaces made by `expunge init`, the demos, variants and clones.

May import data and system.
Start with `workspace.py`.
"""
