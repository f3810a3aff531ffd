"""Readers, one file per kind of source. Each returns a `Source`, whose batches can be read once."""
