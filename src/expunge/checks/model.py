"""Build the model that params name once, without training, and try its cuts."""

from __future__ import annotations

from expunge.checks.problem import Problem
from expunge.checks.schema import PLACEHOLDER, Schema
from expunge.config import DEFAULT_CUT, Config, entries
from expunge.models.classifier import ABOVE, Classifier
from expunge.models.cut_split import CutSplit
from expunge.models.cuts import split_at_cut, traces_of
from expunge.models.zoo import build
from expunge.system.errors import ExpungeError


def built(config: Config, schema: Schema) -> tuple[Classifier | None, list[Problem]]:
    """Return the classifier for the data, or None if it cannot be built, and the conflicts found."""
    model, found = config.model, []
    if model.training == "full" and schema.mixed:
        says = "pictures differ in size or in colour, and training all weights needs one size and one kind"
        found.append(Problem("model.training", says, "resize them, or set model.training: head"))
    head = model.head
    for _ in range(2):
        try:
            return _build(config, schema, head), found
        except ExpungeError as e:
            words = str(e)
            key = words.split(":")[0] if words.startswith(("model.", "features.")) else "model"
            found.append(Problem.from_error(key, e))
            if key != "model.head" or head is None:
                return None, found
            head = None  # try once more without it, since cuts do not depend on the head
    return None, found


def _build(config: Config, schema: Schema, head: str | None) -> Classifier:
    model = config.model
    return build(
        model.name,
        schema.classes or PLACEHOLDER[0],
        schema.example_shape,
        training=model.training if model.training != "none" or schema.classes else "full",
        saw_forget_data=model.saw_forget_data,
        image_size=model.image_size,
        checkpoint=model.checkpoint,
        head=head,
        layers=config.features.modules,
        seed=config.train.seed,
        public=model.weights == "public",
    )


def cut_problems(config: Config, classifier: Classifier) -> tuple[dict[str, CutSplit], list[Problem]]:
    """Return the splits of `classifier` at the cuts that params name, by name, and the conflicts found.

    There is a conflict for each cut that the classifier lacks. `auto` is left to the train stage, because listing every
    cut takes too long for a check.
    """
    asked: dict[str, str] = {}
    if config.activations.cuts != "auto":
        asked |= dict.fromkeys(config.activations.cuts, "activations.cuts")
    if config.model.training == ABOVE and config.model.cut:
        asked.setdefault(config.model.cut, "model.cut")
    for name in config.methods:
        for where, method, settings in entries(config, name):
            cut = settings.get("cut", DEFAULT_CUT if method == "relearn" else None)
            if method in ("relearn", "short-retrain") and isinstance(cut, str) and cut != "auto":
                asked.setdefault(cut, f"{where}.cut")
    splits: dict[str, CutSplit] = {}
    found: list[Problem] = []
    if asked:
        traces = traces_of(classifier)
        for cut, where in asked.items():
            try:
                splits[cut] = split_at_cut(classifier, cut, traces)
            except ExpungeError as e:
                found.append(Problem.from_error(where, e))
    return splits, found
