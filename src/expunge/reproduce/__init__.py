"""`expunge reproduce`: the papers' settings as presets, run whole, with one page for each.

May import every package except erasure, results and commands.
Start with `run.py`.
"""
