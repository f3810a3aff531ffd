"""What was forgotten, when, and what came of it: the ledger."""
