"""The experiments behind docs/results.md and docs/comparators.md, and the calibration of the verdict.

May import every package except commands and flows.
Start with `variants.py`, which lists the experiments.
"""
