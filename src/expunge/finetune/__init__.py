"""Methods that change weights below the head.

May import core, data, ledger, models and system.
Start with `loop.py`, the training loop that most of them share, and `retained.py`, the shortest method.
"""

from expunge.core.estimator import Estimator
from expunge.finetune.bad_teacher import BadTeacher
from expunge.finetune.blinded import PartiallyBlinded
from expunge.finetune.boundary import BoundaryExpand, BoundaryShrink
from expunge.finetune.damp import Damp
from expunge.finetune.delete import Delete
from expunge.finetune.instance_wise import InstanceWise
from expunge.finetune.jit import Jit
from expunge.finetune.loss_free import LossFreeSsd
from expunge.finetune.min_norm import MinNorm
from expunge.finetune.muda import Muda
from expunge.finetune.natmu import NatMU
from expunge.finetune.neggrad import NegGradPlus
from expunge.finetune.one_step import OneStep
from expunge.finetune.oracle import HeadOracle, OracleMatch, RidgeOracle, TeacherOracle
from expunge.finetune.projected import ProjectedGradient
from expunge.finetune.regun import ReGUn
from expunge.finetune.relabel import RandomLabels, SalUn
from expunge.finetune.reset import RetentionMask, Scissorhands
from expunge.finetune.residual import ResidualAlignment
from expunge.finetune.retained import FineTune
from expunge.finetune.scrub import Scrub
from expunge.finetune.seal import Seal
from expunge.finetune.short_retrain import ShortRetrain
from expunge.finetune.ssd import Ssd
from expunge.finetune.trew import Trew
from expunge.finetune.unsir import Unsir

# All have `fit(classifier, inputs, labels, retain_rows, forget_rows)`, which sets `classifier_` and `history_`.
METHODS: dict[str, type[Estimator]] = {
    "fine-tune": FineTune,
    "neggrad-plus": NegGradPlus,
    "random-labels": RandomLabels,
    "salun": SalUn,
    "ssd": Ssd,
    "scrub": Scrub,
    "bad-teacher": BadTeacher,
    "delete": Delete,
    "trew": Trew,
    "muda": Muda,
    "scissorhands": Scissorhands,
    "retention-mask": RetentionMask,
    "boundary-shrink": BoundaryShrink,
    "boundary-expand": BoundaryExpand,
    "natmu": NatMU,
    "projected-gradient": ProjectedGradient,
    "loss-free-ssd": LossFreeSsd,
    "jit": Jit,
    "regun": ReGUn,
    "residual-alignment": ResidualAlignment,
    "min-norm": MinNorm,
    "partially-blinded": PartiallyBlinded,
    "one-step": OneStep,
    "instance-wise": InstanceWise,
    "damp": Damp,
    "unsir": Unsir,
    "short-retrain": ShortRetrain,
}

__all__ = [
    "METHODS",
    "BadTeacher",
    "BoundaryExpand",
    "BoundaryShrink",
    "Damp",
    "Delete",
    "FineTune",
    "HeadOracle",
    "InstanceWise",
    "Jit",
    "LossFreeSsd",
    "MinNorm",
    "Muda",
    "NatMU",
    "NegGradPlus",
    "OneStep",
    "OracleMatch",
    "PartiallyBlinded",
    "ProjectedGradient",
    "RandomLabels",
    "ReGUn",
    "ResidualAlignment",
    "RetentionMask",
    "RidgeOracle",
    "SalUn",
    "Scissorhands",
    "Scrub",
    "Seal",
    "ShortRetrain",
    "Ssd",
    "TeacherOracle",
    "Trew",
    "Unsir",
]
