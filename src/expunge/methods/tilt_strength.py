"""Strength of the tilt of a forgotten class, estimated on a retained class without a retrained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from expunge.config import DEFAULT_CUT
from expunge.core.tilted import fit_beta, similarities
from expunge.finetune.relearn import features_above
from expunge.methods.inputs import FitInputs
from expunge.methods.unlearned import UnlearnedModel
from expunge.system.errors import ConfigError

Teach = Callable[[FitInputs, Mapping[str, Any]], UnlearnedModel]


def with_beta(name: str, request: FitInputs, settings: Mapping[str, Any], teach: Teach) -> dict[str, Any]:
    """Replace a beta that holds settings of `relearn`, such as `beta: {cut: stage1}`, by a number; else no change.

    `teach` relearns with such settings, without the forgotten rows of the request that it is given. The retained class
    whose head row is nearest to the forgotten one takes its role: a teacher is relearned without either class, and beta
    is chosen so that the original's tilted outputs on that class match the teacher's [derived]. Raises ConfigError for
    a request that forgets no class or leaves fewer than three.
    """
    teacher_settings = settings.get("beta")
    if not isinstance(teacher_settings, Mapping):
        return dict(settings)
    classes = request.whole_classes(name)
    keep = torch.ones(request.head.num_classes, dtype=torch.bool, device=request.head.weight.device)
    keep[classes] = False
    if int(keep.sum()) < 3:
        raise ConfigError(
            f"params.yaml: fit.{name}.beta: fitting beta needs at least three retained classes; give beta as a number"
        )
    tau, rank = settings.get("tau", 1.0), settings.get("rank")
    near = similarities(request.head.weight, keep, tau, rank)[classes].mean(0)
    stand_in = int(near.argmax())
    mine = request.labels[request.retain_rows] == stand_in
    rows = request.retain_rows[mine]
    played = replace(
        request,
        forget_rows=rows,
        retain_rows=request.retain_rows[~mine],
        forget_classes=[stand_in],
        left_out=np.union1d(request.left_out, request.forget_rows),
    )
    cut = request.cut(teacher_settings.get("cut", DEFAULT_CUT))
    teacher = teach(played, teacher_settings).classifier
    assert teacher is not None
    z = features_above(teacher, request.activations(cut), cut, torch.from_numpy(request.among_train(rows)))
    probabilities = teacher.head(z.to(teacher.head.weight)).double().softmax(1).mean(0).detach()
    keep[stand_in] = False
    s = similarities(request.head.weight, keep, tau, rank)
    logits = request.head.logits(torch.from_numpy(request.store.z(rows)))
    labels = torch.full((len(rows),), stand_in)
    return {**settings, "beta": fit_beta(logits, labels, keep, s, probabilities)}
