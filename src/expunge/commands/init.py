"""init: the pipeline into one's own git repository, and from one version of Expunge to the next."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.commands.variant import changes as parsed
from expunge.config import read_config
from expunge.system import plugins
from expunge.system.errors import ConfigError
from expunge.system.installed import LOCK, changed_code, installed_version, read_lock
from expunge.workspaces.init.answers import EXAMPLES, Answers, changes_of, merged, named_classes, with_control
from expunge.workspaces.init.editing import with_values
from expunge.workspaces.init.graph import stages_of
from expunge.workspaces.init.plan import PARTS, plan
from expunge.workspaces.init.plan import track as give_to_dvc
from expunge.workspaces.init.upgrade import upgrade as upgraded
from expunge.workspaces.template import text_of

HERE = Path()
REQUESTED = Path("data/requests")
REQUESTS = ("--classes", "--ids", "--subjects", "--filter", "--random", "--memorised")
Word = str | None


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(init)


def init(
    data: Annotated[
        Word,
        typer.Option(help="Folder with one folder per class, .parquet, .npz or .csv file, or name of a source."),
    ] = None,
    source: Annotated[Word, typer.Option(help="Kind of the data if the path does not show it, e.g. text.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels; by default the model's.")
    ] = None,
    model: Annotated[Word, typer.Option(help="Such as resnet-small, timm:resnet18, package.module:function.")] = None,
    training: Annotated[Word, typer.Option(help="full, head, ridge or none; see `expunge docs exact`.")] = None,
    weights: Annotated[Word, typer.Option(help="File of public weights, trained on no row of the data.")] = None,
    checkpoint: Annotated[Word, typer.Option(help="File of weights that were trained on the data.")] = None,
    classes: Annotated[Word, typer.Option(help="Forget these classes: names or indices, comma-separated.")] = None,
    ids: Annotated[Word, typer.Option(help="Forget the rows whose ids are listed in this file.")] = None,
    subjects: Annotated[Word, typer.Option(help="Forget the people who are listed in this file.")] = None,
    filter: Annotated[Word, typer.Option(help="Forget the rows that meet a condition: 'label == 5'.")] = None,
    random: Annotated[float | None, typer.Option(help="Forget this share of the training rows, at random.")] = None,
    memorised: Annotated[float | None, typer.Option(help="Forget this share: the rows memorised most.")] = None,
    methods: Annotated[Word, typer.Option(help="Names listed by `expunge methods`, comma-separated.")] = None,
    name: Annotated[Word, typer.Option(help="Name of the registered model.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", "-S", help="Any other key: train.epochs=20.")] = None,
    example: Annotated[Word, typer.Option(help="digits: a complete one-minute example instead of your data.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Leave out flows (Prefect) or ci (GitHub).")] = None,
    track: Annotated[bool, typer.Option(help="Track the data with DVC, which keeps them out of git.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, but write nothing.")] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Upgrade this workspace to the installed version.")
    ] = False,
    take: Annotated[list[str] | None, typer.Option(help="With --upgrade: overwrite your changes to this file.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="With --upgrade: keep this file as it is.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --upgrade: do not ask.")] = False,
) -> None:
    """Make the current folder of a git repository a workspace of Expunge. Existing files are not overwritten.

    At a terminal, it asks for data, model and request if no option gives them. `--upgrade` first shows the difference,
    and keeps your params.
    """
    asked: dict[str, Any] = {"--classes": classes, "--ids": ids, "--subjects": subjects, "--filter": filter}
    asked |= {"--random": random, "--memorised": memorised}
    if upgrade:
        _upgrade(take or [], keep or [], yes, dry_run)
        return
    if take or keep:
        raise ConfigError("--take and --keep: only valid with --upgrade; add it, or leave them out")
    if example is not None:
        given = {"--data": data, "--model": model, "--training": training, "--weights": weights, **asked}
        given |= {"--source": source, "--image-size": image_size, "--checkpoint": checkpoint}
        if taken := [option for option, value in given.items() if value is not None]:
            raise ConfigError(
                f"{', '.join(taken)}: --example brings its own; leave out either --example or these options"
            )
        _write(*_example(example, _words(methods), name, parsed(change or [])), without or [], [], dry_run)
        return
    if source not in (None, "image-folder", "parquet", "npz", "text", *plugins.names("readers")):
        raise ConfigError(
            f"--source {source}: must be image-folder, parquet, npz, text, or a reader that `expunge plugins` lists"
        )

    interactive = None in (data, model) or not any(value is not None for value in asked.values())
    data, model, training, request = _asked(data, model, training, weights, asked)
    if interactive and image_size is None and not model.startswith("sentence:"):
        image_size = typer.prompt("Side of the pictures in pixels (0: the model's own)", 0, type=int) or None
    answers = Answers(
        data, model, training, request, source, image_size, weights, checkpoint, _words(methods), name,
        parsed(change or []),
    )  # fmt: skip
    for option, file in (("--weights", weights), ("--checkpoint", checkpoint)):
        _is_below(option, file)
    params, path = _params(answers)
    inputs = [name for name in (path, request.get("file"), weights, checkpoint) if name is not None]
    _write(params, path is not None, without or [], inputs if track else [], dry_run)


def _asked(
    data: Word, model: Word, training: Word, weights: Word, asked: Mapping[str, Any]
) -> tuple[str, str, str, dict[str, Any]]:
    """Data, model, training and request, asked for at a terminal; elsewhere ConfigError says all that is missing."""
    given = {option: value for option, value in asked.items() if value is not None}
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: a request has only one kind; give one of these options")
    interactive = None in (data, model) or not given
    if interactive and not sys.stdin.isatty():
        missing = [o for o, v in (("--data", data), ("--model", model)) if v is None]
        missing += [] if given else [f"what to forget ({', '.join(REQUESTS)})"]
        raise ConfigError(
            f"{', '.join(missing)}: not given, and there is no terminal to ask at; give them, or use --example digits"
        )
    data = data or typer.prompt("Data: a folder with one folder per class, a file, or the name of a source")
    model = model or typer.prompt("Model (resnet-small, timm:NAME, package.module:function ...)", "resnet-small")
    usual = "head" if weights or model.startswith("sentence:") else "full"
    if training is None:
        training = typer.prompt("Training (full, head, ridge, none)", usual) if interactive else usual
    if training not in ("full", "head", "ridge", "none"):
        raise ConfigError(
            f"--training {training}: must be full, head, ridge or none; see `expunge docs exact` for above"
        )
    if not given:
        given = {
            "--classes": typer.prompt("Classes to forget, comma-separated (for rows: --ids, --subjects, --filter)")
        }
    return data, model, training, _request(*next(iter(given.items())))


def _is_below(option: str, file: Word) -> None:
    if file is not None and (Path(file).is_absolute() or ".." in Path(file).parts or not Path(file).is_file()):
        raise ConfigError(f"{option} {file}: no such file below this folder; copy it here, so that DVC can track it")


def _request(option: str, value: Any) -> dict[str, Any]:
    kind = option.removeprefix("--")
    if kind == "classes":
        if not _words(value):
            raise ConfigError("--classes: is empty; name at least one class")
        return {"selector": kind, "classes": named_classes(_words(value), [])}
    if kind in ("ids", "subjects"):
        if not Path(value).is_file():
            raise ConfigError(
                f"{option} {value}: no such file; write one id or name per line, or a table with a column"
            )
        if Path(value).parent != REQUESTED:  # of which the stage `split` depends
            raise ConfigError(
                f"{option} {value}: must lie in {REQUESTED}/; make that folder with `mkdir -p {REQUESTED}` and "
                "move the file there"
            )
        return {"selector": kind, "file": Path(value).as_posix()}
    return {"selector": kind, "filter" if kind == "filter" else "fraction": value}


def _params(answers: Any) -> tuple[str, str | None]:
    """The text of params.yaml, checked, and the path of the data below this folder."""
    changes = changes_of(answers, HERE)
    text = with_values(text_of("params.yaml"), changes)
    _checked(text)
    return text, changes["data"]["path"]


def _example(example: str, methods: Sequence[str], name: Word, changes: Mapping[str, Any]) -> tuple[str, bool]:
    if example not in EXAMPLES:
        raise ConfigError(f"--example {example}: no such example; choose one of {', '.join(EXAMPLES)}")
    asked: dict[str, Any] = {"methods": with_control(methods)} if methods else {}
    if name is not None:
        asked["register"] = {"name": name}
    first, _, rest = text_of(EXAMPLES[example]).partition("\n")
    text = f"{first.replace('`make demo`', f'`expunge init --example {example}`')}\n{rest}"
    text = with_values(text, merged(asked, changes))
    _checked(text)
    return text, False


def _checked(text: str) -> None:
    """Raise ConfigError with every key that is wrong, before anything is written."""
    with tempfile.TemporaryDirectory() as tmp:
        file = Path(tmp) / "params.yaml"
        file.write_text(text, encoding="utf-8")
        _, problems = read_config(file)
    if problems:
        raise ConfigError(
            "nothing was written, because params.yaml would be wrong:\n" + "\n".join(f"  {p}" for p in problems)
        )


def _write(params: str, own_input: bool, without: list[str], tracked: list[str], dry_run: bool) -> None:
    if wrong := [part for part in without if part not in PARTS]:
        raise ConfigError(f"--without {wrong[0]}: must be {' or '.join(PARTS)}")
    if (HERE / LOCK).exists():
        raise ConfigError(
            f"{LOCK}: this is a workspace already; edit params.yaml, or run `expunge init --upgrade` after "
            "an update of Expunge"
        )
    workspace = plan(HERE, params, own_input, without)
    if found := workspace.conflicts():
        raise ConfigError(
            "nothing was written, because of these conflicts with what is here already:\n"
            + "\n".join(f"  {line}" for line in found)
            + "\nMove these files away, or make a separate folder in this repository and run `expunge init` there "
            "(`mkdir forget && cd forget`). `--without flows` and `--without ci` leave out the files of these parts"
        )
    lines = [f"  {name}" for name in sorted(workspace.files)]
    lines += [f"  {name}: {len(lines)} lines added" for name, lines in workspace.appended.items() if lines]
    lines += [f"  {LOCK}", *(["  .dvc/ (dvc init)"] if workspace.starts_dvc else [])]
    typer.echo("\n".join(["would write:" if dry_run else "written:", *lines]))
    if dry_run:
        return
    workspace.write()
    for name in tracked:
        typer.echo(give_to_dvc(HERE, name))
    typer.echo(
        "Next, run `expunge check`, `dvc repro` and `expunge show`. All settings are in params.yaml; `expunge docs` "
        "explains them."
    )


def _upgrade(take: list[str], keep: list[str], yes: bool, dry_run: bool) -> None:
    new = upgraded(HERE, take, keep)
    if new.empty:
        typer.echo(f"nothing to upgrade: this workspace already has version {installed_version()}")
        return
    typer.echo(new.difference(), nl=False)
    for name in new.kept:
        typer.echo(f"{name}: kept with your changes")
    if new.added:
        typer.echo(f"params.yaml: your values are kept; new keys: {', '.join(new.added)}")
    old = read_lock(HERE)
    assert old is not None
    changed = changed_code(old)
    typer.echo(f"version {old.version} -> {new.lock.version}; changed code in: {', '.join(changed) or 'no stage'}")
    if again := stages_of(changed):
        typer.echo(f"these stages, and those that depend on them, run again if they ran before: {', '.join(again)}")
    if new.both:
        raise ConfigError(
            "nothing was written, because both you and the new version changed these files:\n"
            + "\n".join(f"  {name}" for name in new.both)
            + "\nGive --take FILE for the new text (git keeps yours) or --keep FILE for yours, once for each file"
        )
    if dry_run:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                "nothing was written, because there is no terminal to confirm at; read the difference above and run "
                "again with --yes"
            )
        if not typer.confirm("Write these changes?"):
            raise ConfigError("nothing was written")
    new.write()
    typer.echo("Written. `expunge check` checks params.yaml, and `dvc repro` runs these stages again.")


def _words(text: Word) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]
