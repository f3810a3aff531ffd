"""Methods that change weights below the head.

May import core, models and system.
Start with `loop.py`, the training loop that they share, and `retained.py`, the shortest method.
"""

from collections.abc import Mapping
from typing import Any

from expunge.core.estimator import Estimator
from expunge.finetune.bad_teacher import BadTeacher
from expunge.finetune.delete import Delete
from expunge.finetune.neggrad import NegGradPlus
from expunge.finetune.relabel import RandomLabels, SalUn
from expunge.finetune.retained import FineTune
from expunge.finetune.scrub import Scrub
from expunge.finetune.seal import Seal
from expunge.finetune.ssd import Ssd

# All share `fit(classifier, images, labels, retain_rows, forget_rows)`, and `classifier_` and `history_` afterwards.
METHODS: dict[str, type[Estimator]] = {
    "fine-tune": FineTune,
    "neggrad-plus": NegGradPlus,
    "random-labels": RandomLabels,
    "salun": SalUn,
    "ssd": Ssd,
    "scrub": Scrub,
    "bad-teacher": BadTeacher,
    "delete": Delete,
}

# The defaults are for whole classes. For rows of classes that stay, these keep the accuracy; see docs/finetune.md for
# how little they forget.
FOR_SAMPLES: dict[str, Mapping[str, Any]] = {
    "neggrad-plus": {"cap": 0.5},
    "random-labels": {"lr": 0.02, "retain_share": 1.0},
    "salun": {"lr": 0.02, "retain_share": 1.0},
    "ssd": {"alpha": 6.0},
    "bad-teacher": {"lr": 0.02, "retain_share": 1.0},
}

__all__ = [
    "FOR_SAMPLES",
    "METHODS",
    "BadTeacher",
    "Delete",
    "FineTune",
    "NegGradPlus",
    "RandomLabels",
    "SalUn",
    "Scrub",
    "Seal",
    "Ssd",
]
