"""Erasure requests from intake to the signed certificate.

May import promotion, sweep, ledger and the packages that these may import.
Start with `lifecycle.py`, which takes a batch of requests through its steps, and `requests.py`, the store.
"""
