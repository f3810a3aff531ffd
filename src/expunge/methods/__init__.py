"""From a name in params.yaml to an unlearned model: the table of methods, their inputs and their results.

May import config, core, data, evaluation, features, finetune, ledger, models and system.
Start with `table.py`; `inputs.py` defines what a method may use.
"""
