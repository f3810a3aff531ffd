"""Computations on features: moments, maps, heads, and the estimators that fit them, with torch, numpy and scipy only.

May import system.
Start with `moments.py`, then read `maps.py` and one estimator, `loft.py`.
"""

from expunge.core.certified import CertifiedRemoval
from expunge.core.directions import Esc, PourP
from expunge.core.head import LinearHead
from expunge.core.head_refit import HeadRefit
from expunge.core.leace import Leace
from expunge.core.loft import Loft
from expunge.core.logit_mask import LogitMask
from expunge.core.maps import AffineMap, Chain, FeatureMap, MlpMap, identity, load_map
from expunge.core.moments import Moments
from expunge.core.representation import RepresentationLinear
from expunge.core.representation_mlp import RepresentationMlp
from expunge.core.ridge_head import RidgeHead
from expunge.core.softmax_head import SoftmaxHead
from expunge.core.teacher_map import Stitch, TeacherMap
from expunge.core.zero_shot import RepresentationZeroShot, RepresentationZeroShotMlp

__all__ = [
    "AffineMap",
    "CertifiedRemoval",
    "Chain",
    "Esc",
    "FeatureMap",
    "HeadRefit",
    "Leace",
    "LinearHead",
    "Loft",
    "LogitMask",
    "MlpMap",
    "Moments",
    "PourP",
    "RepresentationLinear",
    "RepresentationMlp",
    "RepresentationZeroShot",
    "RepresentationZeroShotMlp",
    "RidgeHead",
    "SoftmaxHead",
    "Stitch",
    "TeacherMap",
    "identity",
    "load_map",
]
