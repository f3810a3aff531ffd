"""Start programs that parse with argparse, and end each of them as soon as its parser has accepted its words.

Reads a list of {"module" or "script", "words"} from stdin and writes what each parser said against its words, "" for
nothing. It is a process of its own, because programs change settings of the process in which they start.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import runpy
import sys
from importlib.metadata import entry_points


class Accepted(BaseException):
    """The parser accepted the words, so the program is ended. No program catches a BaseException of this kind."""


def end_after(parse):
    """Return the method of ArgumentParser that parses as `parse` does and then ends the program."""

    def parse_and_end(self, *arguments, **settings):
        parse(self, *arguments, **settings)
        raise Accepted

    return parse_and_end


def said_against(program: dict) -> str:
    """Return the error of the program's own parser, or "" if it accepted the words."""
    output = io.TextIOWrapper(io.BytesIO())
    sys.argv = [program.get("module") or program["script"], *program["words"]]
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            if "module" in program:
                runpy.run_module(program["module"], run_name="__main__", alter_sys=True)
            else:
                (script,) = entry_points(group="console_scripts", name=program["script"])
                script.load()()
    except Accepted:
        return ""
    except SystemExit:
        output.seek(0)
        return output.read() or f"{program} ended without a word"
    return f"{program} has no parser"


if __name__ == "__main__":
    programs = json.load(sys.stdin)
    argparse.ArgumentParser.parse_args = end_after(argparse.ArgumentParser.parse_args)
    answers = [said_against(program) for program in programs]
    json.dump(answers, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # Stages keep threads that sample the use of the processor.
