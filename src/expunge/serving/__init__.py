"""A classifier as it is served: raw images or texts in, class probabilities out. Needs torch, numpy and safetensors
only, and transformers for texts."""
