"""Features are fetched once per model and stored by row id, not by retain or forget."""
