"""The hash chain of decisions, its signed head, the keys, and keyed digests of forgotten rows.

May import system.
Start with `ledger.py`.
"""
