"""Metrics, attacks and the verdict: pure functions of arrays.

May import system.
Start with `suite.py`, which joins the metrics, and `verdict.py`, which judges them.
"""
