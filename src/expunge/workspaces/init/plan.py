"""What `expunge init` writes, and the conflicts with existing files, all known before the first file is written."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

from expunge.system import dvc
from expunge.system.errors import ConfigError
from expunge.system.files import write_text
from expunge.system.installed import Lock, code_digests, installed_version, stages
from expunge.workspaces.init.graph import graph, outputs
from expunge.workspaces.template import files_below, text_of

GRAPH, PARAMS = "dvc.yaml", "params.yaml"
WORKFLOW = ".github/workflows/expunge.yml"
PARTS = ("flows", "ci")
NOTES = ("data/source/README.md", "data/requests/README.md")
# Files that no stage writes and that must stay out of git: work in progress, stores, forgotten rows, keys and
# certificates.
IGNORED = (
    ".expunge/", "__pycache__/", "/mlflow.db*", "/mlartifacts/", "/mlruns/", "/data/raw/", "/data/forgotten/",
    "/data/tombstones/", "/records/", "/dvc_plots/", "/reports/audit.json", "/reports/review.html",
    "/reports/data_docs/",
)  # fmt: skip
DVC_IGNORED = ("__pycache__/", ".venv/", ".expunge/", "*.tmp")
OF_DVC = ("/config.local", "/tmp", "/cache")  # what DVC keeps out of git in its own folder


@dataclass(frozen=True)
class InitPlan:
    """`files`: path below `root` -> text of a file that init writes. `appended`: ignore file -> lines that it lacks."""

    root: Path
    top: Path
    files: dict[str, str]
    appended: dict[str, list[str]]
    lock: Lock

    @property
    def starts_dvc(self) -> bool:
        """Whether the workspace has no DVC yet, so that init sets it up."""
        return not (self.root / ".dvc").is_dir()

    def conflicts(self) -> list[str]:
        """Return one line for each file that exists with other content, and for each existing output of a stage."""
        found = [
            f"{name}: exists already"
            for name, text in self.files.items()
            if (self.root / name).exists() and not _holds(self.root / name, text)
        ]
        names = [name for name, _ in outputs(self.files[GRAPH])]
        found += [f"{name}: exists already, and a stage would replace it" for name in names if _full(self.root / name)]
        return found

    def write(self) -> None:
        """Initialise DVC, then write every file.

        `expunge.lock` comes last, so that an interrupted run can be repeated.
        """
        if self.starts_dvc:
            below = () if self.root.resolve() == self.top.resolve() else ("--subdir",)
            dvc.run("init", "--quiet", *below, root=self.root)
            dvc.run("config", "core.analytics", "false", root=self.root)
        if not (self.root / ".dvc/.gitignore").is_file():
            # A `dvc init` that was killed leaves a folder without it, and git would take the cache in.
            write_text(self.root / ".dvc/.gitignore", "".join(f"{line}\n" for line in OF_DVC))
        for name, text in self.files.items():
            if not _holds(self.root / name, text):
                write_text(self.root / name, text)
        for name, lines in self.appended.items():
            if lines:
                append_lines(self.root / name, lines)
        self.lock.write(self.root)


def plan(root: Path, params: str, own_input: bool, without: Collection[str] = ()) -> InitPlan:
    """Return what makes `root` a workspace with this text of params.yaml.

    Raises ConfigError outside a git repository.
    """
    top = git_top(root)
    files = managed(root, own_input, without)
    files[PARAMS] = params
    notes = {n: text_of(n) for n in NOTES if not (n == NOTES[0] and own_input) and not (root / n).exists()}
    return InitPlan(root, top, {**files, **notes}, ignore_rules(root, files[GRAPH]), lock_of(files))


def managed(root: Path, own_input: bool, without: Collection[str] = ()) -> dict[str, str]:
    """Return the files that follow the installed version, by path below `root`.

    params.yaml is not one of them, because its values are the user's.
    """
    files = {GRAPH: graph(own_input)}
    if "flows" not in without:
        files |= {name: text_of(name) for name in ["prefect.yaml", *files_below("flows")]}
    if "ci" not in without:
        top = git_top(root)
        up = Path(*[".."] * len(root.resolve().relative_to(top.resolve()).parts))
        files[(up / WORKFLOW).as_posix()] = workflow(root.resolve().relative_to(top.resolve()))
    return files


def workflow(below: Path) -> str:
    """Return the CI workflow for a workspace in the folder `below` of its repository."""
    text = template_of_workflow()
    torch = next((r.partition("==")[2].strip() for r in requires("expunge") or [] if r.startswith("torch==")), "2.13.0")
    for word, value in {"WORKSPACE/": f"{below.as_posix()}/", "WORKSPACE": below.as_posix()}.items():
        text = text.replace(word, value if below != Path() or not word.endswith("/") else "")
    return text.replace("TORCH", torch).replace("VERSION", installed_version())


def template_of_workflow() -> str:
    """Return the text of the CI workflow with its placeholders."""
    return (Path(__file__).parent / "ci.yml").read_text(encoding="utf-8")


def ignore_rules(root: Path, graph_text: str) -> dict[str, list[str]]:
    """Return the lines that .gitignore and .dvcignore lack.

    Outputs are listed one by one, because `models/` may be a folder of the user's.
    """
    outs = [f"/{name}" for name, in_git in outputs(graph_text) if not in_git]
    folders = tuple(out for out in outs if out.endswith("/"))
    outs = [out for out in outs if out in folders or not out.startswith(folders)]
    wanted = {".gitignore": [*IGNORED, *outs], ".dvcignore": [*DVC_IGNORED]}
    return {name: [line for line in lines if line not in _lines(root / name)] for name, lines in wanted.items()}


def lock_of(files: dict[str, str]) -> Lock:
    """Return the lock of a workspace that holds `files` of the installed version."""
    written = {name: digest(text) for name, text in files.items() if name != PARAMS}
    return Lock(installed_version(), code_digests(stages()), written)


def digest(text: str) -> str:
    """Return the digest of a file's content as `files` of expunge.lock has it: 32 hex digits of its sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append `lines` to the file below a heading; its content stays unchanged."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    gap = "" if not old else "\n" if old.endswith("\n") else "\n\n"
    write_text(path, f"{old}{gap}# expunge\n" + "".join(f"{line}\n" for line in lines))


