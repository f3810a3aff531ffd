"""Train classifiers from params and rows: the original and, on retained rows, its references.

May import config, core, data, features, finetune, ledger, models and system.
Start with `recipe.py`; `trainer.py` is the training loop. `launch.py` starts several processes that share it.
"""
