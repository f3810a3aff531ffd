"""Sub-commands of `expunge`, one module per matter."""
