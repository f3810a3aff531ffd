"""docs/results.md: the experiments behind this project's claims, run over seeds and written up by one command."""
