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
NO_SHARDS = "is used only with model.training: above, head or ridge; set it to 1"


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
            "must be the path of the file or directory that data.source reads",
        ),
        (
            config.data.source.startswith("torchvision:") or not (config.data.root or config.data.download),
            "data.root and data.download",
            "are used only with data.source: torchvision:NAME; set them to null and false",
        ),
        (
            config.data.source.startswith("hf:") or not config.data.columns,
            "data.columns",
            "is used only with data.source: hf:NAME; set it to {}",
        ),
        (
            ask.selector not in ("ids", "subjects", "correct") or ask.file is not None,
            "split.file",
            "must name the file of ids, subjects or corrections",
        ),
        (
            ask.selector != "correct" or {ask.duplicates, ask.near_duplicates} <= {"warn", "ignore"},
            "split.duplicates and split.near_duplicates",
            "must be warn with split.selector: correct; list the copies and their new labels in split.file, too",
        ),
        (
            ask.selector != "correct" or config.shadow.heads == config.shadow.networks == 0,
            "shadow",
            "must be 0 with split.selector: correct, because its attacks ask whether a row was trained on, and "
            "corrected rows were",
        ),
        (
            ask.selector != "canaries" or config.data.canaries > 0,
            "data.canaries",
            "must be above 0 with split.selector: canaries",
        ),
        (
            ask.selector != "filter" or bool(ask.filter),
            "split.filter",
            "must be a filter expression with split.selector: filter",
        ),
        (
            config.model.training != "none" or config.model.checkpoint is not None,
            "model.checkpoint",
            "must name the weights when model.training is none",
        ),
        (
            config.model.training != "none" or config.reference == "skip",
            "reference",
            "must be skip when model.training is none, because there is no recipe to retrain with",
        ),
        (
            model.training != "full" or model.saw_forget_data,
            "model.saw_forget_data",
            "must be true when model.training is full",
        ),
        (
            not above or model.cut is not None,
            "model.cut",
            "must name a cut when model.training is above; run `expunge cuts` to list the cuts",
        ),
        (model.shards == 1 or model.training not in ("full", "none"), "model.shards", NO_SHARDS),
        (
            model.random_features == 0 or model.training in ("ridge", "head"),
            "model.random_features",
            "is used only with model.training: ridge or head; set it to 0",
        ),
        (above or model.slices == 1, "model.slices", "is used only with model.training: above; set it to 1"),
        (above or model.cut is None, "model.cut", "is used only with model.training: above; set it to null"),
        (not above or model.weights == "public", "model.weights", "must be public when model.training is above"),
        (not above or not model.saw_forget_data, "model.saw_forget_data", "must be false when model.training is above"),
        (not above or held, "activations.cuts", f"must include {shown(model.cut)}, the value of model.cut"),
        (
            len(set(config.retrain.seeds)) == len(config.retrain.seeds) > 0,
            "retrain.seeds",
            "must list at least one seed, and each seed once",
        ),
        (
            config.train.engine == "local" or model.training == "full",
            "train.engine",
            "must be local unless model.training is full",
        ),
        (
            config.model.training in ("head", "ridge") or not config.train.head,
            "train.head",
            "is used only with model.training: head or ridge; set it to {}",
        ),
        (
            config.shadow.heads == 0 or (config.shadow.heads >= 8 and config.shadow.heads % 2 == 0),
            "shadow.heads",
            "must be 0 (off) or an even number of at least 8, because half of the heads are trained on each row",
        ),
        (
            config.shadow.networks == 0 or config.shadow.networks >= 4,
            "shadow.networks",
            "must be 0 (off) or at least 4, because an attack fits one distribution to members and one to non-members",
        ),
        (
            0 < len(config.features.modules) == len(set(config.features.modules)),
            "features.layers",
            "must name at least one module, and each module once",
        ),
        (
            config.features.modules == ("penultimate",) or config.model.training in ("head", "ridge"),
            "features.layers",
            "must be penultimate unless model.training is head or ridge, because a new head is trained on these layers",
        ),
        (
            config.data.source.startswith("hf:")
            or by_package  # prepare finds out whether it reads images or texts
            or (config.data.source in ("text", "fortunes")) == config.model.name.startswith("sentence:"),
            "model.name",
            "must be sentence:NAME-OR-DIR for data.source: text or fortunes, and another model for pictures",
        ),
        (
            "logit-mask" in config.methods or config.reference == "skip",
            "methods",
            "must include logit-mask unless reference is skip, because the verdict needs a control",
        ),
        (len(set(config.methods)) == len(config.methods), "methods", "names a method twice"),
        (
            not set(config.methods) & set(TAKEN),
            "methods",
            f"uses a reserved name ({', '.join(TAKEN)}) for an entry; give the entry another name",
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
    """Return a conflict for each cut above which an entry relearns although its activations are not fetched.

    The entries are `name` of `fit` and those nested in its `after`.
    """
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
            found.append(
                f"{where} relearns above {shown(cut)}, but activations.cuts is {shown(cuts)}; add this cut to "
                "activations.cuts"
            )
        after, where, default = given.get("after"), f"{where}.after", ""
        if not after:
            return found
        if not isinstance(after, dict):
            return [
                *found,
                f"{where} is {shown(after)}; it must be a method with its settings, such as {{method: ru-linear}}",
            ]
        given = after
