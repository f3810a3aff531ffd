"""Prefect only: one task per DVC stage. No mathematics here."""
