"""Unlearning on features: moments, maps, and the methods that fit them. torch, numpy and scipy only."""

from expunge.core.head import LinearHead
from expunge.core.loft import Loft
from expunge.core.logit_mask import LogitMask
from expunge.core.maps import AffineMap, Chain, FeatureMap, MlpMap, identity, load_map
from expunge.core.moments import Moments
from expunge.core.representation import RepresentationLinear

__all__ = [
    "AffineMap",
    "Chain",
    "FeatureMap",
    "LinearHead",
    "Loft",
    "LogitMask",
    "MlpMap",
    "Moments",
    "RepresentationLinear",
    "identity",
    "load_map",
]
