"""Checks before the first stage runs: params, request, methods, model, disk and memory, all conflicts at once.

May import config, core, data, features, finetune, methods, models, system and training. No stage imports it, because it
decides nothing that a stage writes. `prepare` starts it as a separate command.
Start with `report.py`.
"""
