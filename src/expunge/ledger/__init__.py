"""The hash-chained ledger of decisions, its signed head, the signing keys, and keyed digests of forgotten rows.

May import system.
Start with `ledger.py`.
"""
