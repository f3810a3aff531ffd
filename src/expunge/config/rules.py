"""Rules of params.yaml that types cannot express: keys that depend on each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from expunge.config.sections import Config
from expunge.system import plugins
from expunge.system.errors import ConfigError
from expunge.system.safe_yaml import shown
from expunge.system.validation import check_plain

SOURCES = ("fashion-mnist", "digits", "fortunes", "emoji", "image-folder", "parquet", "npz", "text")
NAMED = ("torchvision:", "hf:")
PUBLISHED = ("fashion-mnist", "digits", "fortunes", "emoji")  # of SOURCES, those that need no path
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
RENAMED_METHODS = {"matched-map": "teacher-map"}
DEFAULT_CUT = "stage1"  # where `relearn` cuts if its entry does not say so
# Names of other models in reports, files and stages, which methods must not have.
TAKEN = ("original", "retrained", "references")
Rule = tuple[bool, str, str]  # whether it is kept, the key, and the problem if it is not


def broken_rules(config: Config) -> list[str]:
    """Return every conflict between keys as one line, `key problem`."""
    rules = [
        *_source_and_its_keys(config),
        *_request(config),
        *_kind_of_training(config),
        *_recipe(config),
        *_shadow_models(config),
        *_features_and_inputs(config),
        *_methods_and_metrics(config),
    ]
    return [
        *(f"{key} {problem}" for good, key, problem in rules if not good),
        *_broken_entries(config),
        *_broken_settings(config),
    ]


def _by_package(config: Config) -> bool:
    """Return whether a reader of an installed package reads `data.source`."""
    source = config.data.source
    return source not in SOURCES and not source.startswith(NAMED) and source in plugins.names("readers")


def _source_and_its_keys(config: Config) -> list[Rule]:
    data, by_package = config.data, _by_package(config)
    named = data.source.startswith(NAMED)
    return [
        (
            named or by_package or data.source in SOURCES,
            "data.source",
            f"is {data.source!r}; it must be one of {', '.join(SOURCES)}, torchvision:NAME, hf:NAME, or a "
            "reader of an installed package (`expunge plugins` lists them)",
        ),
        (
            named or by_package or data.source in PUBLISHED or data.path is not None,
            "data.path",
            "must be the path of the file or directory that data.source reads",
        ),
        (
            data.source.startswith("torchvision:") or not (data.root or data.download),
            "data.root and data.download",
            "are used only with data.source: torchvision:NAME; set them to null and false",
        ),
        (
            data.source.startswith("hf:") or not data.columns,
            "data.columns",
            "is used only with data.source: hf:NAME; set it to {}",
        ),
    ]


def _request(config: Config) -> list[Rule]:
    ask = config.split
    return [
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
    ]


def _kind_of_training(config: Config) -> list[Rule]:
    """Return the rules of what `model.training` requires and rules out."""
    model, cuts, above = config.model, config.activations.cuts, config.model.training == "above"
    return [
        (
            model.training != "none" or model.checkpoint is not None,
            "model.checkpoint",
            "must name the weights when model.training is none",
        ),
        (
            model.training != "none" or config.reference == "skip",
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
        (
            model.shards == 1 or model.training not in ("full", "none"),
            "model.shards",
            "is used only with model.training: above, head or ridge; set it to 1",
        ),
        (
            model.random_features == 0 or model.training in ("ridge", "head"),
            "model.random_features",
            "is used only with model.training: ridge or head; set it to 0",
        ),
        (above or model.slices == 1, "model.slices", "is used only with model.training: above; set it to 1"),
        (above or model.cut is None, "model.cut", "is used only with model.training: above; set it to null"),
        (not above or model.weights == "public", "model.weights", "must be public when model.training is above"),
        (not above or not model.saw_forget_data, "model.saw_forget_data", "must be false when model.training is above"),
        (
            not above or (cuts != "auto" and model.cut in cuts),
            "activations.cuts",
            f"must include {shown(model.cut)}, the value of model.cut",
        ),
    ]


def _recipe(config: Config) -> list[Rule]:
    return [
        (
            len(set(config.retrain.seeds)) == len(config.retrain.seeds) > 0,
            "retrain.seeds",
            "must list at least one seed, and each seed once",
        ),
        (
            config.train.engine == "local" or config.model.training == "full",
            "train.engine",
            "must be local unless model.training is full",
        ),
        (
            not config.train.compile or config.train.engine == "local",
            "train.compile",
            "is for training in one process; set train.engine: local",
        ),
        (
            config.train.augment_workers == 0 or config.train.augment not in (None, "none"),
            "train.augment_workers",
            "is used only with train.augment: flip-crop, randaugment or trivial; set it to 0",
        ),
        (
            config.model.training in ("head", "ridge") or not config.train.head,
            "train.head",
            "is used only with model.training: head or ridge; set it to {}",
        ),
    ]


def _shadow_models(config: Config) -> list[Rule]:
    heads, networks = config.shadow.heads, config.shadow.networks
    return [
        (
            heads == 0 or (heads >= 8 and heads % 2 == 0),
            "shadow.heads",
            "must be 0 (off) or an even number of at least 8, because half of the heads are trained on each row",
        ),
        (
            networks == 0 or networks >= 4,
            "shadow.networks",
            "must be 0 (off) or at least 4, because an attack fits one distribution to members and one to non-members",
        ),
    ]


def _features_and_inputs(config: Config) -> list[Rule]:
    modules, source = config.features.modules, config.data.source
    return [
        (
            0 < len(modules) == len(set(modules)),
            "features.layers",
            "must name at least one module, and each module once",
        ),
        (
            modules == ("penultimate",) or config.model.training in ("head", "ridge"),
            "features.layers",
            "must be penultimate unless model.training is head or ridge, because a new head is trained on these layers",
        ),
        (
            source.startswith("hf:")
            or _by_package(config)  # prepare finds out whether it reads images or texts
            or (source in ("text", "fortunes")) == config.model.name.startswith("sentence:"),
            "model.name",
            "must be sentence:NAME-OR-DIR for data.source: text or fortunes, and another model for pictures",
        ),
    ]


def _methods_and_metrics(config: Config) -> list[Rule]:
    methods, metrics = config.methods, config.evaluate.metrics
    others = plugins.names("metrics") if metrics else []
    unknown = [name for name in metrics if name not in others]
    return [
        (
            "logit-mask" in methods or config.reference == "skip",
            "methods",
            "must include logit-mask unless reference is skip, because the verdict needs a control",
        ),
        (len(set(methods)) == len(methods), "methods", "names a method twice"),
        (
            not set(methods) & set(TAKEN),
            "methods",
            f"uses a reserved name ({', '.join(TAKEN)}) for an entry; give the entry another name",
        ),
        (len(set(metrics)) == len(metrics), "evaluate.metrics", "names a metric twice"),
        (
            not unknown,
            "evaluate.metrics",
            f"names {', '.join(map(repr, unknown[:1]))}, which no installed package declares; known: "
            f"{', '.join(others) or 'none'}",
        ),
    ]


def _broken_entries(config: Config) -> list[str]:
    """Return a conflict for each of `methods` without an entry in `fit`, and for each cut that an entry misses.

    There is one for each method of an earlier version, too, which has another name now.
    """
    found = [
        f"{where} names the method {method!r}, which is called {RENAMED_METHODS[method]} now; rename it"
        for name in config.fit
        for where, method, _ in entries(config, name)
        if method in RENAMED_METHODS
    ]
    for name in config.methods:
        if name in config.fit:
            found += _broken_cuts(config, name)
            continue
        new = RENAMED.get(f"fit.{name}")
        advice = f"it is called {new} now" if new else "add it ({} takes the defaults)"
        found.append(f"methods names {name!r}, but fit.{name} is missing; {advice}")
    return found


def _broken_settings(config: Config) -> list[str]:
    """Return a conflict for each value in free settings that is not plain JSON."""
    found = []
    for where, settings in [*((f"fit.{n}", s) for n, s in config.fit.items()), ("train.head", config.train.head)]:
        try:
            check_plain(settings, where)
        except ConfigError as e:
            found.append(str(e))
    return found


def entries(config: Config, name: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield key, method and settings of the entry `name` of `fit`, and then of the entries nested in its `after`."""
    where, given, default = f"fit.{name}", config.fit.get(name), name
    while isinstance(given, Mapping):
        yield where, str(given.get("method", default)), dict(given)
        where, given, default = f"{where}.after", given.get("after"), ""


def _broken_cuts(config: Config, name: str) -> list[str]:
    """Return a conflict for each cut above which an entry relearns although its activations are not fetched.

    The entries are `name` of `fit` and those nested in its `after`.
    """
    found, cuts = [], config.activations.cuts
    for where, method, given in entries(config, name):
        cut, after = given.get("cut", DEFAULT_CUT), given.get("after")
        if method == "relearn" and cuts != "auto" and (not cuts if cut == "auto" else cut not in cuts):
            found.append(
                f"{where} relearns above {shown(cut)}, but activations.cuts is {shown(cuts)}; add this cut to "
                "activations.cuts"
            )
        if after and not isinstance(after, Mapping):
            found.append(
                f"{where}.after is {shown(after)}; it must be a method with its settings, such as {{method: ru-linear}}"
            )
    return found
