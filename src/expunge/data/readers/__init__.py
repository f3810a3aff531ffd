"""One file per kind of source. Each reader returns a `Source` whose batches are read once."""
