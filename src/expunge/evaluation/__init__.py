"""Metrics, attacks, equivalence tests and the verdict: pure functions of arrays."""
