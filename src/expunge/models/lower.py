"""A digest of the layers below a cut, to check whether two models give the same activations there."""

from __future__ import annotations

from dataclasses import replace

from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier
from expunge.models.cut_split import CutSplit
from expunge.models.cuts import split_at_cut
from expunge.models.zoo import public_start
from expunge.system.files import digest_of


def lower_digest(split: CutSplit) -> str:
    """Return `sha256:...` of what determines the activations.

    It covers the tensors below the cut, the preprocessing, and the names of the architecture and the cut.
    """
    above = split.lying_above
    below = {
        name: tensor
        for name, tensor in split.core.state_dict().items()
        if name not in above.parameters and not name.startswith(tuple(f"{path}." for path in above.modules))
    }
    classifier = split.classifier
    return digest_of(
        {
            "tensors": digest_of_tensors(below),
            "preprocess": classifier.preprocess.to_json(),
            "name": classifier.card.name,
            "cut": split.name,
        }
    )


def public_lower_digest(classifier: Classifier, cut: str) -> str:
    """Return the `lower_digest` of the public weights that the model's description records.

    Raises CheckpointError if their file is missing or has another digest.
    """
    public = public_start(replace(classifier.card, above=None), classifier.preprocess).eval()
    return lower_digest(split_at_cut(public, cut))
