"""What was asked for, as changes of params.yaml: data, model and request, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.data.images import SUFFIXES
from expunge.system.errors import ConfigError

EXAMPLES = {"digits": "params.demo.yaml"}
KINDS = {".parquet": "parquet", ".npz": "npz", ".csv": "text", ".tsv": "text"}
# Their picture is known, so the default network and its cuts fit; nothing has to be named.
OWN_CUTS = "resnet-small"
FROZEN = ("head", "ridge")
# Below so many pictures a batch of 256 makes a handful of steps per pass, and the network stays half trained.
FEW, SMALL_BATCH = 10_000, 64
PEOPLE = ("ids", "subjects")


@dataclass(frozen=True)
class Answers:
    """`data`: a path below the workspace, or the name of a published source. `weights`: a file of public weights;
    `checkpoint`: one of a classifier that was trained on the data. `request`: of `split`, as {"selector": "classes",
    "classes": [...]}. `changes`: further keys, which win."""

    data: str
    model: str
    training: str
    request: Mapping[str, Any]
    source: str | None = None
    image_size: int | None = None
    weights: str | None = None
    checkpoint: str | None = None
    methods: Sequence[str] = ()
    name: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


def source_of(data: str, given: str | None, root: Path) -> tuple[str, str | None]:
    """`data.source` and `data.path`: by what lies at the path `data`, else a published source of that name.

    Raises ConfigError for a path that is not below `root`, or of a kind that nothing says.
    """
    path = root / data
    if not path.exists():
        if given or "/" in data.split(":")[0] or data.startswith("."):
            raise ConfigError(f"--data {data}: no such file or folder")
        return data, None
    inside = path.absolute().relative_to(root.absolute()) if path.absolute().is_relative_to(root.absolute()) else None
    if inside is None or ".." in inside.parts or inside == Path():
        raise ConfigError(
            f"--data {data}: must be a file or folder below {root.resolve().name}/, so that dvc.lock names no place on "
            "this machine; copy it there, or `dvc import-url` it"
        )
    if given is None and path.is_file():
        given = KINDS.get(path.suffix.lower())
    elif given is None and any(p.suffix.lower() in SUFFIXES for p in path.rglob("*")):
        given = "image-folder"
    if given is None:
        raise ConfigError(f"--data {data}: of which kind? add --source image-folder, parquet, npz or text")
    return given, inside.as_posix()


def folder_classes(path: Path) -> list[str]:
    """Class names of an image folder, without a look at its files."""
    train = path / "train"
    top = train if train.is_dir() and ((path / "test").is_dir() or (path / "val").is_dir()) else path
    return sorted(p.name for p in top.iterdir() if p.is_dir() and not p.name.startswith("."))


def named_classes(given: Sequence[str], known: Sequence[str]) -> list[int | str]:
    """Names where they are known as such, in any case that is unambiguous; else indices. Raises ConfigError for what is
    neither; with no `known` every number is an index and every other word a name."""
    found: list[int | str] = []
    for word in given:
        same = [name for name in known if name.casefold() == word.casefold()]
        if word in known or len(same) == 1:
            found.append(word if word in known else same[0])
        elif word.isdecimal() and (not known or int(word) < len(known)):
            found.append(int(word))
        elif known:
            more = f" and {len(known) - 12} more" if len(known) > 12 else ""
            raise ConfigError(f"--classes {word}: no such class; there are {', '.join(known[:12])}{more}")
        else:
            found.append(word)
    return found


def changes_of(answers: Answers, root: Path) -> dict[str, Any]:
    """Changes of the packed params.yaml that make it what was asked for."""
    source, path = source_of(answers.data, answers.source, root)
    made: dict[str, Any] = {
        "data": {"source": source, "path": path},
        "model": _model(answers),
        "split": dict(answers.request),
        **_methods(answers, text=source in ("text", "fortunes")),
        "register": {"name": answers.name},
    }
    if source == "image-folder" and path is not None:
        if "classes" in answers.request:
            given = [str(c) for c in answers.request["classes"]]
            made["split"]["classes"] = named_classes(given, folder_classes(root / path))
        if answers.training == "full" and _pictures(root / path) < FEW:
            made = _merged(made, _small_batches(made["methods"]))
    if answers.request["selector"] != "classes":
        made["split"]["classes"] = []
    return _merged(made, answers.changes)


def _pictures(path: Path) -> int:
    return sum(p.suffix.lower() in SUFFIXES for p in path.rglob("*"))


def _small_batches(methods: Sequence[str]) -> dict[str, Any]:
    fit: dict[str, Any] = {"short-retrain": {"batch_size": SMALL_BATCH}}
    fit["teacher-map"] = {"after": {"batch_size": SMALL_BATCH}}
    return {"train": {"batch_size": SMALL_BATCH}, "fit": {k: v for k, v in fit.items() if k in methods}}


def _model(answers: Answers) -> dict[str, Any]:
    frozen = answers.training in (*FROZEN, "above")
    brings = answers.model.startswith(("efficientnet-lite0", "transformers:", "sentence:"))
    if frozen and not (brings or answers.weights or answers.checkpoint):
        raise ConfigError(
            f"--training {answers.training}: {answers.model} comes without weights, and a backbone that is not trained "
            "needs them; add --weights FILE (safetensors, or a .pt of tensors), or take --training full"
        )
    if answers.weights and answers.checkpoint:
        raise ConfigError("--weights and --checkpoint: a model starts from one file; name the one it starts from")
    public = answers.weights is not None or (brings and answers.checkpoint is None)
    return {
        "name": answers.model,
        "training": answers.training,
        "image_size": answers.image_size,
        "checkpoint": answers.weights or answers.checkpoint,
        "weights": "public" if public and (answers.weights or answers.training == "above") else None,
        "saw_forget_data": not (frozen and public),
    }


def _methods(answers: Answers, text: bool) -> dict[str, Any]:
    """What fits the way of training; the packed list is for a network of known cuts that forgets a class."""
    whole = answers.request["selector"] == "classes"
    made: dict[str, Any] = {}
    if answers.training != "full" or text:
        made["activations"] = {"cuts": []}
        made["methods"] = ["logit-mask", "exact"]
        made["reference"] = "skip"  # the claim `exact` needs no retrained model
        made["retrain"] = {"seeds": [1]}
    else:
        maps = ["loft", "loft-mean", "ru-linear", "leace", *(["pour-p"] if whole else [])]
        made["methods"] = ["logit-mask", *maps, "teacher-map", "relearn", "short-retrain"]
        if answers.model != OWN_CUTS:
            made["activations"] = {"cuts": "auto"}
            # Passes of the whole network: what lies above the cut that is chosen is not known before the training.
            made["fit"] = {
                "relearn": {"cut": "auto"},
                "teacher-map": {"after": {"method": "relearn", "cut": "auto", "epochs": 0.2, "batch_size": 128}},
                "short-retrain": {"cut": None, "epochs": 1.0},
            }
    if answers.training == "above":
        raise ConfigError(
            "--training above: needs model.cut; init with --training head, then `expunge cuts` lists them"
        )
    if answers.training == "none":
        made["methods"] = ["logit-mask", "loft", "ru-linear", "leace"]
    if answers.methods:
        made["methods"] = list(dict.fromkeys(["logit-mask", *answers.methods]))
    return made


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins, section by section."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
