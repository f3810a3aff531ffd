"""From params and rows to a classifier: the original and, on retained rows, its references.

May import config, core, data, features, models and system.
Start with `recipe.py`; `trainer.py` is the training loop.
"""
