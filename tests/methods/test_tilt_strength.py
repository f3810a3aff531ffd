"""Tests that the strength of the tilt is found on a retained class.

Its teacher saw neither this class nor the forgotten one.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge.core.tilted import similarities, tilted_target
from expunge.finetune.relearn import features_above
from expunge.methods.fitting import fit
from expunge.methods.table import METHODS
from expunge.methods.tilt_strength import with_beta
from expunge.system.errors import ConfigError

SETTINGS = {"cut": "stage2", "epochs": 1.0}


def test_beta_tilts_a_retained_class_as_far_as_its_teacher_does(fit_inputs):
    seen = []

    def teach(played, settings):
        seen.append((played, METHODS["relearn"].fit("trew", played, settings, None)))
        return seen[0][1]

    found = with_beta("trew", fit_inputs, {"beta": SETTINGS, "epochs": 3}, teach)
    [(played, taught)] = seen
    assert found["epochs"] == 3 and found["beta"] >= 0
    # The class that stands in for the forgotten one is nearest to it in the head, and no row of either is retained.
    w = fit_inputs.head.weight.double()
    w = torch.nn.functional.normalize(w - w.mean(0), dim=1)
    [removed] = fit_inputs.forget_classes
    stand_in = int((w @ w[removed]).masked_fill(torch.arange(len(w)) == removed, -2).argmax())
    assert played.forget_classes == [stand_in]
    assert set(np.unique(fit_inputs.labels[played.forget_rows])) == {stand_in}
    assert not np.isin(fit_inputs.labels[played.retain_rows], [removed, stand_in]).any()
    # The tilted targets of its rows give its neighbours as much probability as the teacher does.
    keep = torch.ones(10, dtype=torch.bool)
    keep[[removed, stand_in]] = False
    s = similarities(fit_inputs.head.weight, keep)
    rows = torch.from_numpy(fit_inputs.among_train(played.forget_rows))
    z = features_above(taught.classifier, fit_inputs.activations("stage2"), "stage2", rows)
    probabilities = taught.classifier.head(z).double().softmax(1).mean(0).detach() * keep
    wanted = float((probabilities / probabilities.sum() * s[stand_in]).sum())
    logits = fit_inputs.head.logits(torch.from_numpy(fit_inputs.store.z(played.forget_rows))).double()
    labels = torch.full((len(rows),), stand_in)

    def mean(beta):
        return float((tilted_target(logits, labels, keep, s, beta).mean(0) * s[stand_in]).sum())

    assert mean(found["beta"]) == pytest.approx(wanted, abs=1e-6) or (found["beta"] == 0 and mean(0) > wanted)


def test_a_number_stays_and_entries_fit_with_a_teacher(fit_inputs):
    assert with_beta("trew", fit_inputs, {"beta": 2.0}, None) == {"beta": 2.0}
    assert with_beta("trew", fit_inputs, {}, None) == {}
    for name, more in (("tilt", {}), ("trew", {"epochs": 1})):
        table = {name: {"beta": SETTINGS, "max_drop": 1.0, **more}}
        assert torch.isfinite(fit(name, fit_inputs, table).logits(fit_inputs.z_forget[:20])).all()


def test_beta_of_a_fit_inputsthat_leaves_two_classes_is_refused_with_its_key(fit_inputs):
    few = replace(fit_inputs, forget_classes=list(range(8)))
    with pytest.raises(ConfigError, match=r"fit\.trew\.beta: fitting beta needs at least three retained classes"):
        with_beta("trew", few, {"beta": SETTINGS}, None)
