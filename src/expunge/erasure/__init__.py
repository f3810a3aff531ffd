"""Erasure requests from intake to the signed certificate.

May import promotion, sweep, ledger and what these may import.
Start with `lifecycle.py`, which carries a request through its steps, and `requests.py`, the store.
"""
