"""Serve a classifier: raw images or texts in, class probabilities out. Needs only torch, numpy and safetensors.

May import core, models and system.
Start with `servable.py`.
"""
