"""Backbones, heads and checkpoints: a classifier is `x -> z` and `logits = W z + b`."""
