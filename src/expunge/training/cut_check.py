"""Check the cuts that params name on the model that params name, before anything is trained."""

from __future__ import annotations

from expunge.config import Config
from expunge.data.dataset import Dataset
from expunge.models.classifier import Classifier
from expunge.models.cut_costs import choose_cut, cut_costs
from expunge.models.cuts import split_at_cut
from expunge.system.errors import ConfigError
from expunge.system.paths import DATASET
from expunge.system.progress import log_message
from expunge.training.full import build_classifier


def classifier_of_params(config: Config) -> Classifier:
    """Return the model for the prepared dataset, before training. Raises ConfigError if there is no dataset yet."""
    if not DATASET.is_dir():
        raise ConfigError(
            f"{DATASET}: no such dataset, but a model is built for its images and classes; run dvc repro prepare"
        )
    return build_classifier(config, Dataset(DATASET), config.train.seed)


def training_rows() -> int:
    """Return the number of training rows of the prepared dataset, whose activations are kept."""
    return int((Dataset(DATASET).splits() == "train").sum())


def check_params(config: Config) -> None:
    """Raise ConfigError unless the model can be cut as `activations.cuts` asks. Does nothing if there are no cuts."""
    if config.activations.cuts:
        classifier = classifier_of_params(config)
        for name in resolve(config, classifier, training_rows()):
            split_at_cut(classifier, name)


def resolve(config: Config, classifier: Classifier, rows: int) -> list[str]:
    """Return the names of the cuts, with `auto` resolved for `rows` training rows.

    Raises ConfigError if no cut fits the budget.
    """
    given = config.activations
    if given.cuts != "auto":
        return list(given.cuts)
    chosen = choose_cut(cut_costs(classifier), rows, given.max_gb, given.max_cost)
    log_message(
        f"activations.cuts: auto chose {chosen.name}, which needs {chosen.gb(rows):.2f} GB and has "
        f"{chosen.share_above:.0%} of the operations above it"
    )
    return [chosen.name]
