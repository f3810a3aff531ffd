"""Decide which version is served: gates, promotion, rollback, and the review of a challenger against the champion.

May import ledger, report, serving, tracking and the packages that these may import.
Start with `promoter.py`; `session.py` opens it on the files of a run.
"""