def git_top(root: Path) -> Path:
    """Return the top folder of the git repository that contains `root`. Raises ConfigError if there is none."""
    try:
        command, words = ["git", "rev-parse", "--show-toplevel"], {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(command, cwd=root, env=words, text=True, capture_output=True)
    except FileNotFoundError:
        raise ConfigError(
            "git is not installed; install it, because DVC and `expunge init` need a git repository"
        ) from None
    if done.returncode != 0 and "not a git repository" not in done.stderr:  # for example a folder of another owner
        raise ConfigError(f"{root.resolve()}: git refuses this folder: {' '.join(done.stderr.split())}")
    if done.returncode != 0:
        raise ConfigError(
            f"{root.resolve()}: not in a git repository; run `git init` here, or change to your repository"
        )
    return Path(done.stdout.strip())


def track(root: Path, path: str) -> str:
    """Track the input with DVC, which keeps it out of git, and return a line that says what was done.

    An input that git or DVC tracks already is not changed.
    """
    listed = subprocess.run(["git", "ls-files", "-z", "--", path], cwd=root, text=True, capture_output=True).stdout
    if (root / f"{path}.dvc").is_file():
        return f"{path}: DVC tracks it already"
    if listed:
        return (
            f"{path}: git tracks it, and its history keeps what was committed. If it is data, run "
            f"`git rm -r --cached {path} && dvc add {path}`"
        )
    dvc.run("add", "--quiet", path, root=root)
    return f"{path}: tracked by DVC now; commit {path}.dvc to git"


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _full(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
