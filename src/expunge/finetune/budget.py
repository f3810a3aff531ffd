"""Passes and batch sizes of methods that train anew, where params do not give them: from the model's own recipe.

A number of passes that is enough for one dataset is too few steps for a smaller one, and a batch that suits one recipe
makes too few steps for another. docs/relearn.md has the measurements behind the two constants.
"""

from __future__ import annotations

from expunge.finetune.steps import recorded
from expunge.models.classifier import ModelCard

STEPS = 400  # enough on held-out rows; fewer only where the model itself was trained in fewer passes
MOST = 10.0  # passes where the training of the model is not recorded
LARGEST_BATCH = 128  # larger batches make too few steps of so short a training


def batch_size_of(card: ModelCard) -> int:
    """Return the batch size of the recipe that trained the classifier, at most LARGEST_BATCH."""
    return min(LARGEST_BATCH, int(recorded(card).get("batch_size", LARGEST_BATCH)))


def passes_over(card: ModelCard, rows: int, batch_size: int) -> float:
    """Return the passes over `rows` retained rows: one, or more where one makes fewer than STEPS steps.

    They are never more than the passes that trained the classifier, where these are recorded.
    """
    wanted = max(1.0, STEPS / max(1, rows // batch_size))
    return min(wanted, float(recorded(card).get("passes", MOST)))
