"""docs/results.md: the experiments behind this project's claims, run over seeds by one command.

May import every package except commands and flows.
Start with `variants.py`.
"""
