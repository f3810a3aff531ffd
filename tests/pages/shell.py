"""Read the commands of the pages: fenced blocks of shell, and commands that stand in a sentence or in a table."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.pipeline import ROOT

PAGES = ("*.md", "docs/**/*.md", "examples/**/*.md", "data/**/*.md")
SHELL = ("bash", "sh", "console")
OTHER = ("mermaid", "python", "text", "toml", "yaml")  # Blocks in these languages hold no commands.
KEYWORDS = {"if", "then", "else", "fi", "while", "until", "do", "done", "!"}
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
ASSIGNMENT = re.compile(r"\w+=")


@dataclass(frozen=True)
class Block:
    """A fenced block of shell. `text` is what a reader types, without prompts and printed output."""

    page: str
    line: int  # of the opening fence
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A simple command: one program with its words.

    A mention stands in a sentence. It may be the bare name of a command whose arguments are left out.
    """

    place: str
    words: tuple[str, ...]
    mention: bool
    written: tuple[str, ...] = ()  # Files that commands before it on the page write.

    @property
    def program(self) -> str:
        return self.words[0].removeprefix(".venv/bin/")

    def __str__(self) -> str:
        return f"{self.place} {' '.join(self.words)}"[:100]


def pages() -> list[Path]:
    """Return every page, but for the changelog, which names commands of earlier versions."""
    found = {path for pattern in PAGES for path in ROOT.glob(pattern)}
    return sorted(found - {ROOT / "CHANGELOG.md"})


def fences(page: Path) -> list[Block]:
    """Return all fenced blocks of a page, also those that hold no commands."""
    found, start, language, lines = [], 0, "", []
    name = page.relative_to(ROOT).as_posix()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r" *```(.*)", line)
        if fence and not start:
            start, language, lines = number, fence[1].strip(), []
        elif fence:
            found.append(Block(name, start, language, "\n".join(lines) + "\n"))
            start = 0
        else:
            lines.append(line)
    assert not start, f"{name}:{start}: the block has no end"
    return found


def blocks(page: Path) -> list[Block]:
    """Return the blocks of shell of a page: bash, sh, console, and those without a language that are no settings."""
    found = []
    for block in fences(page):
        if block.language == "console":
            typed = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
            found.append(Block(block.page, block.line, "console", "\n".join(typed) + "\n"))
        elif block.language in SHELL or (not block.language and not is_settings(block.text)):
            found.append(block)
    return found


def is_settings(text: str) -> bool:
    """Return whether YAML reads the text as a mapping, as an excerpt of params.yaml."""
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False


def simple_commands(script: str) -> list[tuple[list[str], list[str]]]:
    """Split a script into simple commands, those inside of $(...) included.

    Each comes with the files to which its output is redirected. Assignments and keywords of the shell are left out.
    """
    inner = re.findall(r"\$\(([^()]*)\)", script)
    found = [command for text in inner for command in simple_commands(text)]
    script = re.sub(r"\$\([^()]*\)", "SUBSTITUTED", script.replace("\\\n", " "))
    for line in re.sub(r"[0-9]?>&[0-9]", "", script).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        files: list[str] = []
        tokens = [*lexer, ";"]
        for at, token in enumerate(tokens):
            if token in (">", ">>", "<"):
                files.append(tokens[at + 1])
            elif set(token) <= set("();|&"):
                while words and (words[0] in KEYWORDS or ASSIGNMENT.match(words[0])):
                    words.pop(0)
                if words:
                    found.append((words, files))
                words, files = [], []
            elif at == 0 or tokens[at - 1] not in (">", ">>", "<"):
                words.append(token)
    return found


def mentions(page: Path, programs: set[str]) -> list[Command]:
    """Return the commands in the sentences of a page: code spans of several words that begin with a program."""
    name = page.relative_to(ROOT).as_posix()
    found = []
    for line, text in spans(page):
        if len(words := text.split()) < 2 or words[0].removeprefix(".venv/bin/") not in programs:
            continue
        found += [Command(f"{name}:{line}", tuple(w), True) for w, _ in simple_commands(text)]
    return found


def spans(page: Path) -> list[tuple[int, str]]:
    """Return the code spans of a page outside of blocks, each with its line."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^ *```.*?^ *```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    return [(text[: s.start()].count("\n") + 1, " ".join(s[2].split())) for s in SPAN.finditer(text)]


def commands(programs: set[str]) -> list[Command]:
    """Return every command of every page, in the order of the pages."""
    found = []
    for page in pages():
        written: list[str] = []
        for block in blocks(page):
            for words, files in simple_commands(block.text):
                found.append(Command(block.place, tuple(words), False, tuple(written)))
                written += files
                if words[0] == "cp":
                    written.append(words[-1])
        found += mentions(page, programs)
    return found
