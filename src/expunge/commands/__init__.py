"""Sub-commands of `expunge`, one module per group.

May import every package. Functions import what they run, because `expunge --help` must not wait for torch and MLflow.
Start with `request.py`.
"""
