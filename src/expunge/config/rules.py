"""Rules of params.yaml that types cannot express: keys that depend on each other."""

from __future__ import annotations

from expunge.config.sections import Config
from expunge.system import plugins
from expunge.system.errors import ConfigError
from expunge.system.safe_yaml import shown
from expunge.system.validation import check_plain

SOURCES = ("fashion-mnist", "digits", "fortunes", "emoji", "image-folder", "parquet", "npz", "text")
NAMED = ("torchvision:", "hf:")
# Old key -> new key. An old key is refused with an error that names the new one.
RENAMED = {
    "fit.matched": "fit.relearn",
    "fit.matched-stage2": "fit.relearn-stage2",
    "fit.matched-fast": "fit.teacher-map",
    "fit.matched-sealed": "fit.teacher-map-sealed",
    "fit.teacher": "fit.teacher-map.after",
    "ensembles": "shadow",
    "shadow.full": "shadow.networks",
}
# Names of other models in reports, files and stages, which methods must not have.
TAKEN = ("original", "retrained", "references")
NO_SHARDS = "is for model.training: above, head or ridge; set it to 1"


def broken_rules(config: Config) -> list[str]:
    """Return every conflict between keys as one line, `key problem`."""
    model, cuts, above = config.model, config.activations.cuts, config.model.training == "above"
    held, ask = cuts != "auto" and model.cut in cuts, config.split
    own_source = config.data.source in SOURCES or config.data.source.startswith(NAMED)
    by_package = not own_source and config.data.source in plugins.names("readers")
    rules = [
        (
            own_source or by_package,
            "data.source",
            f"is {config.data.source!r}; it must be one of {', '.join(SOURCES)}, torchvision:NAME, hf:NAME, or a "
            "reader of an installed package (`expunge plugins` lists them)",
        ),
        (
            config.data.source.startswith(NAMED)
            or by_package
            or config.data.source in ("fashion-mnist", "digits", "fortunes", "emoji")
            or config.data.path is not None,
            "data.path",
            "must name the input of this source",
        ),
        (
            config.data.source.startswith("torchvision:") or not (config.data.root or config.data.download),
            "data.root and data.download",
            "are for data.source torchvision:NAME",
        ),
        (config.data.source.startswith("hf:") or not config.data.columns, "data.columns", "is for data.source hf:NAME"),
        (
            ask.selector not in ("ids", "subjects", "correct") or ask.file is not None,
            "split.file",
            "must name the file of ids, subjects or corrections",
        ),
        (
            ask.selector != "correct" or {ask.duplicates, ask.near_duplicates} <= {"warn", "ignore"},
            "split.duplicates and split.near_duplicates",
            "must be warn for selector: correct; list copies with their new labels too",
        ),
        (
            ask.selector != "correct" or config.shadow.heads == config.shadow.networks == 0,
            "shadow",
            "must be 0 for selector: correct: its attacks ask whether a row was trained on, and corrected rows are",
        ),
        (
            ask.selector != "canaries" or config.data.canaries > 0,
            "data.canaries",
            "must be above 0 for selector: canaries",
        ),
        (ask.selector != "filter" or bool(ask.filter), "split.filter", "must be an expression for selector: filter"),
        (
            config.model.training != "none" or config.model.checkpoint is not None,
            "model.checkpoint",
            "must name the weights when model.training is none",
        ),
        (
            config.model.training != "none" or config.reference == "skip",
            "reference",
            "must be skip when model.training is none: there is no recipe to retrain by",
        ),
        (model.training != "full" or model.saw_forget_data, "model.saw_forget_data", "must be true for training: full"),
        (not above or model.cut is not None, "model.cut", "must name a module of `expunge cuts` for training: above"),
        (model.shards == 1 or model.training not in ("full", "none"), "model.shards", NO_SHARDS),
        (
            model.random_features == 0 or model.training in ("ridge", "head"),
            "model.random_features",
            "is for model.training: ridge or head; set it to 0",
        ),
        (above or model.slices == 1, "model.slices", "is for model.training: above; set it to 1"),
        (above or model.cut is None, "model.cut", "is for model.training: above; set it to null"),
        (not above or model.weights == "public", "model.weights", "must be public when model.training is above"),
        (not above or not model.saw_forget_data, "model.saw_forget_data", "must be false when training is above"),
        (not above or held, "activations.cuts", f"must hold {shown(model.cut)}, model.cut"),
        (
            len(set(config.retrain.seeds)) == len(config.retrain.seeds) > 0,
            "retrain.seeds",
            "must be a list of different seeds, at least one",
        ),
        (
            config.train.engine == "local" or model.training == "full",
            "train.engine",
            "other than local is for model.training: full; set it to local",
        ),
        (config.model.training in ("head", "ridge") or not config.train.head, "train.head", "wants a frozen backbone"),
        (
            config.shadow.heads == 0 or (config.shadow.heads >= 8 and config.shadow.heads % 2 == 0),
            "shadow.heads",
            "must be 0 (off) or an even number of at least 8: half of the heads had a row",
        ),
        (
            config.shadow.networks == 0 or config.shadow.networks >= 4,
            "shadow.networks",
            "must be 0 (off) or at least 4: an attack fits a distribution to each side",
        ),
        (0 < len(config.features.modules) == len(set(config.features.modules)), "features.layers", "must name modules"),
        (
            config.features.modules == ("penultimate",) or config.model.training in ("head", "ridge"),
            "features.layers",
            "other than penultimate need model.training: head or ridge: a new head is trained on them",
        ),
        (
            config.data.source.startswith("hf:")
            or by_package  # prepare finds out whether it reads images or texts
            or (config.data.source in ("text", "fortunes")) == config.model.name.startswith("sentence:"),
            "model.name",
            "must be sentence:NAME-OR-DIR for data.source text and fortunes, and only there",
        ),
        (
            "logit-mask" in config.methods or config.reference == "skip",
            "methods",
            "must hold logit-mask: a control stands beside what is compared with retrained models",
        ),
        (len(set(config.methods)) == len(config.methods), "methods", "names a method twice"),
        (
            not set(config.methods) & set(TAKEN),
            "methods",
            f"names an entry {' or '.join(TAKEN)}, as models beside the methods are called; give it another name",
        ),
        (
            len(set(config.evaluate.metrics)) == len(config.evaluate.metrics),
            "evaluate.metrics",
            "names a metric twice",
        ),
    ]
    others = plugins.names("metrics") if config.evaluate.metrics else []
    if unknown := [name for name in config.evaluate.metrics if name not in others]:
        rules.append(
            (
                False,
                "evaluate.metrics",
                f"names {unknown[0]!r}, which no installed package declares; known: {', '.join(others) or 'none'}",
            )
        )
    found = [f"{key} {problem}" for good, key, problem in rules if not good]
    for name in config.methods:
        if name in config.fit:
            found += _broken_cuts(config, name)
            continue
        new = RENAMED.get(f"fit.{name}")
        advice = f"it is called {new} now" if new else "add it ({} takes the defaults)"
        found.append(f"methods names {name!r}, but fit.{name} is missing; {advice}")
    for where, settings in [*((f"fit.{n}", s) for n, s in config.fit.items()), ("train.head", config.train.head)]:
        try:
            check_plain(settings, where)
        except ConfigError as e:
            found.append(str(e))
    return found


def _broken_cuts(config: Config, name: str) -> list[str]:
    """Return a conflict for each cut above which the entry `name` of `fit`, or an entry nested in its `after`, relearns
    although its activations are not fetched."""
    found, given, cuts = [], config.fit[name], config.activations.cuts
    default = name
    where = f"fit.{name}"
    while True:
        cut = given.get("cut", "stage1")
        if (
            given.get("method", default) == "relearn"
            and cuts != "auto"
            and (not cuts if cut == "auto" else cut not in cuts)
        ):
            found.append(f"{where} relearns above {shown(cut)}, but activations.cuts is {shown(cuts)}; add it there")
        after, where, default = given.get("after"), f"{where}.after", ""
        if not after:
            return found
        if not isinstance(after, dict):
            return [*found, f"{where} must be like {{method: ru-linear}}, not {shown(after)}"]
        given = after
