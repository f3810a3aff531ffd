"""`expunge reproduce`: run the settings of published papers as presets, and write one page for each.

May import every package except erasure, results and commands.
Start with `run.py`.
"""
