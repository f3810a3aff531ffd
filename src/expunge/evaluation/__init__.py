"""Metrics, attacks and the verdict: pure functions of arrays.

May import system.
Start with `suite.py`, which computes all metrics of one model, and `claims.py`, which judges them.

The names below are the interface for notebooks and other packages. `evaluate` compares the `Outputs` of a model with
those of the original and of retrained models, and `verdict_of` derives claims from the result. The other functions are
metrics of their own. What is in a module and not here may change.
"""

from expunge.evaluation.accuracy import class_damage, correct_rows, ece
from expunge.evaluation.claims import shown_claims, verdict_of
from expunge.evaluation.controls import logit_mask
from expunge.evaluation.divergence import agreement_rows, js_rows, kl_rows, zrf
from expunge.evaluation.exposure import CanaryRows, exposures
from expunge.evaluation.forget_metric import ForgetMetric
from expunge.evaluation.measuring import Outputs
from expunge.evaluation.membership import auc, loss_auc, mia_lr_rows, rmia_scores, tpr_at_fpr
from expunge.evaluation.representation import knn_rows, linear_cka, linear_probe_rows
from expunge.evaluation.suite import controls_of, evaluate
from expunge.evaluation.ulira import epsilon_rows, forgetting_score, klom_rows, lira_scores

__all__ = [
    "CanaryRows",
    "ForgetMetric",
    "Outputs",
    "agreement_rows",
    "auc",
    "class_damage",
    "controls_of",
    "correct_rows",
    "ece",
    "epsilon_rows",
    "evaluate",
    "exposures",
    "forgetting_score",
    "js_rows",
    "kl_rows",
    "klom_rows",
    "knn_rows",
    "linear_cka",
    "linear_probe_rows",
    "lira_scores",
    "logit_mask",
    "loss_auc",
    "mia_lr_rows",
    "rmia_scores",
    "shown_claims",
    "tpr_at_fpr",
    "verdict_of",
    "zrf",
]
