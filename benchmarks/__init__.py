"""Every speed claim as a ratio against a named alternative, measured in the same run."""
