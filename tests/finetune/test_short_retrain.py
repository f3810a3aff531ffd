"""Tests of short retraining: fresh weights, as many operations as above a cut, and no use of forgotten rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from expunge.finetune import ShortRetrain
from expunge.finetune.initial_weights import anew
from expunge.finetune.loop import Run
from expunge.models.cut_costs import cut_costs, share_above
from expunge.system.errors import ConfigError


def fit(digits: Any, labels: Any = None, images: Any = None, **options: Any) -> ShortRetrain:
    images, labels = (digits.images if images is None else images), (digits.labels if labels is None else labels)
    return ShortRetrain(**options).fit(digits.model, images, labels, *digits.rows)


def test_it_learns_retained_classes_and_never_predicts_the_forgotten_one(digits: Any) -> None:
    model = fit(digits, epochs=6.0).classifier_
    assert digits.accuracy(model, digits.retain) > 0.9
    assert digits.accuracy(model, digits.forget) == 0.0


def test_every_weight_is_drawn_anew_and_by_the_seed_alone(digits: Any) -> None:
    new, again, other = anew(digits.model, 1), anew(digits.fresh(), 1), anew(digits.model, 2)
    old = dict(digits.model.named_parameters())
    for name, weight in new.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
        if weight.ndim > 1:
            assert not torch.equal(weight, other.get_parameter(name)) and not torch.equal(weight, old[name])
    for name, buffer in new.named_buffers():
        if name.endswith("running_mean"):
            assert not buffer.any(), "running statistics of the original are a trace of its rows"


def test_forgotten_pictures_and_labels_change_no_bit(digits: Any) -> None:
    images, labels = digits.images.copy(), digits.labels.copy()
    images[digits.forget] = 255 - images[digits.forget]
    one, two = (fit(digits, images=i, labels=labels, epochs=0.5).classifier_ for i in (digits.images, images))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


def test_passes_above_a_cut_become_as_many_operations_of_the_whole(digits: Any) -> None:
    """The reference counts the operations of two convolutions, on 8 x 8 and 4 x 4 pictures, and of the head by hand."""
    first, second, head = 64 * 16 * 9, 16 * 32 * 16 * 9, 128 * 10
    share = (second + head) / (first + second + head)
    assert share_above(digits.model, "2") == pytest.approx(share)
    assert next(c for c in cut_costs(digits.model) if c.name == "2").share_above == pytest.approx(share)
    found = fit(digits, epochs=2.0, cut="2", batch_size=64)
    assert found.passes_ == pytest.approx(2 * share) and len(found.history_) == 2
    with pytest.raises(ConfigError, match="no cut 'nine'"):
        fit(digits, cut="nine")


def test_a_part_of_a_pass_is_a_part_of_its_batches(digits: Any) -> None:
    method = ShortRetrain(epochs=1.5, batch_size=64)
    method.passes_ = 1.5
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    whole, half = (len(phase.batches) for phase in method.phases(run))
    assert half == round(whole / 2)
    assert {int(r) for phase in method.phases(run) for (rows,) in phase.batches for r in rows} <= set(
        digits.retain.tolist()
    )


@pytest.mark.parametrize(
    ("options", "said"), [({"epochs": 0}, "epochs must be above 0"), ({"targets": "x"}, "targets must be one of")]
)
def test_settings_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ShortRetrain(**options)


def test_labels_alone_do_without_the_original(digits: Any) -> None:
    model = fit(digits, epochs=6.0, targets="labels").classifier_
    assert digits.accuracy(model, digits.retain) > 0.9
    assert np.isin(digits.forget, digits.retain).sum() == 0
