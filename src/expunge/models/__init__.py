"""Backbones, heads and checkpoints: a classifier is `x -> z` and `logits = W z + b`.

May import system.
Start with `classifier.py`; `zoo.py` builds one from a name.
"""
