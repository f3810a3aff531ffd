"""Expunge: make a trained classifier forget, prove how well it forgot, register the result."""

__version__ = "0.1.0"
