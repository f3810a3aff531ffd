"""Metrics, attacks and the verdict: pure functions of arrays.

May import system.
Start with `suite.py`, which computes all metrics of one model, and `claims.py`, which judges them.
"""
