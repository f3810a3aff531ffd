"""Turn the options of `expunge init` into changes of params.yaml: data, model, request and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.data.limits import SUFFIXES
from expunge.system.errors import ConfigError
from expunge.workspaces.init.pictures import refuse_unusable

EXAMPLES = {"digits": "params.demo.yaml"}
KINDS = {".parquet": "parquet", ".npz": "npz", ".csv": "text", ".tsv": "text"}
# The network whose cuts the packed params.yaml names; for others the cut is chosen by `auto`.
OWN_CUTS = "resnet-small"
FROZEN = ("head", "ridge")
# With fewer than FEW images, batches of 256 give only a handful of steps per epoch, and the network is undertrained.
FEW, SMALL_BATCH = 10_000, 64


@dataclass(frozen=True)
class Answers:
    """What the user asked for.

    `data`: a path below the workspace, or the name of a published source. `weights`: a file of public weights;
    `checkpoint`: a file of a classifier that was trained on the data. `request`: keys of `split`, such as {"selector":
    "classes", "classes": [...]}. `changes`: further keys, which take precedence.
    """

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
    """Return `data.source` and `data.path`: from the file or folder at `data`, or else a published source of that name.

    Raises ConfigError for a path that is missing or not below `root`, and for data whose kind cannot be determined.
    """
    path = root / data
    if not path.exists():
        if given or "/" in data.split(":")[0] or data.startswith("."):
            raise ConfigError(f"--data {data}: no such file or folder")
        return data, None
    inside = path.absolute().relative_to(root.absolute()) if path.absolute().is_relative_to(root.absolute()) else None
    if inside is None or ".." in inside.parts or inside == Path():
        raise ConfigError(
            f"--data {data}: must be a file or folder below {root.resolve().name}/, so that dvc.lock names no path of "
            "this machine; copy it there, or import it with `dvc import-url`"
        )
    if given is None and path.is_file():
        given = KINDS.get(path.suffix.lower())
    elif given is None and any(p.suffix.lower() in SUFFIXES for p in path.rglob("*")):
        given = "image-folder"
    if given is None:
        raise ConfigError(f"--data {data}: its kind is not clear; add --source image-folder, parquet, npz or text")
    return given, inside.as_posix()


def folder_classes(path: Path) -> list[str]:
    """Return the class names of an image folder, without reading its files."""
    train = path / "train"
    top = train if train.is_dir() and ((path / "test").is_dir() or (path / "val").is_dir()) else path
    return sorted(p.name for p in top.iterdir() if p.is_dir() and not p.name.startswith("."))


def named_classes(given: Sequence[str], known: Sequence[str]) -> list[int | str]:
    """Return each class as its name in `known`, else as an index.

    Names are matched without regard to case if that is unambiguous. Without `known`, every number is an index and every
    other word a name. Raises ConfigError for a word that is neither.
    """
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
    """Return the changes of the packed params.yaml that `answers` ask for.

    Raises ConfigError for an answer that cannot be used, DataError for an image folder that the pipeline would refuse.
    """
    source, path = source_of(answers.data, answers.source, root)
    changes: dict[str, Any] = {
        "data": {"source": source, "path": path},
        "model": _model(answers),
        "split": dict(answers.request),
        **_methods(answers),
        "register": {"name": answers.name},
    }
    if source == "image-folder" and path is not None:
        refuse_unusable(root / path, one_shape=answers.training == "full")
        if "classes" in answers.request:
            given = [str(c) for c in answers.request["classes"]]
            changes["split"]["classes"] = named_classes(given, folder_classes(root / path))
        if answers.training == "full" and _pictures(root / path) < FEW:
            changes = merged(changes, {"train": {"batch_size": SMALL_BATCH}})
    if answers.request["selector"] != "classes":
        changes["split"]["classes"] = []
    return merged(changes, answers.changes)


def _pictures(path: Path) -> int:
    return sum(p.suffix.lower() in SUFFIXES for p in path.rglob("*"))


def _model(answers: Answers) -> dict[str, Any]:
    frozen = answers.training in (*FROZEN, "above")
    brings = answers.model.startswith(("efficientnet-lite0", "transformers:", "sentence:"))
    if frozen and not (brings or answers.weights or answers.checkpoint):
        raise ConfigError(
            f"--training {answers.training}: {answers.model} comes without weights, and a backbone that is not trained "
            "needs them; add --weights FILE (safetensors, or a .pt of tensors), or use --training full"
        )
    if answers.weights and answers.checkpoint:
        raise ConfigError("--weights and --checkpoint: a model starts from one file; give only one of these options")
    public = answers.weights is not None or (brings and answers.checkpoint is None)
    return {
        "name": answers.model,
        "training": answers.training,
        "image_size": answers.image_size,
        "checkpoint": answers.weights or answers.checkpoint,
        "weights": "public" if public and (answers.weights or answers.training in ("above", "full")) else None,
        "saw_forget_data": not (frozen and public),
    }


def _methods(answers: Answers) -> dict[str, Any]:
    """Return the methods, and keys that go with them, for the kind of training.

    The packed list is for a network of known cuts that forgets a class.
    """
    whole = answers.request["selector"] == "classes"
    changes: dict[str, Any] = {}
    if answers.training != "full":
        changes["activations"] = {"cuts": []}
        changes["methods"] = ["logit-mask", "exact"]
        changes["reference"] = "skip"  # the claim `exact` needs no retrained model
        changes["retrain"] = {"seeds": [1]}
    else:
        maps = ["loft", "loft-mean", "ru-linear", "leace", *(["pour-p"] if whole else [])]
        changes["methods"] = ["logit-mask", *maps, "teacher-map", "relearn", "short-retrain"]
        if answers.model != OWN_CUTS:
            changes["activations"] = {"cuts": "auto"}
            # Epochs of the whole network: the part above the cut is not known here, because the cut is chosen only in
            # the run.
            changes["fit"] = {
                "relearn": {"cut": "auto"},
                "teacher-map": {"after": {"method": "relearn", "cut": "auto"}},
                "short-retrain": {"cut": None, "epochs": 1.0},
            }
    if answers.training == "above":
        raise ConfigError(
            "--training above: needs model.cut; run `expunge init` with --training head, then choose a cut from "
            "`expunge cuts`"
        )
    if answers.training == "none":
        changes["methods"] = ["logit-mask", "loft", "ru-linear", "leace"]
    if answers.methods:
        changes["methods"] = with_control(answers.methods)
    return changes


def with_control(methods: Sequence[str]) -> list[str]:
    """Return `methods`, each once, with the control first."""
    return list(dict.fromkeys(["logit-mask", *methods]))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees section by section; `over` takes precedence."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
