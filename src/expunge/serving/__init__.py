"""A classifier as it is served: raw images in, class probabilities out. Needs torch, numpy and safetensors only."""
