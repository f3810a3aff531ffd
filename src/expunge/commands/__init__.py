"""Sub-commands of `expunge`, one module per group.

May import every package.
Start with `request.py`.
"""
