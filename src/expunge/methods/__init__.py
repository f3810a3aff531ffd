"""From a name in params.yaml to an unlearned model: the table of methods, what they are given, and what they leave.

May import config, core, data, evaluation, features, finetune, models and system.
Start with `table.py`; `inputs.py` holds what a method may look at.
"""
