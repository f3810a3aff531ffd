"""Tests of random labels and SalUn, against one full-batch gradient and counts of the drawn labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import chisquare
from torch.nn.functional import cross_entropy

from expunge.finetune import RandomLabels, SalUn
from expunge.finetune.loop import Run
from expunge.finetune.relabel import random_labels, saliency_mask


def run_of(digits: Any, labels: np.ndarray, retain: np.ndarray, forget: np.ndarray) -> Run:
    return Run(RandomLabels(seed=3), digits.model, digits.images, labels, retain, forget)


def test_new_labels_are_other_retained_classes_all_equally_likely(digits: Any) -> None:
    """Classes 5 and 7 are forgotten as a whole, and some rows of class 2, which keeps others."""
    labels = digits.labels
    rows = np.concatenate(digits.rows)
    twos = rows[labels[rows] == 2]
    forget = np.concatenate([rows[np.isin(labels[rows], (5, 7))], twos[:70]])
    run = run_of(digits, labels, np.setdiff1d(rows, forget), forget)
    counts = np.zeros((10, 10), dtype=int)
    for seed in range(40):
        run.options.seed = seed
        np.add.at(counts, (labels[forget], random_labels(run)), 1)
    assert counts[:, [5, 7]].sum() == 0 and counts[2, 2] == 0
    for own, classes in ((5, [0, 1, 2, 3, 4, 6, 8, 9]), (7, [0, 1, 2, 3, 4, 6, 8, 9]), (2, [0, 1, 3, 4, 6, 8, 9])):
        assert counts[own].sum() == 40 * np.sum(labels[forget] == own)
        assert chisquare(counts[own, classes]).pvalue > 1e-3
    run.options.seed = 7
    np.testing.assert_array_equal(random_labels(run), random_labels(run))


def test_the_mask_takes_the_largest_gradients_over_all_layers(digits: Any) -> None:
    """The reference is one full-batch gradient."""
    run = run_of(digits, digits.labels, *digits.rows)
    run.options.batch_size = 50
    mask = saliency_mask(run, 0.3)
    model = digits.fresh()
    loss = cross_entropy(model(digits.images[digits.forget]), torch.from_numpy(digits.labels[digits.forget]).long())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    flat = torch.cat([g.abs().flatten() for g in gradients])
    chosen = torch.cat([mask[name].flatten() for name, _ in model.named_parameters()])
    assert chosen.sum() == round(0.3 * len(flat))
    assert flat[chosen].min() >= flat[~chosen].max() * 0.99
    shares = [mask[name].float().mean().item() for name in mask]
    assert max(shares) - min(shares) > 0.2  # one threshold holds for all layers, so their shares differ


def test_weights_outside_the_mask_keep_their_bits(digits: Any) -> None:
    """Decay and momentum are strong enough to move every weight, were it not for the mask."""
    fitted = SalUn(density=0.4, lr=0.05, weight_decay=0.1, momentum=0.9, epochs=2, batch_size=64).fit(
        digits.model, digits.images, digits.labels, *digits.rows
    )
    before = dict(digits.model.named_parameters())
    for name, after in fitted.classifier_.named_parameters():
        old = before[name].detach().numpy().view(np.int32)
        new = after.detach().contiguous().numpy().view(np.int32)
        may_move = fitted.mask_[name].numpy()
        np.testing.assert_array_equal(new[~may_move], old[~may_move], err_msg=name)
        if may_move.any():
            assert (new[may_move] != old[may_move]).mean() > 0.95, name
