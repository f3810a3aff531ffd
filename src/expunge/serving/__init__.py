"""A classifier as it is served: raw images or texts in, class probabilities out. Needs torch, numpy and safetensors
only.

May import core, models and system.
Start with `servable.py`.
"""
