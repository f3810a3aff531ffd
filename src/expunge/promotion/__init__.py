"""Which version is served: gates, promotion, rollback, and the review of a challenger beside the champion.

May import ledger, report, serving, tracking and what these may import.
Start with `promoter.py`; `session.py` opens it on the files of a run.
"""
