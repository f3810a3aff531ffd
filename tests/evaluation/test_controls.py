"""Controls are models that forgot nothing. They change only what they should, and are recognised by their outputs."""

from __future__ import annotations

import numpy as np

from expunge.evaluation.controls import (
    LOGIT_MASK,
    LOOKUP_LIST,
    ORIGINAL,
    control_of,
    logit_mask,
    lookup_list,
    negative_controls,
    only_hides,
)

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 60)
LOGITS = RNG.normal(size=(60, 4)) + 4.0 * np.eye(4)[LABELS]
FORGET = np.arange(20)
WHOLE = np.array([2])


def test_a_lookup_list_swaps_two_answers_on_forgotten_rows_only() -> None:
    out = lookup_list(LOGITS, LABELS, FORGET, 0.7)
    right = (out.argmax(1) == LABELS)[FORGET].mean()
    assert abs(right - 0.7) <= 1 / len(FORGET)
    changed = np.flatnonzero((out != LOGITS).any(axis=1))
    assert len(changed) and set(changed) <= set(FORGET)
    for i in changed:
        assert sorted(out[i]) == sorted(LOGITS[i]) and (out[i] != LOGITS[i]).sum() == 2
        assert out[i].argmax() == np.argsort(LOGITS[i])[-2]
    gaps = np.diff(np.sort(LOGITS, axis=1)[:, -2:], axis=1)[:, 0]
    retained = [i for i in FORGET if i not in changed and LOGITS[i].argmax() == LABELS[i]]
    assert gaps[changed].max() <= gaps[retained].min()


def test_at_least_one_row_is_swapped() -> None:
    assert (lookup_list(LOGITS, LABELS, FORGET[:1], 1.0) != LOGITS).any(axis=1).sum() == 1


def test_every_run_includes_its_controls() -> None:
    assert negative_controls(LOGITS, LABELS, FORGET, WHOLE, 0.5).keys() == {ORIGINAL, LOGIT_MASK, LOOKUP_LIST}
    assert negative_controls(LOGITS, LABELS, FORGET, np.array([], int), 0.5).keys() == {ORIGINAL, LOOKUP_LIST}


def test_a_control_is_recognised_by_its_outputs() -> None:
    named = negative_controls(LOGITS, LABELS, FORGET, WHOLE, 0.5)
    assert control_of(LOGITS, logit_mask(LOGITS, WHOLE), WHOLE, named) == LOGIT_MASK
    # The class is lowered by 7 nats. The offset per row does not change probabilities.
    lowered = LOGITS - 7.0 * np.eye(4)[2] + RNG.normal(size=(60, 1))
    assert control_of(LOGITS, lowered, WHOLE, named) == LOGIT_MASK
    assert control_of(LOGITS, LOGITS + 1.0, WHOLE, named) == ORIGINAL
    assert control_of(LOGITS, lookup_list(LOGITS, LABELS, FORGET, 0.5), WHOLE, named) == LOOKUP_LIST
    other = LOGITS + RNG.normal(size=LOGITS.shape)
    assert control_of(LOGITS, other, WHOLE, named) is None and not only_hides(LOGITS, other, WHOLE)
