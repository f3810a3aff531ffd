"""Expunge: make a trained classifier forget, measure how well it forgot, register the result."""

__version__ = "0.1.0"
