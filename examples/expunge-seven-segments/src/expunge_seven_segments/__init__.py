"""Digits as a display of seven segments shows them: one reader, model family, method and metric for Expunge.

Nothing is imported here: each entry point names its own module, so a run loads only what its params name.
"""
