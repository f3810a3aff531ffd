"""What is wrong before the first stage runs: params, request, methods, model, disk and memory, all conflicts together.

May import config, core, data, features, finetune, methods, models, system and training. No stage imports it, since it
decides nothing that a stage writes; `prepare` starts it as a command of its own.
Start with `report.py`.
"""
